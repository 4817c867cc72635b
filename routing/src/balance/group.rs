//! The endpoints of one priority and health, arranged for one policy.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use smallvec::SmallVec;

use super::Pick;
use super::ring::Ring;
use crate::cluster::LbPolicy;
use crate::endpoint::{Endpoints, Locality};
use crate::route::mix;

/// Endpoints that are equals but for their weights.
#[derive(Debug)]
pub(super) struct Group {
    /// One if localities do not matter.
    localities: Vec<Members>,
    total_weight: u64,
}

#[derive(Debug)]
struct Members {
    weight: u64,
    policy: LbPolicy,
    indices: Vec<usize>,
    weights: Vec<u64>,
    /// Running sums of the weights, unless all are equal.
    sums: Option<Vec<u64>>,
    ring: Option<Ring>,
    place: AtomicU64,
}

impl Group {
    pub(super) fn new(policy: LbPolicy, by_locality: bool, endpoints: &Endpoints, indices: Vec<usize>) -> Self {
        let mut localities: Vec<(Option<&Arc<Locality>>, Vec<usize>)> = Vec::new();
        for index in indices {
            let locality = by_locality.then(|| &endpoints.all()[index].locality);
            match localities.iter_mut().find(|(known, _)| *known == locality) {
                Some((_, members)) => members.push(index),
                None => localities.push((locality, vec![index])),
            }
        }
        let members = localities.into_iter().map(|(locality, indices)| {
            let weight = locality.map_or(1, |locality| locality.weight.unwrap_or(0));
            Members::new(policy, weight.into(), endpoints, indices)
        });
        let localities: Vec<Members> = members.collect();
        let total_weight = localities.iter().map(|members| members.weight).sum();
        Self { localities, total_weight }
    }

    pub(super) fn len(&self) -> usize {
        self.localities.iter().map(|members| members.indices.len()).sum()
    }

    pub(super) fn count(&self, may: &impl Fn(usize) -> bool) -> usize {
        self.localities.iter().flat_map(|members| &members.indices).filter(|index| may(**index)).count()
    }

    /// An endpoint that may be picked, if there is one.
    pub(super) fn pick(
        &self,
        pick: &Pick<'_>,
        in_flight: &dyn Fn(usize) -> u32,
        may: &dyn Fn(usize) -> bool,
    ) -> Option<usize> {
        let first = self.locality(pick.dice)?;
        let found = self.localities[first].pick(pick, in_flight, may);
        let others = || self.localities.iter().enumerate().filter(|(place, _)| *place != first);
        found.or_else(|| others().find_map(|(_, members)| members.pick(pick, in_flight, may)))
    }

    fn locality(&self, dice: u64) -> Option<usize> {
        if self.localities.len() < 2 || self.total_weight == 0 {
            return (!self.localities.is_empty()).then_some(0);
        }
        let mut at = mix(dice ^ LOCALITY_SALT) % self.total_weight;
        self.localities.iter().position(|members| match at.checked_sub(members.weight) {
            None => true,
            Some(rest) => {
                at = rest;
                false
            }
        })
    }
}

impl Members {
    fn new(policy: LbPolicy, weight: u64, endpoints: &Endpoints, indices: Vec<usize>) -> Self {
        let weights: Vec<u64> = indices.iter().map(|index| endpoints.all()[*index].weight.into()).collect();
        let equal = weights.windows(2).all(|pair| pair[0] == pair[1]);
        let mut sum = 0;
        let sums = weights.iter().map(|weight| {
            sum += weight;
            sum
        });
        Self {
            weight,
            policy,
            sums: if equal { None } else { Some(sums.collect()) },
            ring: Ring::new(policy, endpoints, &indices),
            indices,
            weights,
            place: AtomicU64::new(0),
        }
    }

    fn pick(&self, pick: &Pick<'_>, in_flight: &dyn Fn(usize) -> u32, may: &dyn Fn(usize) -> bool) -> Option<usize> {
        if let Some(ring) = &self.ring {
            return ring.pick(pick.hash.unwrap_or(pick.dice), self.indices.len(), may);
        }
        let drawn = match self.policy {
            LbPolicy::RoundRobin => self.next_in_turn(),
            LbPolicy::LeastRequest { choices } => return self.least_busy(pick.dice, choices, in_flight, may),
            LbPolicy::Random | LbPolicy::RingHash { .. } | LbPolicy::Maglev { .. } => self.draw(pick.dice),
        }?;
        if may(self.indices[drawn]) {
            return Some(self.indices[drawn]);
        }
        self.draw_among(pick.dice, may)
    }

    /// Walks through the endpoints so that each comes as often as its weight says, without clusters of one.
    fn next_in_turn(&self) -> Option<usize> {
        let place = self.place.fetch_add(1, Relaxed);
        match &self.sums {
            None => {
                usize::try_from(place % (self.indices.len() as u64).max(1)).ok().filter(|at| *at < self.indices.len())
            }
            // Multiples of the golden ratio spread evenly over the sums, whatever the weights are.
            Some(_) => self.draw(place.wrapping_mul(GOLDEN)),
        }
    }

    /// The member that a throw of the dice falls on.
    fn draw(&self, dice: u64) -> Option<usize> {
        let scale = |total: u64| u64::try_from((u128::from(dice) * u128::from(total)) >> 64).unwrap_or(0);
        match &self.sums {
            None if self.indices.is_empty() => None,
            None => usize::try_from(scale(self.indices.len() as u64)).ok(),
            Some(sums) => {
                let at = scale(*sums.last()?);
                Some(sums.partition_point(|sum| *sum <= at))
            }
        }
    }

    fn least_busy(
        &self,
        dice: u64,
        choices: u32,
        in_flight: &dyn Fn(usize) -> u32,
        may: &dyn Fn(usize) -> bool,
    ) -> Option<usize> {
        let mut drawn: SmallVec<[usize; 4]> = SmallVec::new();
        let mut dice = dice;
        for _ in 0..choices.saturating_mul(2) {
            dice = mix(dice);
            let member = self.draw(dice)?;
            if may(self.indices[member]) && !drawn.contains(&member) {
                drawn.push(member);
            }
            if drawn.len() == choices as usize {
                break;
            }
        }
        // One draw each is by weight; between those drawn, the load per weight decides.
        let load = |member: &usize| (u64::from(in_flight(self.indices[*member])) << 16) / self.weights[*member].max(1);
        match drawn.into_iter().min_by_key(load) {
            Some(member) => Some(self.indices[member]),
            None => self.draw_among(dice, may),
        }
    }

    /// The slow way: a draw by weight among those that may be picked.
    fn draw_among(&self, dice: u64, may: &dyn Fn(usize) -> bool) -> Option<usize> {
        let open = || self.indices.iter().zip(&self.weights).filter(|(index, _)| may(**index));
        let total: u64 = open().map(|(_, weight)| *weight).sum();
        let mut at = mix(dice).checked_rem(total)?;
        let found = open().find(|(_, weight)| match at.checked_sub(**weight) {
            None => true,
            Some(rest) => {
                at = rest;
                false
            }
        });
        found.map(|(index, _)| *index)
    }
}

const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;
const LOCALITY_SALT: u64 = 0x6c6f_6361_6c69_7479;
