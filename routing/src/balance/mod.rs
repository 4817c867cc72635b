//! Picking an endpoint: priorities and health first, then localities, then the cluster's policy.
//!
//! An endpoint that is left out or unhealthy is never picked while another one may be. Nothing here keeps time or throws
//! dice; the only state is the place of round robin, which workers may share.

mod group;
mod ring;

use std::sync::Arc;

use crate::cluster::{Cluster, LbPolicy};
use crate::endpoint::{Endpoints, Health};
use crate::route::mix;
use group::Group;

/// Picks the endpoints of one cluster.
#[derive(Debug)]
pub struct Balancer {
    endpoints: Arc<Endpoints>,
    /// By priority, the first to be asked first.
    levels: Vec<Level>,
    panic_percent: f64,
}

/// The endpoints of one priority.
#[derive(Debug)]
struct Level {
    healthy: Group,
    degraded: Group,
    all: Group,
}

/// What a pick depends on beside the endpoints.
#[derive(Clone, Copy, Debug)]
pub struct Pick<'a> {
    /// A throw of the dice.
    pub dice: u64,
    /// Equal for requests that shall meet the same endpoint; only for policies by hash.
    pub hash: Option<u64>,
    /// Endpoints that were tried already: avoided while there are others.
    pub avoid: &'a [usize],
}

/// How well endpoints do, as the caller knows it.
struct View<'v, F, U> {
    in_flight: &'v F,
    usable: &'v U,
}

impl Balancer {
    /// A balancer for the endpoints of a cluster.
    pub fn new(cluster: &Cluster, endpoints: Arc<Endpoints>) -> Self {
        Self::with(cluster.lb, cluster.panic_percent, cluster.locality_weighted, endpoints)
    }

    /// A balancer by these settings.
    pub fn with(policy: LbPolicy, panic_percent: f64, locality_weighted: bool, endpoints: Arc<Endpoints>) -> Self {
        let mut priorities: Vec<u32> = endpoints.all().iter().map(|endpoint| endpoint.priority).collect();
        priorities.sort_unstable();
        priorities.dedup();
        let level = |priority: &u32| {
            let group = |healths: &[Health]| {
                let fits = |index: &usize| {
                    let endpoint = &endpoints.all()[*index];
                    endpoint.priority == *priority && healths.contains(&endpoint.health)
                };
                Group::new(policy, locality_weighted, &endpoints, (0..endpoints.all().len()).filter(fits).collect())
            };
            Level {
                healthy: group(&[Health::Healthy]),
                degraded: group(&[Health::Degraded]),
                all: group(&[Health::Healthy, Health::Degraded, Health::Unhealthy, Health::Draining]),
            }
        };
        let levels = priorities.iter().map(level).collect();
        Self { endpoints, levels, panic_percent }
    }

    /// The endpoints that are picked from.
    pub fn endpoints(&self) -> &Arc<Endpoints> {
        &self.endpoints
    }

    /// The index of an endpoint in `endpoints().all()`; none if there is none to be used. `in_flight` tells how many
    /// requests an endpoint has at the moment, `usable` whether it is not left out.
    pub fn pick(
        &self,
        pick: &Pick<'_>,
        in_flight: impl Fn(usize) -> u32,
        usable: impl Fn(usize) -> bool,
    ) -> Option<usize> {
        let view = View { in_flight: &in_flight, usable: &usable };
        let first = self.level(pick.dice, &view);
        let others = (0..self.levels.len()).filter(|level| *level != first);
        let order = || std::iter::once(first).chain(others.clone());
        let fresh = |index: usize| usable(index) && !pick.avoid.contains(&index);
        let try_all = |group: fn(&Level) -> &Group, may: &dyn Fn(usize) -> bool| {
            order().find_map(|level| group(self.levels.get(level)?).pick(pick, &in_flight, may))
        };
        try_all(|level| &level.healthy, &fresh)
            .or_else(|| try_all(|level| &level.degraded, &fresh))
            .or_else(|| try_all(|level| &level.healthy, &usable))
            .or_else(|| try_all(|level| &level.degraded, &usable))
            .or_else(|| {
                // Nothing is well. With a panic threshold, trying anything is better than answering nothing.
                let panics = self.panic_percent > 0.0;
                panics.then(|| try_all(|level| &level.all, &|_| true)).flatten()
            })
    }

    /// The priority that a request goes to. A priority keeps its requests as long as enough of its endpoints are well;
    /// what it cannot take goes to the next.
    fn level<F, U: Fn(usize) -> bool>(&self, dice: u64, view: &View<'_, F, U>) -> usize {
        if self.levels.len() < 2 {
            return 0;
        }
        let mut at = mix(dice) % 100;
        let loads = self.loads(view);
        for (level, load) in loads.iter().enumerate() {
            match at.checked_sub(*load) {
                None => return level,
                Some(rest) => at = rest,
            }
        }
        loads.iter().position(|load| *load > 0).unwrap_or(0)
    }

    /// How many of a hundred requests each priority gets.
    fn loads<F, U: Fn(usize) -> bool>(&self, view: &View<'_, F, U>) -> Vec<u64> {
        let _ = view.in_flight;
        let factor = u64::from(self.endpoints.overprovisioning_percent);
        let mut left = 100;
        let wellness = self.levels.iter().map(|level| {
            let well = level.healthy.count(view.usable) + level.degraded.count(view.usable);
            (well as u64 * factor).checked_div(level.all.len() as u64).unwrap_or(0).min(100)
        });
        let wellness: Vec<u64> = wellness.collect();
        // If all together cannot take everything, each takes its part of what there is.
        let total = wellness.iter().sum::<u64>().clamp(1, 100);
        let mut load = |well: u64| {
            let load = (well * 100 / total).min(left);
            left -= load;
            load
        };
        wellness.into_iter().map(&mut load).collect()
    }
}

#[cfg(test)]
mod tests;
