//! Lines answered on every core, in the order in which they came.

use std::io::{BufRead, BufWriter, Write};
use std::thread;

use crate::exit::Failure;

/// Answers one line after the other and may keep what it learned for the next.
pub(super) trait Answerer: Default + Send {
    /// The answer, without a line's end.
    fn answer(&mut self, line: &[u8]) -> String;
}

/// Answers each line of stdin; all is out at the end of input. A closed stdout ends the run quietly.
pub(super) fn run<A: Answerer>() -> Result<(), Failure> {
    let threads = thread::available_parallelism().map_or(1, usize::from).min(THREADS_MAX);
    let mut answerers: Vec<A> = std::iter::repeat_with(A::default).take(threads).collect();
    let mut input = std::io::stdin().lock();
    let mut out = BufWriter::new(std::io::stdout().lock());
    loop {
        let lines = read_batch(&mut input)?;
        if lines.is_empty() {
            let _ = out.flush();
            return Ok(());
        }
        for answer in answer_batch(&mut answerers, &lines) {
            if writeln!(out, "{answer}").is_err() {
                return Ok(());
            }
        }
    }
}

/// The next lines, a bounded number of them and of bytes; empty at the end of input.
fn read_batch(input: &mut impl BufRead) -> Result<Vec<Vec<u8>>, Failure> {
    let mut lines = Vec::new();
    let mut bytes = 0;
    while lines.len() < BATCH_LINES_MAX && bytes < BATCH_BYTES_MAX {
        let mut line = Vec::new();
        if input.read_until(b'\n', &mut line)? == 0 {
            break;
        }
        if line.last() == Some(&b'\n') {
            line.pop();
        }
        bytes += line.len();
        lines.push(line);
    }
    Ok(lines)
}

/// Each answerer takes its share of the lines.
fn answer_batch<A: Answerer>(answerers: &mut [A], lines: &[Vec<u8>]) -> Vec<String> {
    let share = lines.len().div_ceil(answerers.len()).max(1);
    thread::scope(|scope| {
        let workers: Vec<_> = answerers
            .iter_mut()
            .zip(lines.chunks(share))
            .map(|(answerer, lines)| {
                scope.spawn(move || lines.iter().map(|line| answerer.answer(line)).collect::<Vec<_>>())
            })
            .collect();
        workers.into_iter().flat_map(|worker| worker.join().expect("an answerer does not panic")).collect()
    })
}

const THREADS_MAX: usize = 64;
const BATCH_LINES_MAX: usize = 4096;
const BATCH_BYTES_MAX: usize = 16 * 1024 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Echo;

    impl Answerer for Echo {
        fn answer(&mut self, line: &[u8]) -> String {
            String::from_utf8_lossy(line).into_owned()
        }
    }

    #[test]
    fn answers_come_in_the_order_of_the_lines() {
        for (threads, count) in [(1, 1), (2, 3), (4, 1000), (8, 5)] {
            let lines: Vec<Vec<u8>> = (0..count).map(|n: usize| n.to_string().into_bytes()).collect();
            let mut answerers: Vec<Echo> = (0..threads).map(|_| Echo).collect();
            let answers = answer_batch(&mut answerers, &lines);
            assert_eq!(answers, (0..count).map(|n| n.to_string()).collect::<Vec<_>>());
        }
    }

    #[test]
    fn batches_are_bounded_and_lose_no_line() {
        let text = "x\n".repeat(BATCH_LINES_MAX + 1) + "last";
        let mut input = text.as_bytes();
        assert_eq!(read_batch(&mut input).unwrap().len(), BATCH_LINES_MAX);
        assert_eq!(read_batch(&mut input).unwrap(), [b"x".to_vec(), b"last".to_vec()]);
        assert!(read_batch(&mut input).unwrap().is_empty());
        assert_eq!(read_batch(&mut &b"\n\n"[..]).unwrap(), [b"", b""]);
    }
}
