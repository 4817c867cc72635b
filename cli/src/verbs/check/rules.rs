//! The checks: what each is called, what it means, and how facts are judged. Thresholds are shares of a life and missed
//! renewals wherever there is a life; a value is given also when all is well.

use std::time::{Duration, SystemTime};

use proto::kasbah::ca::v1::StatusResponse;
use serde_json::Value;

use super::facts::{Facts, Part};
use super::{Found, written};
use crate::output::span;

/// One thing that is looked at.
#[derive(Debug)]
pub(crate) struct Check {
    pub(crate) id: &'static str,
    pub(crate) title: &'static str,
    /// What to do when it is not well.
    pub(crate) remedy: &'static str,
}

/// What a look found.
#[derive(Debug)]
pub(super) struct Outcome {
    pub(super) check: &'static Check,
    pub(super) found: Found,
    /// The value that was judged, for people.
    pub(super) value: String,
}

/// All checks, in the order of printing.
pub(crate) const CHECKS: &[Check] = &[
    check(
        "PRE-01",
        "the mesh's folder can be written",
        "choose a folder that you may write with --dir DIR, or change its owner",
    ),
    check(
        "PRE-02",
        "loopback addresses for the workloads",
        "Linux answers on all of 127.0.0.0/8; give the container or namespace a loopback device (`ip link set lo up`)",
    ),
    check(
        "PRE-03",
        "the kernel tells who connects",
        "use Linux 5.3 or newer for pidfds, 6.5 for race-free ones of socket peers",
    ),
    check("PRE-04", "enough open files", "raise the limit, such as `ulimit -n 4096`"),
    check("PRE-05", "disk space", "make room, or choose another folder with --dir DIR"),
    check(
        "PRE-06",
        "the clock is set",
        "set the clock (NTP); certificates made with a wrong one are refused elsewhere",
    ),
    check("HO-01", "all parts run", "see `kasbah status` and the log of the part that does not run"),
    check("HO-02", "all parts are ready", "see `kasbah status` for what it waits for, and its log"),
    check("HO-03", "disk space where the CA keeps its data", "make room: what cannot be recorded is not issued"),
    check(
        "HO-04",
        "the CA's clock agrees with ours",
        "set both clocks (NTP); certificates are good only between two times",
    ),
    check("CA-01", "root", "`kasbah ca rotate` replaces it without an outage"),
    check(
        "CA-02",
        "signing authority (X.509)",
        "the CA replaces it at half of its life: see the CA's log for why it did not",
    ),
    check(
        "CA-03",
        "signing key (JWT)",
        "`kasbah ca rotate --kind jwt`; the CA does it by itself: see its log for why it did not",
    ),
    check(
        "CA-04",
        "signing key (WIT)",
        "`kasbah ca rotate --kind wit`; the CA does it by itself: see its log for why it did not",
    ),
    check(
        "CA-05",
        "rotations move on",
        "`kasbah ca rotate status` names the laggards; mend them, or go on without one by --waive NAME",
    ),
    check(
        "CA-06",
        "every node enforces the newest bundle",
        "`kasbah ca rotate status` names those that do not and why",
    ),
    check("CA-07", "database", "see the CA's log; nothing is issued that cannot be recorded"),
    check(
        "CA-08",
        "issuance policy",
        "`kasbah ca policy check FILE` says where it is wrong; the last good one is in force",
    ),
    check("CA-09", "the CA's own certificate", "see the CA's log for why it was not renewed"),
    check(
        "ID-01",
        "node agents have what the CA gives",
        "see the agent's log; `kasbah entry explain` says who should get what",
    ),
    check("ID-02", "renewals on time", "see the agent's log for why it was not renewed; `kasbah cert list` shows all"),
    check("ID-03", "the nodes' own certificates", "see the agent's log; an expired node must join again"),
    check("ID-04", "if issuing stopped now", "this is how long the CA may be away; longer lives give more time"),
    check(
        "PX-01",
        "proxies have the newest configuration",
        "`/status` of discovery names what a proxy refused and why; its log has more",
    ),
    check("PX-02", "proxies trust the active root", "`kasbah ca rotate status` says which bundle each node enforces"),
    check("CF-01", "operator documents", "`kasbah validate DIR/config` says what is refused and where"),
    check(
        "CF-02",
        "policies can match",
        "correct the rule or take it away; `kasbah explain WORKLOAD` shows what holds for a workload",
    ),
    check(
        "JW-01",
        "keys of the issuers of tokens",
        "see that the issuer's address is right and a service of the mesh; without keys its tokens are refused",
    ),
    check(
        "IN-01",
        "certificates from files",
        "replace the files before they end; they are read again when they change",
    ),
];

