//! Whether the machine's time of day may be believed.
//!
//! A clock that jumps ahead would make certificates that nobody accepts yet and that live too long; one that jumps back
//! makes them end too early. The time of day is therefore compared with a clock that only counts, also while the machine
//! sleeps, and, where there is one, with that of the database server. After a jump nothing is signed, and nothing ages,
//! until the clock is back, the database server says the same, or the new time has stood for a while.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use runtime::clock::Clock;
use tokio::sync::watch;

/// The state of belief.
#[derive(Debug)]
pub(crate) struct ClockWatch {
    clock: Clock,
    belief: Mutex<Belief>,
    sound: watch::Sender<bool>,
}

/// Why nothing is signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the clock of this machine is {} ahead of what it should be; nothing is signed until it can be believed", seconds(*.ahead))]
pub struct ClockJump {
    /// Seconds; negative: behind.
    ahead: i64,
}

#[derive(Debug)]
struct Belief {
    /// A moment that was believed, on both clocks.
    wall: SystemTime,
    steady: Duration,
    jump: Option<Jump>,
    /// By how many seconds we are ahead of the database server.
    witness: Option<i64>,
    jumps: u64,
}

#[derive(Clone, Copy, Debug)]
struct Jump {
    ahead: i64,
    since: Duration,
}

impl ClockWatch {
    /// Believes the clock, unless `newest` (something that was recorded before) lies ahead of it.
    pub(crate) fn new(clock: Clock, newest: SystemTime) -> Self {
        let (wall, steady) = (clock.now(), clock.steady());
        let behind = ahead_of(wall, newest) < -TOLERANCE_SECS;
        let believed = if behind { newest } else { wall };
        let belief = Belief { wall: believed, steady, jump: None, witness: None, jumps: 0 };
        let watch = Self { clock, belief: Mutex::new(belief), sound: watch::Sender::new(true) };
        // The check tells the log.
        let _ = watch.check();
        watch
    }

    /// Whether anything may be signed now.
    ///
    /// # Errors
    /// While the clock is not believed.
    pub(crate) fn check(&self) -> Result<(), ClockJump> {
        let mut belief = self.belief.lock().unwrap_or_else(PoisonError::into_inner);
        let judged = belief.judge(self.clock.now(), self.clock.steady());
        if judged.is_ok() != *self.sound.borrow() {
            self.sound.send_replace(judged.is_ok());
        }
        judged
    }

    /// Changes as soon as a check finds that the clock has jumped, or is back.
    pub(crate) fn sound(&self) -> watch::Receiver<bool> {
        self.sound.subscribe()
    }

    /// Takes note of the time of the database server.
    pub(crate) fn hear(&self, server: SystemTime) {
        let ahead = ahead_of(self.clock.now(), server);
        self.belief.lock().unwrap_or_else(PoisonError::into_inner).witness = Some(ahead);
    }

    /// How often the clock jumped.
    pub(crate) fn jumps(&self) -> u64 {
        self.belief.lock().unwrap_or_else(PoisonError::into_inner).jumps
    }
}

impl Belief {
    fn judge(&mut self, wall: SystemTime, steady: Duration) -> Result<(), ClockJump> {
        let passed = steady.saturating_sub(self.steady);
        let ahead = ahead_of(wall, self.wall + passed);
        if ahead.abs() <= TOLERANCE_SECS {
            self.settle(wall, steady, passed);
            return self.agreed();
        }
        let jump = match self.jump {
            Some(jump) if (jump.ahead - ahead).abs() <= TOLERANCE_SECS => jump,
            _ => self.jumped(ahead, steady),
        };
        let confirmed = self.witness.map(|witness| witness.abs() <= TOLERANCE_SECS);
        let stood = steady.saturating_sub(jump.since) >= SETTLE;
        if confirmed == Some(true) || (confirmed.is_none() && stood) {
            tracing::warn!(ahead_secs = ahead, by_server = confirmed.is_some(), "the new time is believed");
            (self.wall, self.steady, self.jump) = (wall, steady, None);
            return Ok(());
        }
        Err(ClockJump { ahead })
    }

    /// What the database server says, if there is one.
    fn agreed(&self) -> Result<(), ClockJump> {
        match self.witness {
            Some(ahead) if ahead.abs() > TOLERANCE_SECS => Err(ClockJump { ahead }),
            _ => Ok(()),
        }
    }

    fn jumped(&mut self, ahead: i64, steady: Duration) -> Jump {
        let jump = Jump { ahead, since: steady };
        tracing::warn!(reason = "CLOCK_JUMPED", ahead_secs = ahead, "the clock jumped; nothing is signed meanwhile");
        self.jump = Some(jump);
        self.jumps += 1;
        // What the server said before the jump was about another time.
        self.witness = self.witness.map(|witness| witness + ahead);
        jump
    }

    /// All is well. Small corrections are followed, and not more often than once an hour, so that many small ones do
    /// not make a great one.
    fn settle(&mut self, wall: SystemTime, steady: Duration, passed: Duration) {
        if self.jump.take().is_some() {
            tracing::info!("the clock is back");
            self.witness = None;
        }
        if passed >= ANCHOR_PAUSE {
            (self.wall, self.steady) = (wall, steady);
        }
    }
}

