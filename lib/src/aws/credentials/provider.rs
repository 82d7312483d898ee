//! Keeps credentials fresh for several threads.
//!
//! States: none; good; due (within the refresh window: one thread fetches, the others go on with the old ones); ended
//! (all wait for the one that fetches). After a failure the next attempt waits a little, and the others get the same
//! error meanwhile, so that a service in trouble is asked once and not by every thread.

use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use super::chain::{self, ChainConfig};
use super::{Credentials, Error};

/// Credentials are renewed this long before their end, at the latest, in seconds.
const MARGIN_S: i64 = 60;
/// The window before the end in which they are renewed at leisure, at most, in seconds.
const WINDOW_S_MAX: i64 = 600;
/// After a failure the chain is left alone this long.
const PAUSE: Duration = Duration::from_secs(2);

type Fetch = Box<dyn Fn() -> Result<Credentials, Error> + Send + Sync>;

/// Hands out credentials that are good. Shared by threads; every call may block.
pub struct Provider {
    fetch: Fetch,
    state: Mutex<State>,
    done: Condvar,
}

#[derive(Default)]
struct State {
    current: Option<Arc<Credentials>>,
    /// When to renew, in Unix seconds.
    due_s: Option<i64>,
    fetching: bool,
    failed: Option<(Instant, Error)>,
}

impl std::fmt::Debug for Provider {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Provider").field("current", &self.lock().current).finish_non_exhaustive()
    }
}

impl Provider {
    /// A provider over the chain. Nothing is fetched yet.
    pub fn new(config: ChainConfig) -> Self {
        Self::with(Box::new(move || chain::ask(&config)))
    }

    fn with(fetch: Fetch) -> Self {
        Self { fetch, state: Mutex::default(), done: Condvar::new() }
    }

    /// Good credentials. `now_s` is Unix time by the server's clock as far as it is known.
    ///
    /// # Errors
    /// What the chain says; the same for all callers until the next attempt.
    pub fn get(&self, now_s: i64) -> Result<Arc<Credentials>, Error> {
        let mut state = self.lock();
        loop {
            let good = state.current.clone().filter(|c| c.expires_s.is_none_or(|end| now_s < end - MARGIN_S));
            let due = state.due_s.is_some_and(|due| due <= now_s);
            let paused = state.failed.as_ref().filter(|(at, _)| at.elapsed() < PAUSE);
            match (good, due, paused) {
                (Some(good), false, _) => return Ok(good),
                (Some(good), true, paused) if state.fetching || paused.is_some() => return Ok(good),
                (None, _, Some((_, error))) => return Err(error.clone()),
                (None, ..) if state.fetching => {
                    // A poisoned lock means that a thread panicked between two assignments; the state is still whole.
                    state = self.done.wait(state).unwrap_or_else(std::sync::PoisonError::into_inner);
                }
                _ => return self.renew(state, now_s),
            }
        }
    }

    /// The server refused these credentials as ended or unknown: they are fetched anew at the next call, unless that
    /// happened meanwhile.
    pub fn invalidate(&self, refused: &Arc<Credentials>) {
        let mut state = self.lock();
        if state.current.as_ref().is_some_and(|current| Arc::ptr_eq(current, refused)) {
            state.current = None;
        }
    }