const fn check(id: &'static str, title: &'static str, remedy: &'static str) -> Check {
    Check { id, title, remedy }
}

/// What the rules of one check answer.
pub(super) type Judged = (Found, String);

pub(super) fn outcome(id: &str, (found, value): Judged) -> Option<Outcome> {
    let check = CHECKS.iter().find(|check| check.id == id)?;
    Some(Outcome { check, found, value })
}

/// Judges a running mesh.
pub(super) fn judge(facts: &Facts, now: SystemTime) -> Vec<Outcome> {
    let judged: [(&str, Judged); 23] = [
        ("HO-01", running(facts)),
        ("HO-02", ready(facts)),
        ("HO-03", space(facts.disk)),
        ("HO-04", skew(facts, now)),
        ("CA-01", root(facts, now)),
        ("CA-02", authority(facts, "x509", now)),
        ("CA-03", authority(facts, "jwt", now)),
        ("CA-04", authority(facts, "wit", now)),
        ("CA-05", rotations(&facts.rotations, now)),
        ("CA-06", enforced(facts)),
        ("CA-07", same(facts, "/database")),
        ("CA-08", same(facts, "/issuance_policy")),
        ("CA-09", one_life(facts.page("ca", "/certs").and_then(|certs| certs.pointer("/own_svid")), now)),
        ("ID-01", synced(facts)),
        ("ID-02", renewals(facts, now)),
        ("ID-03", one_life(facts.page("agent", "/certs").and_then(|certs| certs.pointer("/agent")), now)),
        ("ID-04", outage(facts, now)),
        ("PX-01", configured(facts)),
        ("PX-02", trusting(facts)),
        ("CF-01", documents(facts)),
        ("CF-02", written::policies(facts)),
        ("JW-01", written::issuers(facts, now)),
        ("IN-01", files(facts, now)),
    ];
    judged.into_iter().filter_map(|(id, judged)| outcome(id, judged)).collect()
}

pub(super) fn unknown(why: &str) -> Judged {
    (Found::Unknown, why.to_owned())
}

pub(super) fn well(value: String) -> Judged {
    (Found::Ok, value)
}

pub(super) fn named(bad: &[String], found: Found, well_value: String) -> Judged {
    if bad.is_empty() { well(well_value) } else { (found, bad.join("; ")) }
}

fn running(facts: &Facts) -> Judged {
    let bad: Vec<String> = facts.parts.iter().filter(|part| !part.running).map(|part| part.name.clone()).collect();
    let restarts: u32 = facts.parts.iter().map(|part| part.restarts).sum();
    named(&bad, Found::Fail, format!("{} of {}, {restarts} restarts", facts.parts.len(), facts.parts.len()))
}

fn ready(facts: &Facts) -> Judged {
    let why = |part: &Part| part.ready.as_ref().err().map(|why| format!("{}: {why}", part.name));
    let bad: Vec<String> = facts.parts.iter().filter_map(why).collect();
    named(&bad, Found::Fail, format!("{} parts", facts.parts.len()))
}

pub(super) fn space(disk: Option<(u64, u64)>) -> Judged {
    let Some((free, all)) = disk else { return unknown("the file system does not tell") };
    let value = format!("{} MiB free of {} MiB", free >> 20, all >> 20);
    match free {
        0..DISK_FAIL => (Found::Fail, value),
        DISK_FAIL..DISK_WARN => (Found::Warn, value),
        _ => well(value),
    }
}