fn ahead_of(wall: SystemTime, other: SystemTime) -> i64 {
    let secs = |duration: Duration| i64::try_from(duration.as_secs()).unwrap_or(i64::MAX);
    match wall.duration_since(other) {
        Ok(ahead) => secs(ahead),
        Err(behind) => -secs(behind.duration()),
    }
}

fn seconds(ahead: i64) -> String {
    format!("{ahead} seconds")
}

/// As much as certificates are backdated for.
const TOLERANCE_SECS: i64 = 120;
/// How long a new time has to stand when nobody can confirm it.
const SETTLE: Duration = Duration::from_secs(600);
const ANCHOR_PAUSE: Duration = Duration::from_secs(3600);

#[cfg(test)]
mod tests {
    use runtime::clock::from_unix_secs;

    use super::*;

    const DAYS_2: i64 = 48 * 3600;
    const START: i64 = 1_700_000_000;

    fn belief() -> Belief {
        Belief { wall: from_unix_secs(START), steady: Duration::ZERO, jump: None, witness: None, jumps: 0 }
    }

    fn judge(belief: &mut Belief, steady_secs: u64, shift: i64) -> Result<(), i64> {
        let wall = from_unix_secs(START + i64::try_from(steady_secs).unwrap() + shift);
        belief.judge(wall, Duration::from_secs(steady_secs)).map_err(|jump| jump.ahead)
    }

    #[test]
    fn a_jump_of_two_days_stops_all_until_the_clock_is_back() {
        for shift in [DAYS_2, -DAYS_2] {
            let mut belief = belief();
            assert_eq!(judge(&mut belief, 10, 0), Ok(()));
            assert_eq!(judge(&mut belief, 11, shift), Err(shift));
            assert_eq!(judge(&mut belief, 500, shift), Err(shift));
            assert_eq!(judge(&mut belief, 501, 1), Ok(()), "back");
            assert_eq!(belief.jumps, 1);
        }
    }

    #[test]
    fn a_new_time_that_stands_is_believed_after_a_while() {
        let mut belief = belief();
        assert_eq!(judge(&mut belief, 100, DAYS_2), Err(DAYS_2));
        assert_eq!(judge(&mut belief, 699, DAYS_2), Err(DAYS_2));
        assert_eq!(judge(&mut belief, 700, DAYS_2), Ok(()));
        assert_eq!(judge(&mut belief, 701, 0), Err(-DAYS_2), "the way back is a jump too");
    }

    #[test]
    fn a_clock_that_jumps_about_is_not_believed() {
        let mut belief = belief();
        for step in 1..100 {
            let shift = DAYS_2 * i64::try_from(step).unwrap();
            assert_eq!(judge(&mut belief, 300 * step, shift), Err(shift));
        }
    }

    #[test]
    fn a_machine_that_slept_has_not_jumped() {
        let mut belief = belief();
        assert_eq!(judge(&mut belief, 16 * 3600, 0), Ok(()), "both clocks go on during sleep");
    }

    #[test]
    fn many_small_corrections_make_no_great_one() {
        let mut belief = belief();
        let refused =
            (1..100_u64).filter(|step| judge(&mut belief, *step, i64::try_from(*step * 60).unwrap()).is_err());
        assert!(refused.count() > 90);
    }

    #[test]
    fn the_database_server_decides_at_once() {
        let mut belief = belief();
        assert_eq!(judge(&mut belief, 1, DAYS_2), Err(DAYS_2));
        belief.witness = Some(DAYS_2);
        assert_eq!(judge(&mut belief, 10_000, DAYS_2), Err(DAYS_2), "however long it stands");
        belief.witness = Some(1);
        assert_eq!(judge(&mut belief, 10_001, DAYS_2), Ok(()), "the server confirms the new time");
        belief.witness = Some(-DAYS_2);
        assert_eq!(judge(&mut belief, 10_002, DAYS_2), Err(-DAYS_2), "both were right before, now one is not");
    }

    #[test]
    fn a_check_that_finds_a_jump_tells_it_at_once_and_once() {
        let watch = ClockWatch::new(Clock::system(), runtime::clock::now() + Duration::from_secs(7200));
        let mut sound = watch.sound();
        assert!(!*sound.borrow_and_update(), "found at the start");
        assert!(watch.check().is_err() && !sound.has_changed().unwrap());
        watch.belief.lock().unwrap().wall = runtime::clock::now();
        assert!(watch.check().is_ok() && sound.has_changed().unwrap());
    }

    #[test]
    fn what_was_recorded_lies_not_in_the_future() {
        let now = runtime::clock::now();
        assert!(ClockWatch::new(Clock::system(), now - Duration::from_secs(5)).check().is_ok());
        let watch = ClockWatch::new(Clock::system(), now + Duration::from_secs(7200));
        assert!(watch.check().unwrap_err().ahead < -7000);
    }
}
