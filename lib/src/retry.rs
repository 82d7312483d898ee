//! Full-jitter exponential backoff.
//!
//! Owns: how many attempts failed in a row and since when the last one holds.
//! Never: reads the clock or a random source; both are passed in, so that a simulation can replay it.

use std::time::{Duration, Instant};

/// How long to wait before the next attempt: a random time up to `min * 2^n`, never above `max`, never below
/// `min / 2` (so that a refusing peer is not hammered by an unlucky series of zeros).
#[derive(Debug, Clone)]
pub struct Backoff {
    min: Duration,
    max: Duration,
    stable: Duration,
    failures: u32,
    connected_at: Option<Instant>,
}

impl Backoff {
    /// `min` is the first ceiling, `max` the last; success counts only after it lasted `stable`.
    pub fn new(min: Duration, max: Duration, stable: Duration) -> Backoff {
        Backoff { min, max: max.max(min), stable, failures: 0, connected_at: None }
    }

    /// An attempt failed, or what was established broke at `now`: how long to wait before the next one.
    pub fn next_delay(&mut self, now: Instant, rng: &mut fastrand::Rng) -> Duration {
        if let Some(since) = self.connected_at.take()
            && now.saturating_duration_since(since) >= self.stable
        {
            self.failures = 0;
        }
        let ceiling = self.min.saturating_mul(1u32 << self.failures.min(20)).min(self.max);
        self.failures = self.failures.saturating_add(1);
        let floor = self.min / 2;
        let span = ceiling.saturating_sub(floor);
        floor + span.mul_f64(rng.f64())
    }

    /// An attempt succeeded at `now`. The series is forgotten once this held for the stable time.
    pub fn connected(&mut self, now: Instant) {
        self.connected_at = Some(now);
    }

    /// How many attempts failed in a row (0 = none).
    pub fn failures(&self) -> u32 {
        self.failures
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);

    #[test]
    fn grows_to_the_cap_and_resets_after_stable_time() {
        let mut rng = fastrand::Rng::with_seed(7);
        let mut backoff = Backoff::new(S, 120 * S, 30 * S);
        let t0 = Instant::now();
        let mut longest = Duration::ZERO;
        for n in 0..200u32 {
            let delay = backoff.next_delay(t0, &mut rng);
            assert!(delay >= S / 2 && delay <= 120 * S, "{delay:?}");
            assert!(n > 6 || delay <= S * (1 << n), "attempt {n} waits {delay:?}");
            longest = longest.max(delay);
        }
        assert!(longest > 100 * S, "the cap is reached: {longest:?}");
        backoff.connected(t0);
        assert!(backoff.next_delay(t0 + S, &mut rng) > Duration::ZERO);
        assert!(backoff.failures() > 100, "a short success does not reset");
        backoff.connected(t0);
        assert!(backoff.next_delay(t0 + 31 * S, &mut rng) <= S);
        assert_eq!(backoff.failures(), 1);
    }
}