pub(super) fn moment(value: &Value) -> Option<SystemTime> {
    humantime::parse_rfc3339(value.as_str()?).ok()
}

fn skew(facts: &Facts, now: SystemTime) -> Judged {
    let Some(theirs) = facts.page("ca", "/status").and_then(|status| moment(&status["now"])) else {
        return unknown("the CA did not say its time");
    };
    let skew = now.duration_since(theirs).unwrap_or_else(|error| error.duration());
    let value = format!("{} apart", span(Duration::from_secs(skew.as_secs())));
    if skew > SKEW_MAX { (Found::Fail, value) } else { well(value) }
}

/// How much of a life is left: time, and 0 to 100.
fn life(value: &Value, now: SystemTime) -> Option<(Duration, f64)> {
    let (begin, end) = (moment(&value["not_before"])?, moment(&value["not_after"])?);
    let whole = end.duration_since(begin).ok()?.as_secs_f64();
    let left = end.duration_since(now).unwrap_or_default();
    Some((left, (left.as_secs_f64() / whole.max(1.0) * 100.0).min(100.0)))
}

fn life_text((left, percent): (Duration, f64)) -> String {
    if left.is_zero() { "expired".into() } else { format!("{} left ({percent:.0} % of its life)", span(left)) }
}

fn of_kind<'a>(facts: &'a Facts, kind: &str, state: &str) -> Option<&'a Value> {
    let all = facts.page("ca", "/certs")?.pointer("/authorities")?.as_array()?;
    all.iter().find(|authority| authority["kind"] == kind && authority["state"] == state)
}

fn root(facts: &Facts, now: SystemTime) -> Judged {
    let Some(active) = of_kind(facts, "root", "active") else { return unknown("the CA did not say") };
    let Some(left) = life(active, now) else { return unknown("its times are not readable") };
    let successor = of_kind(facts, "root", "prepared").is_some();
    let value =
        format!("{}, {}", life_text(left), if successor { "a successor is prepared" } else { "no successor yet" });
    let early = left.1 > ROOT_PERCENT_MIN && left.0 > ROOT_LEFT_MIN;
    match left.0.is_zero() {
        true => (Found::Fail, value),
        false if early || successor => well(value),
        false => (Found::Warn, value),
    }
}

/// A signing authority is replaced at half of its life.
fn authority(facts: &Facts, kind: &str, now: SystemTime) -> Judged {
    let Some(active) = of_kind(facts, kind, "active") else { return unknown("the CA did not say") };
    late(life(active, now), AUTHORITY_PERCENT_MIN)
}

fn one_life(value: Option<&Value>, now: SystemTime) -> Judged {
    late(value.and_then(|value| life(value, now)), LEAF_PERCENT_MIN)
}

fn late(left: Option<(Duration, f64)>, percent_min: f64) -> Judged {
    let Some(left) = left else { return unknown("its times are not known") };
    match left {
        (time, _) if time.is_zero() => (Found::Fail, life_text(left)),
        (_, percent) if percent < percent_min => (Found::Warn, life_text(left)),
        _ => well(life_text(left)),
    }
}

fn rotations(rotations: &[StatusResponse], now: SystemTime) -> Judged {
    if rotations.is_empty() {
        return unknown("the CA's admin socket does not answer");
    }
    let now = i64::try_from(runtime::clock::unix_secs(now)).unwrap_or(i64::MAX);
    let busy: Vec<&StatusResponse> = rotations.iter().filter(|rotation| rotation.phase != "idle").collect();
    if busy.is_empty() {
        return well("none under way".into());
    }
    let text = |rotation: &&StatusResponse| {
        let since = Duration::from_secs(u64::try_from(now - rotation.started_at).unwrap_or_default());
        let (done, total) = (rotation.acknowledged, rotation.total);
        format!("{}: {} for {}, {done} of {total} nodes", kind(rotation), rotation.phase, span(since))
    };
    let value = busy.iter().map(text).collect::<Vec<_>>().join("; ");
    let stuck =
        |rotation: &&StatusResponse| rotation.laggards.iter().any(|laggard| now - laggard.since > LAGGARD_SECS_MAX);
    if busy.iter().any(stuck) { (Found::Warn, value) } else { well(value) }
}

