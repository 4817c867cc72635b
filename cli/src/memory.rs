//! Memory of a role that runs for months: what only its start needed is given back, and so is what becomes free.
//!
//! The only module of this crate with `unsafe`: one call into the allocator, one into the kernel.

#![allow(unsafe_code, reason = "the allocator's options and madvise have no safe wrapper")]

use std::ops::Range;
use std::time::Duration;

/// Has the allocator give pages back to the system when they become free. By itself it waits for a second and then for the next
/// allocation, which an agent whose workloads have left may not make for a long time.
pub(crate) fn give_back_at_once() {
    unsafe extern "C" {
        fn mi_option_set(option: std::ffi::c_int, value: std::ffi::c_long);
    }
    /// `mi_option_purge_delay` of `mimalloc.h`, in milliseconds.
    const PURGE_DELAY: std::ffi::c_int = 15;
    // SAFETY: a store into the options of the allocator that this program is linked with, while there is only one thread.
    unsafe { mi_option_set(PURGE_DELAY, 0) };
}

/// Lets go of the pages of the program that the start has read and that are all but never needed again: code of other roles, of
/// reading settings and of creating keys. Those that are needed come back from the system's page cache, without the disk.
pub(crate) async fn forget_the_start() {
    tokio::time::sleep(START).await;
    forget();
}

/// The same for a role that is at rest on thousands of machines, and again whenever it has rested for a while: the few
/// milliseconds in which it asks its authority leave as much behind as its start did.
pub(crate) async fn forget_what_rests() {
    forget_the_start().await;
    loop {
        tokio::time::sleep(REST).await;
        forget();
    }
}

fn forget() {
    let Ok(map) = std::fs::read_to_string("/proc/self/smaps") else { return };
    for range in unwritten(&map) {
        let start = std::ptr::with_exposed_provenance_mut(range.start);
        // SAFETY: a mapping of this process onto a file, not writable and never written to: each page that goes is read from the
        // file again, with the same content.
        unsafe { libc::madvise(start, range.len(), libc::MADV_DONTNEED) };
    }
}

/// The mappings of files in an `smaps` (proc_pid_smaps(5)) that nobody can write and in which no page is a private copy, as those
/// are that the loader has relocated.
fn unwritten(map: &str) -> Vec<Range<usize>> {
    let (mut found, mut last) = (Vec::new(), None);
    for line in map.lines() {
        if let Some(range) = file_range(line) {
            last = range;
        } else if line.strip_prefix("Anonymous:").is_some_and(|size| size.trim() == "0 kB") {
            found.extend(last.take());
        }
    }
    found
}

/// What the first line of a mapping says: none when it is another line, and inside it none when it is not an unwritable file.
fn file_range(line: &str) -> Option<Option<Range<usize>>> {
    let mut words = line.split_ascii_whitespace();
    let (start, end) = words.next()?.split_once('-')?;
    let hex = |text| usize::from_str_radix(text, 16).ok();
    let range = hex(start)?..hex(end)?;
    let (rights, inode) = (words.next()?, words.nth(2)?);
    Some((!rights.contains('w') && inode != "0").then_some(range))
}

/// By then a role has started, or waits for another.
const START: Duration = Duration::from_secs(5);
const REST: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;

    const MAP: &str = "\
555500000000-555500001000 r--p 00000000 fe:00 5308418                    /usr/bin/kasbah
Size:                  4 kB
Anonymous:             0 kB
VmFlags: rd mr mw me sd
555500001000-555500003000 r-xp 00001000 fe:00 5308418                    /usr/bin/kasbah (deleted)
Anonymous:             0 kB
555500003000-555500004000 r--p 00003000 fe:00 5308418                    /usr/bin/kasbah
Anonymous:             4 kB
555500004000-555500005000 rw-p 00004000 fe:00 5308418                    /usr/bin/kasbah
Anonymous:             0 kB
555500005000-555500006000 r--p 00000000 00:00 0
Anonymous:             0 kB
7fff00000000-7fff00002000 r-xp 00000000 00:00 0                          [vdso]
Anonymous:             0 kB
";

    #[test]
    fn only_pages_that_a_file_has_too_are_let_go() {
        assert_eq!(unwritten(MAP), [0x5555_0000_0000..0x5555_0000_1000, 0x5555_0000_1000..0x5555_0000_3000]);
        assert!(unwritten("").is_empty());
        assert!(unwritten("Anonymous: 0 kB\nzz-11 r--p 0 0 7\nAnonymous: 0 kB\n").is_empty());
    }

    #[test]
    fn the_program_goes_on_after_it() {
        let own = std::fs::read_to_string("/proc/self/smaps").unwrap();
        assert!(!unwritten(&own).is_empty());
        forget();
        assert_eq!(unwritten(MAP).len(), 2);
    }
}
