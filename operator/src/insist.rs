//! Requests without whose answer the operator cannot start.

use std::fmt::Display;
use std::time::Duration;

use backon::{ExponentialBuilder, Retryable as _};

/// The pauses between tries, all together. After them the process ends and says why: its kubelet starts another.
const PATIENCE: Duration = Duration::from_mins(1);

/// Asks until there is an answer, for as long as the errors are ones that `pass`.
pub async fn insist<T, E, F>(
    what: &str,
    pass: impl Fn(&E) -> bool,
    ask: impl FnMut() -> F,
) -> Result<T, E>
where
    E: Display,
    F: Future<Output = Result<T, E>>,
{
    let pauses = ExponentialBuilder::default()
        .with_min_delay(Duration::from_millis(500))
        .with_max_delay(Duration::from_secs(10))
        .with_total_delay(Some(PATIENCE))
        .without_max_times();
    ask.retry(pauses)
        .when(pass)
        .notify(|error: &E, wait| {
            tracing::warn!(%error, ?wait, "{what}: this failed at the start, and is tried again");
        })
        .await
}

/// Whether the API server may answer otherwise in a moment: it was not reached, or it is in trouble itself.
#[must_use]
pub fn passes(error: &kube::Error) -> bool {
    match error {
        kube::Error::Api(status) => status.code >= 500 || matches!(status.code, 408 | 409 | 429),
        kube::Error::HyperError(_)
        | kube::Error::Service(_)
        | kube::Error::ReadEvents(_)
        | kube::Error::SerdeError(_) => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use kube::core::Status;

    use super::*;

    fn refused(code: u16) -> kube::Error {
        kube::Error::Api(Box::new(Status::failure("no", "No").with_code(code)))
    }

    fn lost() -> kube::Error {
        kube::Error::Service("the connection was reset".into())
    }

    /// How often is asked where the first so many answers are this error.
    async fn asked(times: usize, error: fn() -> kube::Error) -> (usize, bool) {
        let asked = Cell::new(0);
        let answer = insist("a request", passes, async || {
            asked.set(asked.get() + 1);
            if asked.get() > times {
                Ok(())
            } else {
                Err(error())
            }
        });
        let is_answered = answer.await.is_ok();
        (asked.get(), is_answered)
    }

    #[tokio::test(start_paused = true)]
    async fn trouble_of_the_server_is_waited_out() {
        for error in [
            lost,
            || refused(500),
            || refused(503),
            || refused(429),
            || refused(409),
        ] {
            assert_eq!(asked(4, error).await, (5, true), "{}", error());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_refusal_is_taken_at_its_word() {
        for error in [|| refused(403), || refused(404), || refused(422)] {
            assert_eq!(asked(4, error).await, (1, false), "{}", error());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn patience_has_an_end() {
        let start = tokio::time::Instant::now();
        let (_, is_answered) = asked(usize::MAX, lost).await;
        assert!(!is_answered);
        assert!(start.elapsed() > PATIENCE / 2 && start.elapsed() <= PATIENCE);
    }
}