fn kind(rotation: &StatusResponse) -> &'static str {
    rotation.kind().as_str_name()
}

fn enforced(facts: &Facts) -> Judged {
    let Some(status) = facts.page("ca", "/status") else { return unknown("the CA did not answer") };
    let (all, have) = (status["agents"].as_u64().unwrap_or(0), status["agents_enforcing_bundle"].as_u64().unwrap_or(0));
    let value = format!("{have} of {all} nodes enforce bundle {}", status["bundle_sequence"]);
    if have < all { (Found::Warn, value) } else { well(value) }
}

/// A member of the CA's status that says `OK`.
fn same(facts: &Facts, member: &str) -> Judged {
    match facts.page("ca", "/status").and_then(|status| status.pointer(member)).and_then(Value::as_str) {
        None => unknown("the CA did not answer"),
        Some("OK") => well("OK".into()),
        Some(trouble) => (Found::Fail, trouble.to_owned()),
    }
}

fn synced(facts: &Facts) -> Judged {
    let Some(status) = facts.page("agent", "/status") else { return unknown("the agent did not answer") };
    let missing = status["svids_missing"].as_u64().unwrap_or(0);
    let value = format!("{} entries, {missing} of their certificates missing", status["entries"]);
    if status["synced"] == true && missing == 0 { well(value) } else { (Found::Fail, value) }
}

fn svids(facts: &Facts) -> Option<&Vec<Value>> {
    facts.page("agent", "/certs")?.pointer("/svids")?.as_array()
}

fn renewals(facts: &Facts, now: SystemTime) -> Judged {
    let Some(svids) = svids(facts) else { return unknown("the agent did not answer") };
    let lives = svids.iter().filter_map(|svid| Some((svid["spiffe_id"].as_str()?, life(svid, now)?)));
    let Some((id, (left, percent))) = lives.min_by(|(_, one), (_, two)| one.1.total_cmp(&two.1)) else {
        return well("no certificates yet".into());
    };
    let value = format!("{} certificates; the latest is at {:.0} % of its life ({id})", svids.len(), 100.0 - percent);
    match percent {
        _ if left.is_zero() => (Found::Fail, value),
        percent if percent < LEAF_PERCENT_MIN => (Found::Warn, value),
        _ => well(value),
    }
}

/// The life of the leaves is what a CA may be away.
fn outage(facts: &Facts, now: SystemTime) -> Judged {
    let Some(svids) = svids(facts) else { return unknown("the agent did not answer") };
    let mut ends: Vec<(SystemTime, &str)> =
        svids.iter().filter_map(|svid| Some((moment(&svid["not_after"])?, svid["spiffe_id"].as_str()?))).collect();
    ends.sort();
    let (Some((first, who)), Some((half, _))) = (ends.first(), ends.get(ends.len() / 2)) else {
        return well("nothing would fail: no certificates yet".into());
    };
    let text = |end: &SystemTime| span(end.duration_since(now).unwrap_or_default());
    well(format!("the first fails in {} ({who}), half of them in {}", text(first), text(half)))
}

fn configured(facts: &Facts) -> Judged {
    let clients = facts.page("discovery", "/status").and_then(|status| status.pointer("/xds/clients"));
    let Some(clients) = clients.and_then(Value::as_array) else { return unknown("discovery did not answer") };
    let behind = |client: &Value| {
        let refused = client["types"].as_object()?.values().any(|kind| !kind["error"].is_null());
        let behind = client["behind"].as_u64().unwrap_or(0);
        let node = client["node"].as_str().unwrap_or("a proxy");
        (refused || behind > 0).then(|| format!("{node} {}", if refused { "refused it" } else { "is behind" }))
    };
    let bad: Vec<String> = clients.iter().filter_map(behind).collect();
    named(&bad, Found::Fail, format!("{} proxies acknowledged", clients.len()))
}

