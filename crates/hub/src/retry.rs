//! When to try again.

use std::time::{Duration, Instant};

use crate::HubError;

/// The longest that a server's wish to be left alone is followed.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(300);

/// How often a pause looks whether it is still wanted.
const PAUSE_STEP: Duration = Duration::from_millis(50);

/// When to try again after a lost connection, a status of 429 or one of 500 and up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetryPolicy {
    /// Tries in a row without a new byte before it is given up; at least 1.
    pub max_attempts: u32,
    /// The pause after the first try; it doubles with each.
    pub first_delay: Duration,
    /// The longest pause. A server's `Retry-After` counts more, up to five minutes.
    pub max_delay: Duration,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self { max_attempts: 6, first_delay: Duration::from_millis(500), max_delay: Duration::from_secs(20) }
    }
}

impl RetryPolicy {
    /// The pause after `attempts` tries.
    pub(crate) fn delay(&self, attempts: u32, retry_after: Option<Duration>) -> Duration {
        let doubled = 2_u32.saturating_pow(attempts.saturating_sub(1));
        let own = self.first_delay.saturating_mul(doubled).min(self.max_delay);
        retry_after.map_or(own, |wish| wish.min(MAX_RETRY_AFTER))
    }
}

/// Why a request gave nothing.
#[derive(Debug)]
pub(crate) enum Failure {
    /// It may pass. The error is for when it doesn't.
    Passing { error: HubError, retry_after: Option<Duration> },
    /// Trying again would change nothing.
    Final(HubError),
}

impl From<HubError> for Failure {
    fn from(error: HubError) -> Self {
        Self::Final(error)
    }
}

/// Sleeps, unless it is stopped.
pub(crate) fn pause(delay: Duration, is_stopped: impl Fn() -> bool) {
    let start = Instant::now();
    while !is_stopped() {
        match delay.checked_sub(start.elapsed()) {
            Some(rest) if !rest.is_zero() => std::thread::sleep(rest.min(PAUSE_STEP)),
            _ => break,
        }
    }
}

/// Tries until it succeeds, fails for good, or has been tried often enough.
pub(crate) fn persist<T>(
    policy: &RetryPolicy,
    is_stopped: impl Fn() -> bool,
    mut request: impl FnMut() -> Result<T, Failure>,
) -> Result<T, HubError> {
    let mut attempts = 0;
    loop {
        if is_stopped() {
            return Err(HubError::Cancelled);
        }
        attempts += 1;
        match request() {
            Ok(value) => return Ok(value),
            Err(Failure::Final(error)) => return Err(error),
            Err(Failure::Passing { error, .. }) if attempts >= policy.max_attempts => return Err(error),
            Err(Failure::Passing { error, retry_after }) => {
                let delay = policy.delay(attempts, retry_after);
                tracing::warn!("{error}; trying again");
                pause(delay, &is_stopped);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Duration, RetryPolicy};

    #[test]
    fn pauses_double_up_to_a_limit_unless_the_server_names_one() {
        let policy =
            RetryPolicy { max_attempts: 9, first_delay: Duration::from_secs(1), max_delay: Duration::from_secs(5) };
        let seconds = |attempts, wish: Option<u64>| policy.delay(attempts, wish.map(Duration::from_secs)).as_secs();
        assert_eq!([1, 2, 3, 4, 99].map(|attempts| seconds(attempts, None)), [1, 2, 4, 5, 5]);
        assert_eq!([seconds(1, Some(7)), seconds(9, Some(0)), seconds(1, Some(9999))], [7, 0, 300]);
    }
}
