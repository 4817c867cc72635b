//! Due steps on virtual days.

use super::*;
use crate::rotation::machine::{Member, Node, Running};

const DAY: i64 = 86_400;

/// An authority of `life` days, and perhaps one prepared on day `prepared`.
fn line(life: i64, prepared: Option<(i64, Mode)>) -> Line {
    let member = |id: &str, stage, from: i64| Member {
        id: id.into(),
        stage,
        not_before: from * DAY,
        not_after: (from + life) * DAY,
        published: 2,
        tainted: 0,
    };
    let mut members = vec![Member { published: 1, ..member("old", Stage::Active, 0) }];
    members.extend(prepared.map(|(day, _)| member("new", Stage::Prepared, day)));
    let running = prepared.map(|(day, mode)| Running { mode, old: "old".into(), started_at: day * DAY });
    Line { members, running, ..Line::default() }
}

fn due_on(day: i64, signs_days: i64, line: &Line, nodes: &[Node]) -> Option<Due> {
    Ages { signs: signs_days * DAY }.due(line, World { nodes, next_sequence: 3, now: day * DAY, in_use_until: 0 })
}

fn first_day(line: &Line, signs_days: i64, nodes: &[Node], wanted: impl Fn(&Due) -> bool) -> Option<i64> {
    (0..4_000).find(|day| due_on(*day, signs_days, line, nodes).is_some_and(|due| wanted(&due)))
}

#[test]
fn the_next_one_is_prepared_at_half_life_but_not_months_early() {
    let prepares = |life, signs| first_day(&line(life, None), signs, &[], |due| *due == Due::Prepare);
    assert_eq!(prepares(30, 1), Some(15), "half");
    assert_eq!(prepares(3_650, 30), Some(3_590), "30 days and the life of an intermediate");
    assert_eq!(prepares(60, 30), Some(30));
}

#[test]
fn it_signs_after_a_rest_when_all_have_acknowledged() {
    let activate = Due::Step(Step::Activate("new".into()));
    let aging = line(30, Some((15, Mode::Age)));
    let node = |enforced| [Node { id: "a".into(), enforced }];
    assert_eq!(first_day(&aging, 1, &node(2), |due| *due == activate), Some(20));
    assert_eq!(first_day(&aging, 1, &node(1), |due| *due == Due::Overdue(vec!["a".into()])), Some(29), "at the end");
    let by_hand = line(30, Some((15, Mode::Steps)));
    assert_eq!(first_day(&by_hand, 1, &node(2), |due| *due == activate), Some(29), "forgotten by the operator");
}

#[test]
fn a_rotation_that_the_server_was_told_to_finish_goes_on_as_soon_as_it_is_safe() {
    let auto = line(30, Some((1, Mode::Auto)));
    let node = |enforced| [Node { id: "a".into(), enforced }];
    assert_eq!(due_on(1, 1, &auto, &node(1)), None);
    assert_eq!(due_on(1, 1, &auto, &node(2)), Some(Due::Step(Step::Activate("new".into()))));
    let steps = line(30, Some((1, Mode::Steps)));
    assert_eq!(due_on(1, 1, &steps, &node(2)), None, "the operator's to take");
}

#[test]
fn what_is_in_use_is_waited_for() {
    let mut tainted = line(30, Some((1, Mode::Auto)));
    tainted.members[0].stage = Stage::Tainted;
    tainted.members[1].stage = Stage::Active;
    let due = |in_use_until| {
        let world = World { nodes: &[], next_sequence: 3, now: 2 * DAY, in_use_until };
        Ages { signs: DAY }.due(&tainted, world)
    };
    assert_eq!(due(3 * DAY), None);
    assert_eq!(due(2 * DAY), Some(Due::Step(Step::Revoke("old".into()))));
}

#[test]
fn what_has_ended_is_forgotten_but_for_what_signs() {
    let mut ended = line(30, Some((1, Mode::Age)));
    ended.members[0].stage = Stage::Old;
    ended.members[1].stage = Stage::Active;
    assert_eq!(due_on(30, 1, &ended, &[]), Some(Due::Step(Step::Forget(vec!["old".into()]))));
    assert_eq!(due_on(40, 1, &line(30, None), &[]), Some(Due::Prepare), "the last one is replaced, not dropped");
}