fn trusting(facts: &Facts) -> Judged {
    let Some(root) = of_kind(facts, "root", "active") else { return unknown("the CA did not say") };
    let id = root["id"].as_str().unwrap_or_default();
    let roots = facts.page("ca", "/certs").and_then(|certs| certs.pointer("/bundle/roots")?.as_array());
    let serial =
        roots.and_then(|roots| roots.iter().find(|root| root["id"] == id)).and_then(|root| root["serial"].as_str());
    let Some(serial) = serial else { return unknown("the CA did not name its root") };
    let proxies =
        facts.parts.iter().filter(|part| part.pages.get("/status").is_some_and(|page| page["role"] == "proxy"));
    let (mut all, mut bad) = (0, Vec::new());
    for proxy in proxies {
        all += 1;
        let certificates = proxy.pages.get("/certs").and_then(|certs| certs["certificates"].as_array());
        let known = certificates.into_iter().flatten().flat_map(|one| one["ca_cert"].as_array()).flatten();
        if !known.into_iter().any(|one| one["serial_number"] == serial) {
            bad.push(format!("{} does not", proxy.name));
        }
    }
    named(&bad, Found::Fail, format!("{all} of {all} proxies"))
}

fn documents(facts: &Facts) -> Judged {
    let Some(findings) = facts.page("discovery", "/findings").and_then(Value::as_array) else {
        return unknown("discovery did not answer");
    };
    let text = |finding: &Value| {
        let field = |name: &str| finding[name].as_str().unwrap_or("?").to_owned();
        format!("{}:{} {}", field("file"), finding["line"], field("code"))
    };
    let of = |errors: bool| findings.iter().filter(move |finding| (finding["level"] == "Error") == errors).map(text);
    let errors: Vec<String> = of(true).collect();
    if !errors.is_empty() {
        return (Found::Fail, format!("refused: {}", errors.join("; ")));
    }
    let notes: Vec<String> = of(false).collect();
    named(&notes, Found::Warn, "none refused".into())
}

fn files(facts: &Facts, now: SystemTime) -> Judged {
    let mut lives = Vec::new();
    for part in &facts.parts {
        let certificates = part.pages.get("/certs").and_then(|certs| certs["certificates"].as_array());
        for leaf in certificates.into_iter().flatten().filter_map(|one| one.pointer("/cert_chain/0")) {
            if leaf["path"].as_str().is_some_and(|path| !path.is_empty() && !path.starts_with("sds://")) {
                let times = serde_json::json!({"not_before": leaf["valid_from"], "not_after": leaf["expiration_time"]});
                lives.extend(life(&times, now).map(|life| (life, part.name.clone())));
            }
        }
    }
    let Some((left, name)) = lives.into_iter().min_by(|(one, _), (two, _)| one.1.total_cmp(&two.1)) else {
        return well("none are used".into());
    };
    let (found, value) = late(Some(left), FILE_PERCENT_MIN);
    (found, format!("{name}: {value}"))
}

const DISK_FAIL: u64 = 50 << 20;
const DISK_WARN: u64 = 500 << 20;
const SKEW_MAX: Duration = Duration::from_secs(30);
/// Of a root's life, in percent, and as time: enough for a rotation in peace.
const ROOT_PERCENT_MIN: f64 = 33.0;
const ROOT_LEFT_MIN: Duration = Duration::from_secs(60 * 86_400);
/// Replaced at 50 %.
const AUTHORITY_PERCENT_MIN: f64 = 40.0;
/// Renewed at 50 % with jitter; what is older has missed renewals.
const LEAF_PERCENT_MIN: f64 = 20.0;
const FILE_PERCENT_MIN: f64 = 20.0;
/// A node that has not acknowledged for so long will not by itself.
const LAGGARD_SECS_MAX: i64 = 15 * 60;

#[cfg(test)]
mod tests;
