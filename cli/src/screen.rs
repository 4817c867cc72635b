//! A terminal for a live view: a screen of its own, keys as they are typed. However the view ends, by a key, a signal or a
//! failure, the terminal is given back as it was.

use std::io::{IsTerminal, Read};

use rustix::termios::{self, LocalModes, OptionalActions, Termios};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc::{self, Receiver};

use crate::output;

/// The screen; what was on the terminal comes back when it is dropped.
pub(crate) struct Screen {
    before: Termios,
    keys: Receiver<u8>,
    resized: Signal,
    ends: [Signal; 3],
}

/// What happens while a page is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// A key or a signal ends the view.
    Quit,
    /// The page must be drawn again.
    Redraw,
}

impl Screen {
    /// Takes the terminal; `None` where there is none, or one that cannot draw. Within a runtime.
    pub(crate) fn open() -> std::io::Result<Option<Self>> {
        let dumb = std::env::var_os("TERM").is_none_or(|kind| kind == "dumb");
        if dumb || !std::io::stdout().is_terminal() || !std::io::stdin().is_terminal() {
            return Ok(None);
        }
        let resized = signal(SignalKind::window_change())?;
        let ends = [signal(SignalKind::terminate())?, signal(SignalKind::hangup())?, signal(SignalKind::interrupt())?];
        let before = termios::tcgetattr(std::io::stdin())?;
        let mut while_open = before.clone();
        // Ctrl-C comes as a key: a signal would leave no time to give the terminal back.
        while_open.local_modes.remove(LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG);
        termios::tcsetattr(std::io::stdin(), OptionalActions::Now, &while_open)?;
        output::raw(OPEN);
        Ok(Some(Self { before, keys: keys(), resized, ends }))
    }

    /// Shows as much of a page as there is room for.
    pub(crate) fn draw(&self, page: &str, is_bad: impl Fn(&str) -> bool) {
        let size = termios::tcgetwinsize(std::io::stdout()).map_or(DEFAULT_SIZE, |size| (size.ws_row, size.ws_col));
        let page = output::marked(&fit(page, size.0.into(), size.1.into()), is_bad);
        output::raw(&format!("\u{1b}[H{}\u{1b}[J", page.lines().collect::<Vec<_>>().join("\u{1b}[K\n") + "\u{1b}[K"));
    }

    /// The next event.
    pub(crate) async fn event(&mut self) -> Event {
        let [terminate, hangup, interrupt] = &mut self.ends;
        loop {
            tokio::select! {
                key = self.keys.recv() => match key {
                    None | Some(b'q' | b'Q' | CTRL_C | CTRL_D) => return Event::Quit,
                    Some(CTRL_L) => return Event::Redraw,
                    Some(_) => (),
                },
                _ = self.resized.recv() => return Event::Redraw,
                _ = terminate.recv() => return Event::Quit,
                _ = hangup.recv() => return Event::Quit,
                _ = interrupt.recv() => return Event::Quit,
            }
        }
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        output::raw(CLOSE);
        let _ = termios::tcsetattr(std::io::stdin(), OptionalActions::Now, &self.before);
    }
}

/// The bytes that are typed; the channel ends with the terminal.
fn keys() -> Receiver<u8> {
    let (typed, keys) = mpsc::channel(KEYS_MAX);
    std::thread::spawn(move || {
        let mut stdin = std::io::stdin().lock();
        let mut byte = [0];
        while stdin.read(&mut byte).is_ok_and(|read| read == 1) && typed.blocking_send(byte[0]).is_ok() {}
    });
    keys
}

/// The part of a page that fits; a line that is cut ends with `…`, and the last line says how to leave.
fn fit(page: &str, rows: usize, columns: usize) -> String {
    let (rows, columns) = if rows == 0 || columns == 0 { (24, 80) } else { (rows, columns) };
    let cut = |line: &str| {
        if line.chars().count() <= columns {
            return line.to_owned();
        }
        line.chars().take(columns - 1).chain(['…']).collect()
    };
    let mut lines: Vec<String> = page.lines().map(cut).collect();
    let room = rows.saturating_sub(1);
    if lines.len() > room {
        lines.truncate(room.saturating_sub(1));
        lines.extend((room > 0).then(|| "…".to_owned()));
    }
    lines.push(cut(HOW_TO_LEAVE));
    lines.join("\n")
}

const HOW_TO_LEAVE: &str = "q leaves";
/// The other screen, without a cursor.
const OPEN: &str = "\u{1b}[?1049h\u{1b}[?25l\u{1b}[2J";
const CLOSE: &str = "\u{1b}[?25h\u{1b}[?1049l";
const CTRL_C: u8 = 3;
const CTRL_D: u8 = 4;
const CTRL_L: u8 = 12;
/// Keys that wait while a page is drawn.
const KEYS_MAX: usize = 16;
/// Rows and columns of a terminal that does not say.
const DEFAULT_SIZE: (u16, u16) = (24, 80);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_cut_to_the_screen() {
        let page = "one\ntwo is longer\nthree\nfour\nfive";
        assert_eq!(fit(page, 24, 80), format!("{page}\nq leaves"));
        assert_eq!(fit(page, 4, 6), "one\ntwo i…\n…\nq lea…");
        assert_eq!(fit(page, 6, 80), format!("{page}\nq leaves"));
    }

    #[test]
    fn no_screen_is_too_small() {
        for rows in 0..5 {
            for columns in 0..5 {
                let shown = fit("one\ntwo\nthree\näöü", rows, columns);
                assert!(rows == 0 || columns == 0 || shown.lines().count() <= rows, "{rows} {columns} {shown}");
                assert!(columns == 0 || rows == 0 || shown.lines().all(|line| line.chars().count() <= columns));
            }
        }
    }
}
