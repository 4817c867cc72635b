//! A keeper that works, refuses, is away, and hangs.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::channel;

use identity::PrivateKey;

use super::*;

/// What a keeper does, set from outside.
#[derive(Default)]
struct Mood {
    away: AtomicU32,
    asked: AtomicU32,
    hang: Mutex<Option<Receiver<()>>>,
}

struct Fake {
    mood: Arc<Mood>,
    key: PrivateKey,
}

impl Fake {
    fn answer<T>(&self, value: T) -> Result<T, KeeperError> {
        self.mood.asked.fetch_add(1, Ordering::SeqCst);
        let hang = self.mood.hang.lock().unwrap().take();
        if let Some(hang) = hang {
            let _ = hang.recv();
        }
        match self.mood.away.load(Ordering::SeqCst) {
            0 => Ok(value),
            1 => Err(KeeperError::Away("unplugged".into())),
            _ => Err(KeeperError::Refused("no such key".into())),
        }
    }
}

impl Keeper for Fake {
    fn create(&mut self, _: &str, _: KeyKind) -> Result<Vec<u8>, KeeperError> {
        self.answer(self.key.public_key_spki())
    }

    fn sign(&mut self, _: &str, _: KeyKind, message: &[u8]) -> Result<Vec<u8>, KeeperError> {
        self.answer(SigningKey::from(self.key.clone()).sign(message).unwrap())
    }

    fn check(&mut self) -> Result<(), KeeperError> {
        self.answer(())
    }
}

fn desk(patience: Duration) -> (Arc<Desk>, Arc<Mood>) {
    let (mood, key) = (Arc::new(Mood::default()), PrivateKey::generate_p256().unwrap());
    let keeper = || -> Box<dyn Keeper> { Box::new(Fake { mood: mood.clone(), key: key.clone() }) };
    (Desk::open_with(Place::Disk, 1, patience, keeper), mood)
}

const LONG: Duration = Duration::from_secs(60);

#[test]
fn a_keeper_that_is_there_signs() {
    let (desk, _) = desk(LONG);
    desk.create("a", KeyKind::P256).unwrap().sign(b"message").unwrap();
    assert_eq!(desk.trouble(), None);
}

#[test]
fn a_keeper_that_is_away_is_left_alone_until_somebody_looks() {
    let (desk, mood) = desk(LONG);
    let key = desk.create("a", KeyKind::P256).unwrap();
    mood.away.store(1, Ordering::SeqCst);
    for _ in 0..6 {
        let _ = desk.look();
    }
    let asked = mood.asked.load(Ordering::SeqCst);
    for _ in 0..100 {
        assert!(key.sign(b"message").is_err());
    }
    let more = mood.asked.load(Ordering::SeqCst) - asked;
    assert!(more <= 3, "{more} of 100 reached it");
    assert_eq!(desk.trouble(), Some(KeeperError::Away("unplugged".into())));
    mood.away.store(0, Ordering::SeqCst);
    desk.look().unwrap();
    assert_eq!(desk.trouble(), None);
    key.sign(b"message").unwrap();
}

#[test]
fn a_refusal_is_an_answer() {
    let (desk, mood) = desk(LONG);
    let key = desk.create("a", KeyKind::P256).unwrap();
    mood.away.store(2, Ordering::SeqCst);
    assert!(key.sign(b"message").is_err());
    assert_eq!(desk.trouble(), None, "others may sign");
}

/// A token of OpenBao had ended, nothing could be signed any more, and the server said that it was ready.
#[test]
fn a_keeper_that_refuses_the_check_is_trouble_until_it_does_not() {
    let (desk, mood) = desk(LONG);
    let key = desk.create("a", KeyKind::P256).unwrap();
    mood.away.store(2, Ordering::SeqCst);
    assert!(desk.look().is_err() && key.sign(b"message").is_err());
    assert_eq!(desk.trouble(), Some(KeeperError::Refused("no such key".into())));
    mood.away.store(0, Ordering::SeqCst);
    key.sign(b"message").unwrap();
    assert_eq!(desk.trouble(), None, "whoever signs is well");
}

#[test]
fn a_keeper_that_hangs_holds_nobody_up_for_long_and_few_wait_for_it() {
    let (desk, mood) = desk(Duration::from_millis(50));
    let key = desk.create("a", KeyKind::P256).unwrap();
    let (release, hang) = channel();
    *mood.hang.lock().unwrap() = Some(hang);
    assert!(key.sign(b"message").is_err(), "given up");
    let mut refused_at_once = false;
    for _ in 0..=WAITING_MAX {
        refused_at_once |= matches!(desk.look(), Err(KeeperError::Away(why)) if why.contains("too many"));
    }
    assert!(refused_at_once, "the queue has an end");
    release.send(()).unwrap();
    while desk.look().is_err() {
        std::thread::sleep(Duration::from_millis(10));
    }
    key.sign(b"message").unwrap();
}

#[test]
fn the_wait_grows_and_has_an_end() {
    let waits: Vec<u128> = (1..9).map(|failures| wait(failures).as_millis()).collect();
    assert_eq!(waits, [100, 200, 400, 800, 1_600, 3_200, 5_000, 5_000]);
    assert_eq!(wait(u32::MAX), WAIT_MAX);
}
