//! Copies bytes both ways between two streams until both have ended.
//!
//! One future, no split, no lock. Buffers begin at 1 KiB, grow while a direction keeps filling them and fall back
//! when it idles, so that a quiet connection costs little and a busy one moves fast. Half-close is passed on.

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, sleep_until};

use crate::worker::conns::Leaving;

/// How much went each way, readable while the relay runs.
#[derive(Debug, Default)]
pub(crate) struct Moved {
    /// From the first stream to the second.
    pub(crate) forth: Cell<u64>,
    /// From the second stream to the first.
    pub(crate) back: Cell<u64>,
    /// The last bytes went to the second stream: they may be a question.
    asked: Cell<bool>,
}

impl Moved {
    /// Returns at a pause after an answer: nothing is on its way, so the streams may end here. At first the pause must last a
    /// sixtieth of the time that there is, a second at least and ten at most; in the last quarter any will do.
    pub(crate) async fn pause(&self, leaving: Leaving) {
        let whole = leaving.end - leaving.since;
        let (near, long) = (leaving.end - whole / 4, (whole / 60).clamp(PAUSE_LONG_MIN, PAUSE_LONG_MAX));
        let (mut seen, mut quiet_since) = (self.both(), Instant::now());
        loop {
            tokio::time::sleep(PAUSE_LOOK).await;
            let now = Instant::now();
            if self.both() != seen {
                (seen, quiet_since) = (self.both(), now);
                continue;
            }
            let wanted = if now < near { long } else { Duration::ZERO };
            if !self.asked.get() && now - quiet_since >= wanted {
                return;
            }
        }
    }

    fn both(&self) -> u64 {
        self.forth.get() + self.back.get()
    }
}

/// Why a relay ended.
#[derive(Debug)]
pub(crate) enum RelayEnd {
    /// Both ends closed in order.
    Closed,
    /// Nothing moved for the idle time.
    Idle,
    /// The first stream failed.
    First(io::Error),
    /// The second stream failed.
    Second(io::Error),
}

/// Copies both ways. `idle` counts from the last byte in either direction; after one side has closed, the
/// other one is given `half_closed` without a byte.
pub(crate) async fn relay<A, B>(a: &mut A, b: &mut B, idle: Duration, half_closed: Duration, moved: &Moved) -> RelayEnd
where
    A: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    let (mut forth, mut back) = (Direction::new(), Direction::new());
    let mut last = Instant::now();
    let mut quiet = true;
    let mut tick = pin!(sleep_until(last + TICK.min(idle)));
    poll_fn(|cx| {
        let (forth_before, back_before) = (forth.total, back.total);
        let one = forth.poll_copy(cx, a, b, &moved.forth).map(|end| end.map_err(side(false)));
        let two = back.poll_copy(cx, b, a, &moved.back).map(|end| end.map_err(side(true)));
        let asked = forth.total != forth_before;
        let busy = asked || back.total != back_before;
        if busy {
            moved.asked.set(asked);
        }
        match (one, two) {
            (Poll::Ready(Err(end)), _) | (_, Poll::Ready(Err(end))) => return Poll::Ready(end),
            (Poll::Ready(Ok(())), Poll::Ready(Ok(()))) => return Poll::Ready(RelayEnd::Closed),
            _ => {}
        }
        // The clock is read once per tick, not once per byte moved.
        quiet &= !busy;
        while tick.as_mut().poll(cx).is_ready() {
            let now = Instant::now();
            if !std::mem::replace(&mut quiet, true) {
                last = now;
            }
            let limit = if forth.ended || back.ended { half_closed.min(idle) } else { idle };
            if now.duration_since(last) >= limit {
                return Poll::Ready(RelayEnd::Idle);
            }
            forth.settle();
            back.settle();
            tick.as_mut().reset((last + limit).min(now + TICK));
        }
        Poll::Pending
    })
    .await
}

/// Which stream an error of a direction belongs to.
fn side(swapped: bool) -> impl Fn((bool, io::Error)) -> RelayEnd {
    move |(reading, error)| if reading == swapped { RelayEnd::Second(error) } else { RelayEnd::First(error) }
}

struct Direction {
    buf: Box<[u8]>,
    from: usize,
    to: usize,
    total: u64,
    /// Fills of the whole buffer in a row.
    full: u32,
    eof: bool,
    ended: bool,
    unflushed: bool,
    moved_in_tick: u64,
}

impl Direction {
    fn new() -> Self {
        Self {
            buf: zeroed(SMALL_BYTES),
            from: 0,
            to: 0,
            total: 0,
            full: 0,
            eof: false,
            ended: false,
            unflushed: false,
            moved_in_tick: 0,
        }
    }

