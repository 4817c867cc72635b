//! Tests of `balance`.

use proptest::prelude::*;

use super::*;
use crate::endpoint::{Endpoint, Locality, samples};

const POLICIES: [LbPolicy; 5] = [
    LbPolicy::RoundRobin,
    LbPolicy::LeastRequest { choices: 2 },
    LbPolicy::Random,
    LbPolicy::RingHash { ring_min: 1024 },
    LbPolicy::Maglev { table: 1009 },
];

fn balancer(policy: LbPolicy, endpoints: Vec<Endpoint>) -> Balancer {
    Balancer::with(policy, 0.0, false, samples::set(endpoints))
}

fn pick_with(balancer: &Balancer, dice: u64, usable: impl Fn(usize) -> bool) -> Option<usize> {
    balancer.pick(&Pick { dice: mix(dice), hash: None, avoid: &[] }, |_| 0, usable)
}

fn counts(balancer: &Balancer, picks: u64, usable: impl Fn(usize) -> bool) -> Vec<u64> {
    let mut counts = vec![0; balancer.endpoints().all().len()];
    for dice in 0..picks {
        if let Some(index) = pick_with(balancer, dice, &usable) {
            counts[index] += 1;
        }
    }
    counts
}

fn is_near(actual: u64, expected: u64) -> bool {
    actual.abs_diff(expected) * 10 <= expected.max(100)
}

#[test]
fn requests_spread_by_weight() {
    for policy in [LbPolicy::RoundRobin, LbPolicy::LeastRequest { choices: 2 }, LbPolicy::Random] {
        let equal = counts(&balancer(policy, samples::weighted(&[1; 4])), 10_000, |_| true);
        assert!(equal.iter().all(|count| is_near(*count, 2500)), "{policy:?} {equal:?}");
    }
    for policy in [LbPolicy::RoundRobin, LbPolicy::Random, LbPolicy::Maglev { table: 65_537 }] {
        let weighted = counts(&balancer(policy, samples::weighted(&[1, 2, 7])), 10_000, |_| true);
        assert!(
            is_near(weighted[0], 1000) && is_near(weighted[1], 2000) && is_near(weighted[2], 7000),
            "{policy:?} {weighted:?}"
        );
    }
}

#[test]
fn round_robin_takes_strict_turns() {
    let balancer = balancer(LbPolicy::RoundRobin, samples::weighted(&[1; 3]));
    let turns: Vec<_> = (0..6).filter_map(|_| pick_with(&balancer, 0, |_| true)).collect();
    assert_eq!(turns, [0, 1, 2, 0, 1, 2]);
}

#[test]
fn the_less_busy_one_is_preferred() {
    let balancer = balancer(LbPolicy::LeastRequest { choices: 2 }, samples::weighted(&[1; 2]));
    let in_flight = |index: usize| if index == 0 { 10 } else { 1 };
    let picks = (0..1000)
        .filter_map(|dice| balancer.pick(&Pick { dice: mix(dice), hash: None, avoid: &[] }, in_flight, |_| true));
    let busy = picks.filter(|index| *index == 0).count();
    assert!(busy < 200, "{busy}");
}

#[test]
fn health_and_priority_decide_first() {
    let with = |health, priority, port| Endpoint { health, priority, ..samples::endpoint(port) };
    for policy in POLICIES {
        let set = vec![
            with(Health::Unhealthy, 0, 1),
            with(Health::Draining, 0, 2),
            with(Health::Healthy, 0, 3),
            with(Health::Degraded, 0, 4),
            with(Health::Healthy, 1, 5),
        ];
        let all = counts(&balancer(policy, set.clone()), 1000, |_| true);
        assert_eq!((all[0], all[1]), (0, 0), "{policy:?} {all:?}");
        assert!(all[2] > 0 && all[4] > 0, "{policy:?} {all:?}");
        let without_first = counts(&balancer(policy, set), 1000, |index| index != 2 && index != 3);
        assert_eq!(without_first, [0, 0, 0, 0, 1000], "{policy:?}");
    }
}

