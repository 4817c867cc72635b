//! Rules of virtual services that never run, and matches that never decide: others before them take all of their requests.
//!
//! Only what is certain is told.

use std::collections::BTreeMap;

use serde_json::Value;

use super::Context;
use super::message::Report;
use super::resource::{Resource, What};
use super::view::View;

/// Rules and matches behind others.
pub(crate) fn unreachable(context: &Context<'_>, report: &mut Report) {
    for service in context.set.of(What::VirtualService) {
        for protocol in ["http", "tcp", "tls"] {
            let rules: Vec<View<'_>> = service.spec().get(protocol).items().collect();
            repeated(service, protocol, &rules, report);
            if protocol == "http" {
                covered(service, &rules, report);
            }
        }
    }
}

/// Rules behind one that takes everything, and matches that are written twice.
fn repeated(service: &Resource, protocol: &str, rules: &[View<'_>], report: &mut Report) {
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    let mut everything: Option<usize> = None;
    for (index, rule) in rules.iter().enumerate() {
        let name = title(protocol, index, *rule);
        let matches: Vec<View<'_>> = rule.get("match").items().collect();
        if let Some(first) = everything {
            let text = format!("{name} never runs: {} takes everything", title(protocol, first, rules[first]));
            report.tell("IST0130", service, *rule, text);
            continue;
        }
        if matches.is_empty() {
            everything = Some(index);
            continue;
        }
        let mut twice = 0;
        for (at, one) in matches.iter().enumerate() {
            match seen.get(&conditions(*one)) {
                Some(first) => {
                    twice += 1;
                    let first = title(protocol, *first, rules[*first]);
                    let text = format!("match {} of {name} stands in {first} already", part(at, *one));
                    report.tell("IST0131", service, *one, text);
                }
                None => {
                    seen.insert(conditions(*one), index);
                }
            }
        }
        if twice == matches.len() {
            report.tell("IST0130", service, *rule, format!("{name} never runs: all of its matches stand before it"));
        }
    }
}

/// A prefix behind a shorter one with the same other conditions.
fn covered(service: &Resource, rules: &[View<'_>], report: &mut Report) {
    let mut prefixes: Vec<(String, usize, View<'_>)> = Vec::new();
    for (index, rule) in rules.iter().enumerate() {
        let name = title("http", index, *rule);
        for (at, one) in rule.get("match").items().enumerate() {
            let prefix = one.path("uri.prefix").text();
            if prefix.is_empty() || prefixes.len() >= PREFIXES_MAX {
                continue;
            }
            for (first, first_at, before) in prefixes.iter().filter(|(_, _, before)| covers(*before, one)) {
                let wider = before.path("uri.prefix").text();
                let which = part(*first_at, *before);
                let text = format!(
                    "match {} of {name} ({prefix}) never decides: match {which} of {first} ({wider}) takes its requests",
                    part(at, one)
                );
                report.tell("IST0131", service, one, text);
            }
            prefixes.push((name.clone(), at, one));
        }
    }
}

/// Whether every request of `b` is one of `a`, which has a shorter prefix.
fn covers(a: View<'_>, b: View<'_>) -> bool {
    let (wide, narrow) = (a.path("uri.prefix").text(), b.path("uri.prefix").text());
    let same = |field: &str| json(a.get(field)) == json(b.get(field));
    let for_all = |field: &str| !a.get(field).exists() || same(field);
    narrow.len() > wide.len()
        && narrow.starts_with(wide)
        && methods_agree(a, b)
        && SAME.iter().all(|field| same(field))
        && ["gateways", "sourceLabels", "sourceNamespace", "scheme"].iter().all(|field| for_all(field))
}

/// No method counts as GET, as Istio takes it.
fn methods_agree(a: View<'_>, b: View<'_>) -> bool {
    let is_get = b.path("method.exact").text() == "GET";
    let same = json(a.get("method")) == json(b.get("method"));
    same || (!a.get("method").exists() && is_get)
}

/// What a match asks, without its name.
fn conditions(one: View<'_>) -> String {
    let mut value = json(one);
    if let Value::Object(fields) = &mut value {
        fields.remove("name");
    }
    value.to_string()
}

fn json(view: View<'_>) -> Value {
    view.node().map(crate::documents::tree::Node::to_json).unwrap_or_default()
}

fn title(protocol: &str, index: usize, rule: View<'_>) -> String {
    match rule.get("name").text() {
        "" => format!("{protocol}[{index}]"),
        name => format!("{protocol}[{index}] `{name}`"),
    }
}

fn part(index: usize, one: View<'_>) -> String {
    match one.get("name").text() {
        "" => index.to_string(),
        name => format!("`{name}`"),
    }
}

const SAME: &[&str] = &["port", "authority", "headers", "queryParams", "withoutHeaders", "ignoreUriCase"];
/// More prefixes of one document are not compared.
const PREFIXES_MAX: usize = 2_000;

#[cfg(test)]
mod tests {
    use super::super::message::Message;
    use super::super::tests::{analysis, of};
    use super::*;

    #[test]
    fn so_many_prefixes_are_compared_and_no_more() {
        let told = |others: usize| -> Vec<Message> {
            let others = (0..others).map(|number| format!("{{uri: {{prefix: /x{number:05}}}}}, ")).collect::<String>();
            let matches = format!("[{{uri: {{prefix: /a}}}}, {others}{{uri: {{prefix: /a/b}}}}]");
            let service = of("VirtualService", "v", &format!("{{hosts: [h], http: [{{match: {matches}}}]}}"));
            analysis(&service, &["virtualservice.UnreachableRuleAnalyzer"]).messages
        };
        assert_eq!(told(PREFIXES_MAX - 2).len(), 1);
        assert_eq!(told(PREFIXES_MAX - 1).len(), 0);
    }
}