    fn renew(&self, mut state: MutexGuard<'_, State>, now_s: i64) -> Result<Arc<Credentials>, Error> {
        state.fetching = true;
        drop(state);
        let fetched = (self.fetch)();
        let mut state = self.lock();
        state.fetching = false;
        self.done.notify_all();
        match fetched {
            Ok(found) => {
                log::info!(
                    "credentials: {} (key {}) from {}",
                    lifetime(&found, now_s),
                    found.access_key_id,
                    found.source
                );
                let found = Arc::new(found);
                state.due_s = found.expires_s.map(|end| due(now_s, end, fastrand::f64()));
                state.current = Some(Arc::clone(&found));
                state.failed = None;
                Ok(found)
            }
            Err(error) => {
                state.failed = Some((Instant::now(), error.clone()));
                match state.current.clone().filter(|c| c.expires_s.is_none_or(|end| now_s < end - MARGIN_S)) {
                    Some(old) => {
                        log::warn!("credentials: can't be renewed yet, the old ones are still good: {error}");
                        Ok(old)
                    }
                    None => Err(error),
                }
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // See `get` on poisoning.
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// When to renew credentials that end at `end`: within the last tenth of their life (a minute to ten minutes before
/// the margin), spread by `jitter` from 0 to 1 so that a fleet doesn't ask at once.
fn due(now_s: i64, end: i64, jitter: f64) -> i64 {
    let life = (end - now_s).max(0);
    let window = (life / 10).clamp(60, WINDOW_S_MAX);
    // A float of at most 600 loses nothing that matters.
    end - MARGIN_S - window + (jitter.clamp(0.0, 1.0) * window as f64 * 0.9) as i64
}

fn lifetime(found: &Credentials, now_s: i64) -> String {
    match found.expires_s {
        Some(end) => format!("good for {} min", (end - now_s) / 60),
        None => "without an end".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};

    use super::*;
    use crate::config::Secret;

    fn credentials(n: usize, expires_s: Option<i64>) -> Credentials {
        Credentials {
            access_key_id: format!("K{n}"),
            secret_key: Secret::new("S3CRET".into()),
            token: None,
            expires_s,
            source: "test".into(),
        }
    }

    /// A provider whose n-th fetch gives key `Kn`, ending `life` seconds after the time 1000 n, or fails.
    fn provider(fails: fn(usize) -> bool) -> (Arc<Provider>, Arc<AtomicUsize>) {
        let count = Arc::new(AtomicUsize::new(0));
        let calls = Arc::clone(&count);
        let fetch = move || {
            let n = calls.fetch_add(1, Ordering::SeqCst) + 1;
            std::thread::sleep(Duration::from_millis(50));
            if fails(n) {
                return Err(Error(vec![("x".into(), format!("no {n}"))]));
            }
            Ok(credentials(n, Some(n as i64 * 10_000)))
        };
        (Arc::new(Provider::with(Box::new(fetch))), count)
    }

    #[test]
    fn many_threads_fetch_once() {
        let (p, count) = provider(|_| false);
        let threads: Vec<_> = (0..8)
            .map(|_| {
                std::thread::spawn({
                    let p = Arc::clone(&p);
                    move || p.get(0).unwrap().access_key_id.clone()
                })
            })
            .collect();
        for thread in threads {
            assert_eq!(thread.join().unwrap(), "K1");
        }
        assert_eq!(count.load(Ordering::SeqCst), 1);
        assert!(!format!("{p:?}").contains("S3CRET"));
    }

    #[test]
    fn renewed_before_the_end_while_others_go_on() {
        let (p, count) = provider(|_| false);
        let now = Arc::new(AtomicI64::new(0));
        assert_eq!(p.get(0).unwrap().access_key_id, "K1");
        assert_eq!(p.get(9_000).unwrap().access_key_id, "K1");
        let at = 9_935;
        now.store(at, Ordering::SeqCst);
        let threads: Vec<_> = (0..8)
            .map(|_| {
                std::thread::spawn({
                    let p = Arc::clone(&p);
                    move || p.get(at).unwrap().access_key_id.clone()
                })
            })
            .collect();
        let keys: Vec<String> = threads.into_iter().map(|t| t.join().unwrap()).collect();
        assert!(keys.iter().all(|k| k == "K1" || k == "K2") && keys.iter().any(|k| k == "K2"), "{keys:?}");
        assert_eq!(count.load(Ordering::SeqCst), 2);
        assert_eq!(p.get(at).unwrap().access_key_id, "K2");
    }

    #[test]
    fn a_failed_renewal_keeps_the_old_ones_until_they_end() {
        let (p, count) = provider(|n| n > 1);
        assert!(p.get(0).is_ok());
        assert_eq!(p.get(9_939).unwrap().access_key_id, "K1");
        assert_eq!(p.get(9_939).unwrap().access_key_id, "K1");
        assert_eq!(count.load(Ordering::SeqCst), 2, "the second attempt waits");
        let error = p.get(9_941).unwrap_err().to_string();
        assert_eq!(error, "no AWS credentials: x: no 2");
    }

    #[test]
    fn refused_ones_are_fetched_anew_once() {
        let (p, count) = provider(|_| false);
        let first = p.get(0).unwrap();
        p.invalidate(&first);
        let second = p.get(0).unwrap();
        p.invalidate(&first);
        assert_eq!(p.get(0).unwrap().access_key_id, second.access_key_id);
        assert_eq!(count.load(Ordering::SeqCst), 2);
    }

    #[test]
    fn the_window_fits_the_life() {
        for life in [120, 900, 3600, 43_200] {
            for jitter in [0.0, 0.5, 1.0] {
                let at = due(1000, 1000 + life, jitter);
                assert!(
                    at <= 1000 + life - MARGIN_S && at >= 1000 + life - MARGIN_S - WINDOW_S_MAX,
                    "{life} {jitter}: {at}"
                );
            }
        }
    }
}
