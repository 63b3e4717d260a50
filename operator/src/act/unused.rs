//! What a pool does not use any more is let go of. The cluster and GitHub see nothing of it.

use crate::context::Context;
use cuda_runner_plan::model::pool::Pool;

/// Ends watches of objects that the spec does not name, drops clients of addresses that are not in the status, and stops
/// listening with credentials that are not the pool's.
pub(super) fn let_go(ctx: &Context, pool: &Pool) {
    ctx.release_objects(pool);
    let status = &pool.status;
    let here = pool.spec.as_ref().map(|spec| spec.url.to_string());
    ctx.clients.last.keep(pool, |url| {
        here.as_ref() == Ok(url)
            || status.registered_at.as_ref() == Some(url)
            || status.left_at.iter().any(|left| left.url == *url)
            || status
                .webhook
                .as_ref()
                .is_some_and(|hook| hook.address == *url)
    });
    let identity = ctx
        .memory
        .with(pool, |memory| memory.github.identity.clone());
    ctx.listeners.keep(pool, &identity);
}