    /// Moves what can be moved. The flag of an error says whether reading failed.
    fn poll_copy<R, W>(
        &mut self,
        cx: &mut Context<'_>,
        r: &mut R,
        w: &mut W,
        moved: &Cell<u64>,
    ) -> Poll<Result<(), (bool, io::Error)>>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        if self.ended {
            return Poll::Ready(Ok(()));
        }
        for _ in 0..ROUNDS_MAX {
            while self.from < self.to {
                let wrote = ready!(Pin::new(&mut *w).poll_write(cx, &self.buf[self.from..self.to])).map_err(no)?;
                if wrote == 0 {
                    return Poll::Ready(Err(no(io::ErrorKind::WriteZero.into())));
                }
                self.from += wrote;
                self.total += wrote as u64;
                self.unflushed = true;
                moved.set(self.total);
            }
            if self.eof {
                ready!(Pin::new(&mut *w).poll_shutdown(cx)).map_err(no)?;
                self.ended = true;
                self.buf = Box::default();
                return Poll::Ready(Ok(()));
            }
            match self.poll_fill(cx, r) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(error)) => return Poll::Ready(Err((true, error))),
                Poll::Pending => {
                    if self.unflushed {
                        ready!(Pin::new(&mut *w).poll_flush(cx)).map_err(no)?;
                        self.unflushed = false;
                    }
                    return Poll::Pending;
                }
            }
        }
        // Let the other connections of this worker have their turn.
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn poll_fill<R: AsyncRead + Unpin>(&mut self, cx: &mut Context<'_>, r: &mut R) -> Poll<io::Result<()>> {
        let mut buf = ReadBuf::new(&mut self.buf);
        ready!(Pin::new(r).poll_read(cx, &mut buf))?;
        let filled = buf.filled().len();
        (self.from, self.to) = (0, filled);
        self.eof = filled == 0;
        self.moved_in_tick += filled as u64;
        self.grow(filled);
        Poll::Ready(Ok(()))
    }

    /// The next size after two full buffers in a row; the bytes just read are kept.
    fn grow(&mut self, filled: usize) {
        self.full = if filled == self.buf.len() { self.full + 1 } else { 0 };
        let next = match self.buf.len() {
            SMALL_BYTES => MEDIUM_BYTES,
            MEDIUM_BYTES => LARGE_BYTES,
            _ => return,
        };
        if self.full >= 2 {
            let mut grown = zeroed(next);
            grown[..filled].copy_from_slice(&self.buf[..filled]);
            (self.buf, self.full) = (grown, 0);
        }
    }

    /// Back to the small buffer when a tick moved little.
    fn settle(&mut self) {
        let moved = std::mem::take(&mut self.moved_in_tick);
        if moved < MEDIUM_BYTES as u64 && self.from == self.to && self.buf.len() > SMALL_BYTES {
            (self.buf, self.from, self.to, self.full) = (zeroed(SMALL_BYTES), 0, 0, 0);
        }
    }
}

fn no(error: io::Error) -> (bool, io::Error) {
    (false, error)
}

fn zeroed(len: usize) -> Box<[u8]> {
    vec![0; len].into_boxed_slice()
}

