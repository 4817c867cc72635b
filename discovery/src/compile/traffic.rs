//! The traffic policy that holds for one cluster, merged from rule, subset and port.

use crate::documents::networking::Subset;
use crate::documents::shapes::{ClientTls, ConnectionPool, LoadBalancer, OutlierDetection, TrafficPolicy};

/// The blocks in force; absent ones have the mesh's defaults.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Traffic<'a> {
    pub(super) balancer: Option<&'a LoadBalancer>,
    pub(super) pool: Option<&'a ConnectionPool>,
    pub(super) outlier: Option<&'a OutlierDetection>,
    pub(super) tls: Option<&'a ClientTls>,
}

impl<'a> Traffic<'a> {
    /// A subset overrides the rule block by block; settings of the port replace all blocks at once.
    pub(super) fn of(policy: Option<&'a TrafficPolicy>, subset: Option<&'a Subset>, port: u16) -> Self {
        let levels = [subset.and_then(|subset| subset.traffic_policy.as_ref()), policy];
        for level in levels.into_iter().flatten() {
            let of_port = |number: u32| number == u32::from(port);
            let settings = level
                .port_level_settings
                .iter()
                .find(|settings| settings.port.as_ref().is_some_and(|port| of_port(port.number)));
            if let Some(settings) = settings {
                return Self {
                    balancer: settings.load_balancer.as_ref(),
                    pool: settings.connection_pool.as_ref(),
                    outlier: settings.outlier_detection.as_ref(),
                    tls: settings.tls.as_ref(),
                };
            }
        }
        let mut merged = Self::default();
        for level in levels.into_iter().flatten() {
            merged.balancer = merged.balancer.or(level.load_balancer.as_ref());
            merged.pool = merged.pool.or(level.connection_pool.as_ref());
            merged.outlier = merged.outlier.or(level.outlier_detection.as_ref());
            merged.tls = merged.tls.or(level.tls.as_ref());
        }
        merged
    }
}

#[cfg(test)]
mod tests {
    use crate::documents::networking::DestinationRule;
    use crate::documents::shapes::SimpleBalancer;
    use crate::documents::{decode, tree};

    use super::*;

    fn rule() -> DestinationRule {
        let text = "host: a.b\n\
            trafficPolicy:\n  loadBalancer: {simple: RANDOM}\n  outlierDetection: {interval: 1s}\n  portLevelSettings:\n  \
            - port: {number: 80}\n    loadBalancer: {simple: ROUND_ROBIN}\n\
            subsets:\n- name: v1\n  trafficPolicy: {loadBalancer: {simple: LEAST_REQUEST}}\n";
        decode::decode(&tree::parse_stream(text).unwrap()[0]).unwrap()
    }

    #[test]
    fn subsets_override_block_by_block_and_ports_replace_everything() {
        let rule = rule();
        let of = |subset, port| Traffic::of(rule.traffic_policy.as_ref(), subset, port);
        let simple = |traffic: Traffic<'_>| traffic.balancer.and_then(|balancer| balancer.simple);
        assert_eq!(simple(of(None, 9)), Some(SimpleBalancer::Random));
        let subset = of(Some(&rule.subsets[0]), 9);
        assert_eq!(simple(subset), Some(SimpleBalancer::LeastRequest));
        assert!(subset.outlier.is_some());
        let port = of(Some(&rule.subsets[0]), 80);
        assert_eq!(simple(port), Some(SimpleBalancer::RoundRobin));
        assert!(port.outlier.is_none());
    }
}
