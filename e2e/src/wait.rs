//! Waiting for a condition, with a deadline.

use std::time::Duration;

use anyhow::{Result, bail};
use tokio::time::{Instant, sleep, timeout};

/// Asks again and again until there is an answer, at most until the deadline. An error of the condition does not end
/// the wait, since servers restart under us, but it is reported when the time is up. A condition that hangs is one that
/// does not hold.
pub async fn wait_for<T>(
    what: &str,
    limit: Duration,
    mut condition: impl AsyncFnMut() -> Result<Option<T>>,
) -> Result<T> {
    let start = Instant::now();
    let mut step = Duration::from_millis(20);
    loop {
        let last = match timeout(limit, condition()).await {
            Ok(Ok(Some(value))) => return Ok(value),
            Ok(Ok(None)) => String::new(),
            Ok(Err(error)) => format!("; the last error was: {error:#}"),
            Err(_) => "; the last look had no answer".to_owned(),
        };
        if start.elapsed() >= limit {
            bail!("waited {} s for {what}, in vain{last}", limit.as_secs());
        }
        sleep(step).await;
        // Short waits are noticed at once, long ones do not load the API server.
        step = (step * 3 / 2).min(Duration::from_millis(250));
    }
}
