//! How long the CA is left alone after a call that failed.

use tonic_types::{ErrorDetails, StatusExt};

use super::*;

fn busy(hint: Option<u64>) -> CaError {
    let details =
        hint.map_or_else(ErrorDetails::new, |secs| ErrorDetails::with_retry_info(Some(Duration::from_secs(secs))));
    Status::with_error_details(Code::ResourceExhausted, "too many", details).into()
}

fn wait(error: &CaError, failures: u32, dice: f64) -> f64 {
    error.retry_wait(failures, Duration::from_millis(500), Duration::from_secs(2), dice).as_secs_f64()
}

#[test]
fn the_ca_is_left_alone_for_as_long_as_it_asks_and_not_all_come_back_at_once() {
    let error = busy(Some(40));
    assert_eq!((error.reason(), error.is_refusal()), ("CA_BUSY", false));
    assert_eq!((wait(&error, 1, 0.0), wait(&error, 1, 0.5), wait(&error, 1, 1.0)), (40.0, 60.0, 80.0));
    assert_eq!(wait(&busy(Some(1_000_000)), 1, 0.0), 600.0, "not for as long as it likes");
}

#[test]
fn a_busy_ca_is_asked_less_and_less_often() {
    let waits: Vec<f64> = (1..=9).map(|failures| wait(&busy(Some(1)), failures, 1.0)).collect();
    assert_eq!(waits, [2.0, 2.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 30.0]);
    let away = CaError::unavailable("down");
    assert_eq!((wait(&away, 9, 1.0), wait(&busy(None), 2, 1.0)), (2.0, 1.0));
}
