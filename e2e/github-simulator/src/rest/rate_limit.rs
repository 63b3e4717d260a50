//! `GET /rate_limit`, which does not count itself.

use serde_json::json;

use crate::{answer::Answer, call::Call, limits, state::World};

/// `GET /rate_limit`
pub fn get(world: &mut World, call: &Call) -> Result<Answer, Answer> {
    let budget = limits::budget(world, &call.principal.label(), call.now);
    let core = json!({
        "limit": budget.limit,
        "used": budget.used,
        "remaining": budget.remaining(),
        "reset": budget.reset.as_second(),
    });
    let search = json!({
        "limit": 30, "used": 0, "remaining": 30, "reset": budget.reset.as_second(),
    });
    let mut body = json!({"resources": {"core": core, "search": search}});
    if !call.newest {
        body["rate"] = core;
    }
    Ok(Answer::json(200, body))
}
