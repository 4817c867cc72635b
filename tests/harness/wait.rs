//! Waiting for an event: look, and look again soon, up to a limit that only a failure reaches.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};

/// Looks until `look` finds something; the error then is the last thing that was seen instead.
///
/// # Errors
/// When nothing was found within `limit`.
pub fn until<T>(what: &str, limit: Duration, mut look: impl FnMut() -> Result<T>) -> Result<T> {
    let began = Instant::now();
    loop {
        match look() {
            Ok(found) => return Ok(found),
            Err(seen) if began.elapsed() > limit => {
                return Err(seen).with_context(|| format!("waited {limit:?} for {what}"));
            }
            Err(_) => std::thread::sleep(LOOK_AGAIN_AFTER),
        }
    }
}

/// How long it took until `look` found something.
///
/// # Errors
/// When nothing was found within `limit`.
pub fn time_until<T>(what: &str, limit: Duration, look: impl FnMut() -> Result<T>) -> Result<Duration> {
    let began = Instant::now();
    until(what, limit, look)?;
    Ok(began.elapsed())
}

const LOOK_AGAIN_AFTER: Duration = Duration::from_millis(10);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_thing_seen_is_told() {
        let error = until("rain", Duration::from_millis(1), || -> Result<()> { anyhow::bail!("sun") }).unwrap_err();
        assert_eq!(format!("{error:#}"), "waited 1ms for rain: sun");
    }

    #[test]
    fn what_is_found_is_returned() {
        let mut looks = 0;
        let found = until("three", Duration::from_secs(5), || {
            looks += 1;
            if looks == 3 { Ok(looks) } else { anyhow::bail!("{looks}") }
        });
        assert_eq!(found.unwrap(), 3);
    }
}