/// A pause that says that a conversation rests.
const PAUSE_LONG_MIN: Duration = Duration::from_secs(1);
const PAUSE_LONG_MAX: Duration = Duration::from_secs(10);
/// How often a pause is looked for; the shortest that is seen.
const PAUSE_LOOK: Duration = Duration::from_millis(5);
const SMALL_BYTES: usize = 1024;
const MEDIUM_BYTES: usize = 16 * 1024;
const LARGE_BYTES: usize = 128 * 1024;
/// Buffers moved in one go before other connections get their turn.
const ROUNDS_MAX: usize = 32;
/// How often buffers are looked after and idleness is checked.
const TICK: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    const LONG: Duration = Duration::from_secs(3600);

    #[tokio::test]
    async fn megabytes_go_both_ways_unharmed_and_are_counted() {
        let ((mut left, mut a), (mut b, mut right)) = (duplex(64 * 1024), duplex(64 * 1024));
        let sent: Vec<u8> = (0..3_000_000_u32).map(|n| n as u8).collect();
        let moved = Moved::default();
        let talk = async {
            let (mut left_r, mut left_w) = tokio::io::split(&mut left);
            let (mut right_r, mut right_w) = tokio::io::split(&mut right);
            let (mut there, mut home) = (Vec::new(), Vec::new());
            let (x, y, z, v) = tokio::join!(
                async {
                    left_w.write_all(&sent).await?;
                    left_w.shutdown().await
                },
                async {
                    right_w.write_all(&sent[..1000]).await?;
                    right_w.shutdown().await
                },
                right_r.read_to_end(&mut there),
                left_r.read_to_end(&mut home),
            );
            x.and(y).unwrap();
            z.and(v).unwrap();
            (there, home)
        };
        let (end, (there, home)) = tokio::join!(relay(&mut a, &mut b, LONG, LONG, &moved), talk);
        assert!(matches!(end, RelayEnd::Closed));
        assert!(there == sent && home == sent[..1000]);
        assert_eq!((moved.forth.get(), moved.back.get()), (3_000_000, 1000));
    }

    #[tokio::test]
    async fn a_closed_side_does_not_silence_the_other() {
        let ((mut left, mut a), (mut b, mut right)) = (duplex(64), duplex(64));
        let moved = Moved::default();
        let talk = async {
            left.write_all(b"question").await.unwrap();
            left.shutdown().await.unwrap();
            let mut got = Vec::new();
            right.read_to_end(&mut got).await.unwrap();
            right.write_all(b"answer").await.unwrap();
            right.shutdown().await.unwrap();
            left.read_to_end(&mut got).await.unwrap();
            got
        };
        let (end, got) = tokio::join!(relay(&mut a, &mut b, LONG, LONG, &moved), talk);
        assert!(matches!(end, RelayEnd::Closed));
        assert_eq!(got, b"questionanswer");
    }

    #[tokio::test(start_paused = true)]
    async fn silence_ends_after_the_idle_time_and_bytes_put_it_off() {
        let ((mut left, mut a), (mut b, _right)) = (duplex(64), duplex(64));
        let begun = Instant::now();
        let moved = Moved::default();
        let talk = async {
            tokio::time::sleep(Duration::from_secs(20)).await;
            left.write_all(b"x").await.unwrap();
        };
        let (end, ()) = tokio::join!(relay(&mut a, &mut b, Duration::from_secs(30), LONG, &moved), talk);
        assert!(matches!(end, RelayEnd::Idle));
        let took = begun.elapsed().as_secs();
        assert!((50..=52).contains(&took), "{took}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_half_closed_pair_waits_less() {
        let ((mut left, mut a), (mut b, _right)) = (duplex(64), duplex(64));
        let begun = Instant::now();
        left.shutdown().await.unwrap();
        let end = relay(&mut a, &mut b, LONG, Duration::from_secs(10), &Moved::default()).await;
        assert!(matches!(end, RelayEnd::Idle));
        assert!((10..=12).contains(&begun.elapsed().as_secs()));
    }

    fn leaving(secs: u64) -> Leaving {
        Leaving::within(Duration::from_secs(secs))
    }

    #[tokio::test(start_paused = true)]
    async fn a_conversation_that_rests_ends_soon() {
        for (window, pause) in [(4, 1), (300, 5), (600, 10), (6000, 10)] {
            let begun = Instant::now();
            Moved::default().pause(leaving(window)).await;
            let took = begun.elapsed().as_millis();
            assert!((pause * 1000..pause * 1000 + 100).contains(&took), "{window}: {took}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_waits_for_an_answer_is_not_interrupted() {
        let moved = Moved::default();
        moved.forth.set(10);
        moved.asked.set(true);
        let waited = tokio::time::timeout(Duration::from_secs(599), moved.pause(leaving(600))).await;
        assert!(waited.is_err(), "the end comes from elsewhere");
    }

    #[tokio::test(start_paused = true)]
    async fn a_busy_conversation_ends_between_two_messages_when_the_end_is_near() {
        let (moved, begun) = (Moved::default(), Instant::now());
        let chat = async {
            loop {
                moved.asked.set(true);
                moved.forth.set(moved.forth.get() + 1);
                tokio::time::sleep(Duration::from_millis(3)).await;
                moved.asked.set(false);
                moved.back.set(moved.back.get() + 1);
                tokio::time::sleep(Duration::from_millis(40)).await;
            }
        };
        tokio::select! {
            () = moved.pause(leaving(40)) => (),
            () = chat => (),
        }
        let took = begun.elapsed().as_millis();
        assert!((30_000..30_100).contains(&took) && !moved.asked.get(), "{took}");
    }

    #[tokio::test]
    async fn a_question_is_told_from_an_answer() {
        let ((mut left, mut a), (mut b, mut right)) = (duplex(64), duplex(64));
        let moved = Moved::default();
        let talk = async {
            left.write_all(b"question").await.unwrap();
            right.read_exact(&mut [0; 8]).await.unwrap();
            assert!(moved.asked.get());
            right.write_all(b"answer").await.unwrap();
            left.read_exact(&mut [0; 6]).await.unwrap();
            assert!(!moved.asked.get());
        };
        tokio::select! {
            _ = relay(&mut a, &mut b, LONG, LONG, &moved) => panic!("it ended"),
            () = talk => (),
        }
    }
}