#[test]
fn a_healthy_first_priority_keeps_everything() {
    let with = |priority, port| Endpoint { priority, ..samples::endpoint(port) };
    let set = vec![with(0, 1), with(0, 2), with(0, 3), with(0, 4), with(1, 5)];
    let balancer = balancer(LbPolicy::Random, set);
    assert_eq!(counts(&balancer, 1000, |_| true)[4], 0);
    // Three of four count as more than all, two of four as 70 of a hundred.
    assert_eq!(counts(&balancer, 1000, |index| index != 0)[4], 0);
    let spilled = counts(&balancer, 10_000, |index| index > 1)[4];
    assert!(is_near(spilled, 3000), "{spilled}");
}

#[test]
fn nothing_well_means_none_or_panic() {
    let set = samples::set(samples::weighted(&[1; 3]));
    for policy in POLICIES {
        let strict = Balancer::with(policy, 0.0, false, set.clone());
        assert_eq!(pick_with(&strict, 1, |_| false), None);
        let panicking = Balancer::with(policy, 50.0, false, set.clone());
        assert!(pick_with(&panicking, 1, |_| false).is_some());
        assert_eq!(pick_with(&balancer(policy, Vec::new()), 1, |_| true), None);
    }
}

#[test]
fn hosts_that_were_tried_are_avoided_while_there_are_others() {
    for policy in POLICIES {
        let balancer = balancer(policy, samples::weighted(&[1; 3]));
        let avoiding = |avoid: &[usize], dice| balancer.pick(&Pick { dice, hash: Some(7), avoid }, |_| 0, |_| true);
        assert!((0..100).all(|dice| avoiding(&[0, 2], mix(dice)) == Some(1)), "{policy:?}");
        assert!(avoiding(&[0, 1, 2], 1).is_some(), "{policy:?}");
    }
}

#[test]
fn equal_hashes_meet_again_and_few_move() {
    for policy in [LbPolicy::RingHash { ring_min: 1024 }, LbPolicy::Maglev { table: 65_537 }] {
        let before = balancer(policy, samples::weighted(&[1; 10]));
        let after = balancer(policy, samples::weighted(&[1; 9]));
        let at = |balancer: &Balancer, hash, dice| {
            balancer.pick(&Pick { dice, hash: Some(mix(hash)), avoid: &[] }, |_| 0, |_| true)
        };
        let moved = (0..1000).filter(|hash| {
            assert_eq!(at(&before, *hash, 1), at(&before, *hash, 2));
            at(&before, *hash, 1) != at(&after, *hash, 1)
        });
        let moved = moved.count();
        assert!(moved < 250, "{policy:?} {moved}");
    }
}

#[test]
fn localities_share_by_their_own_weights() {
    let place = |region: &str, weight, port| {
        let locality = Locality { region: region.into(), weight: Some(weight), ..Locality::default() };
        Endpoint { locality: Arc::new(locality), ..samples::endpoint(port) }
    };
    let set = samples::set(vec![place("a", 9, 1), place("a", 9, 2), place("b", 1, 3)]);
    let balancer = Balancer::with(LbPolicy::RoundRobin, 0.0, true, set);
    let shares = counts(&balancer, 10_000, |_| true);
    assert!(is_near(shares[2], 1000) && is_near(shares[0], 4500), "{shares:?}");
    assert_eq!(counts(&balancer, 100, |index| index > 1)[2], 100);
}

proptest! {
    #[test]
    fn one_that_is_left_out_is_never_picked_while_another_is_well(
        weights in prop::collection::vec(1u32..20, 1..12),
        out in any::<u16>(),
        policy in prop::sample::select(POLICIES.to_vec()),
        panic in prop::sample::select(vec![0.0, 50.0]),
        dice in any::<u64>(),
    ) {
        let count = weights.len();
        let balancer = Balancer::with(policy, panic, false, samples::set(samples::weighted(&weights)));
        let usable = |index: usize| out & (1 << index) == 0;
        let picked = balancer.pick(&Pick { dice, hash: Some(dice), avoid: &[] }, |_| 0, usable);
        if (0..count).any(usable) {
            prop_assert!(picked.is_some_and(usable));
        }
    }
}
