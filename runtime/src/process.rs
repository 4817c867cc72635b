//! What this process costs, read from `/proc/self`.

use std::fmt::Write as _;
use std::fs;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Resident memory in bytes; 0 where `/proc` does not say.
pub fn resident_bytes() -> u64 {
    let Ok(statm) = fs::read_to_string("/proc/self/statm") else { return 0 };
    let pages: u64 = statm.split(' ').nth(1).and_then(|field| field.parse().ok()).unwrap_or(0);
    pages * rustix::param::page_size() as u64
}

/// CPU time used so far, in seconds.
pub fn cpu_secs() -> f64 {
    let Ok(stat) = fs::read_to_string("/proc/self/stat") else { return 0.0 };
    let mut fields = after_name(&stat).split(' ');
    // Counted from the state, which is field 3 of proc(5): utime is field 14, stime field 15.
    let mut next = |skip| fields.nth(skip).and_then(|field| field.parse::<u64>().ok()).unwrap_or(0);
    let ticks = next(11) + next(0);
    ticks as f64 / rustix::param::clock_ticks_per_second() as f64
}

/// Raises the limit of open files to what the system permits this process; answers the limit now in force.
pub fn raise_open_files() -> u64 {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    let now = if setrlimit(Resource::Nofile, raised).is_ok() { limit.maximum } else { limit.current };
    now.unwrap_or(u64::MAX)
}

pub(crate) fn write_metrics(out: &mut String) {
    let open = fs::read_dir("/proc/self/fd").map_or(0, Iterator::count);
    let rows: [(&str, &str, &str, f64); 3] = [
        ("process_cpu_seconds", "counter", "_total", cpu_secs()),
        ("process_resident_memory_bytes", "gauge", "", resident_bytes() as f64),
        ("process_open_fds", "gauge", "", open as f64),
    ];
    for (family, kind, suffix, value) in rows {
        let _ = writeln!(out, "# TYPE {family} {kind}\n{family}{suffix} {value}");
    }
}

/// `/proc/PID/stat` from the state on; the name before it may hold spaces and parentheses.
fn after_name(stat: &str) -> &str {
    stat.rfind(") ").map_or("", |at| &stat[at + 2..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_running_process_uses_memory() {
        assert!(resident_bytes() > 100_000);
        assert!(cpu_secs() >= 0.0);
    }

    #[test]
    fn the_limit_of_open_files_is_raised() {
        let raised = raise_open_files();
        assert!(raised >= 256 && raise_open_files() == raised);
    }

    #[test]
    fn a_name_with_parentheses_does_not_shift_the_fields() {
        assert_eq!(after_name("42 (a) (b c) S 1 2"), "S 1 2");
    }
}
