//! A panic is a failure of the step that it happened in, and of nothing else.
//!
//! What a step leaves behind is sound all the same: locks are taken for single changes of plain values, and permits are
//! given back as the step unwinds. The panic's place is on standard error before any of this sees it.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

use futures::FutureExt as _;

/// A step did not come to its end because of a mistake in the operator.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error(
    "the operator made a mistake ({0}); the rest goes on without it, please report this with the lines before it in the log"
)]
pub struct Panicked(String);

impl Panicked {
    fn of(payload: &(dyn Any + Send)) -> Self {
        let text = payload
            .downcast_ref::<&str>()
            .map(|text| (*text).to_owned());
        let text = text.or_else(|| payload.downcast_ref::<String>().cloned());
        let text = text.unwrap_or_else(|| "it says nothing of itself".to_owned());
        Self(text.chars().take(400).collect())
    }
}

/// Carries out a step.
pub fn step<T>(work: impl FnOnce() -> T) -> Result<T, Panicked> {
    catch_unwind(AssertUnwindSafe(work)).map_err(|payload| Panicked::of(&*payload))
}

/// Carries out a step that waits.
pub async fn caught<T>(work: impl Future<Output = T>) -> Result<T, Panicked> {
    let done = AssertUnwindSafe(work).catch_unwind().await;
    done.map_err(|payload| Panicked::of(&*payload))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_is_the_failure_of_one_step() {
        assert_eq!(step(|| 1), Ok(1));
        let said = |failed: Result<(), Panicked>| failed.unwrap_err().to_string();
        assert!(said(step(|| panic!("five {}", "apples"))).contains("(five apples)"));
        assert_eq!(caught(async { 1 }).await, Ok(1));
        let late = caught(async {
            tokio::task::yield_now().await;
            panic!("late")
        });
        assert!(said(late.await).contains("(late)"));
    }
}
