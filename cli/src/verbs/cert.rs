//! `kasbah cert`: certificates shown, listed, watched, verified, checked and issued, wherever they are.

mod issue;
mod judge;
mod list;
mod renew;
mod source;
mod verify;

use std::fmt;
use std::str::FromStr;
use std::time::{Duration, SystemTime};

use identity::summary::CertificateSummary;
use serde_json::{Value, json};

use super::{filters, revoke, wait};
use crate::args::{CertCommand, OutputArg, TargetArgs};
use crate::exit::{Exit, Failure};
use crate::output;
use judge::{Trust, Verdict};
use source::Found;

pub(crate) fn run(command: &CertCommand) -> Result<(), Failure> {
    match command {
        CertCommand::Revoke(args) => revoke::run(args),
        CertCommand::Revocations(command) => revoke::list(command),
        CertCommand::Show { target, output } => show(target, *output),
        CertCommand::List { dir, expires_in, output } => list::run(dir, *expires_in, *output),
        CertCommand::Watch { target, every, count, output } => watch(target, *every, *count, *output),
        CertCommand::NeedsRenewal { target, expires_in, output } => needs_renewal(target, *expires_in, *output),
        CertCommand::Verify { target, .. } if target.limbo => filters::cert::verify_limbo(),
        CertCommand::Verify { target, output } => verify::run(target, *output),
        CertCommand::Renew(args) => renew::run(args),
        CertCommand::Lint { lines: true, .. } => filters::cert::lint(),
        CertCommand::Lint { files, .. } => verify::lint(files),
        CertCommand::Issue { ca, spiffe_id, csr, dns, ttl, write, output } => {
            let order = issue::Order { spiffe_id: spiffe_id.as_deref(), csr: csr.as_deref(), dns, ttl: *ttl };
            issue::run(ca, &order, write.as_deref(), *output)
        }
    }
}

/// How much life is left: a time, or a share of the whole.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Left {
    Time(Duration),
    /// 0 to 100.
    Percent(f64),
}

impl FromStr for Left {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || "write a time such as 24h, or a share of the whole life such as 33%".to_owned();
        if let Some(percent) = text.strip_suffix('%') {
            let percent: f64 = percent.parse().map_err(|_| wrong())?;
            return if (0.0..=100.0).contains(&percent) { Ok(Self::Percent(percent)) } else { Err(wrong()) };
        }
        humantime::parse_duration(text).map(Self::Time).map_err(|_| wrong())
    }
}

impl fmt::Display for Left {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Time(time) => f.write_str(&output::duration(*time)),
            Self::Percent(percent) => write!(f, "{percent} % of its life"),
        }
    }
}

/// From when to when something is good.
#[derive(Clone, Copy, Debug)]
struct Life {
    not_before: SystemTime,
    not_after: SystemTime,
}

impl Life {
    fn of(summary: &CertificateSummary) -> Self {
        Self { not_before: summary.not_before(), not_after: summary.not_after() }
    }

    fn left(self, now: SystemTime) -> Duration {
        self.not_after.duration_since(now).unwrap_or_default()
    }

    /// 0 to 100.
    fn percent_left(self, now: SystemTime) -> f64 {
        let whole = self.not_after.duration_since(self.not_before).unwrap_or_default().as_secs_f64();
        if whole > 0.0 { (self.left(now).as_secs_f64() / whole * 100.0).min(100.0) } else { 0.0 }
    }

    fn is_within(self, limit: Left, now: SystemTime) -> bool {
        match limit {
            Left::Time(time) => self.left(now) <= time,
            Left::Percent(percent) => self.percent_left(now) <= percent,
        }
    }

    /// For people.
    fn text(self, now: SystemTime) -> String {
        if self.not_after <= now {
            return "expired".to_owned();
        }
        format!("{} ({:.0} %)", output::span(self.left(now)), self.percent_left(now))
    }
}

/// RFC 3339, whole seconds.
fn time(moment: SystemTime) -> String {
    runtime::clock::rfc3339(moment)
}

fn show(target: &TargetArgs, output: OutputArg) -> Result<(), Failure> {
    let trust = Trust::of(&target.trust)?;
    let found = wait(source::find(target))?;
    let now = SystemTime::now();
    let shown: Vec<(Value, String)> =
        found.iter().map(|found| described(found, &trust, now)).collect::<Result<_, _>>()?;
    let documents: Vec<&Value> = shown.iter().map(|(document, _)| document).collect();
    let table = || shown.iter().map(|(_, text)| text.clone()).collect::<Vec<_>>().join("\n\n");
    match documents.as_slice() {
        [one] => output::print(output.output, one, table),
        many => output::print(output.output, &many, table),
    }
}

fn summary(found: &Found) -> Result<Vec<CertificateSummary>, Failure> {
    let unreadable = |error| {
        Failure::new(Exit::Data, format!("{} presents something that is no certificate: {error}", found.source))
    };
    let all: Result<Vec<_>, _> = found.chain.iter().map(CertificateSummary::decode).collect();
    all.map_err(unreadable)
}

fn described(found: &Found, trust: &Trust, now: SystemTime) -> Result<(Value, String), Failure> {
    let chain = summary(found)?;
    let leaf = chain.first().ok_or_else(|| Failure::new(Exit::Data, format!("{} has no certificate", found.source)))?;
    let (verdict, life) = (trust.judge(&found.chain, now), Life::of(leaf));
    let renewal = trust.renewal_of(&leaf.serial);
    let document = json!({
        "source": found.source,
        "spiffe_id": leaf.spiffe_id,
        "dns_names": leaf.dns_names,
        "serial": leaf.serial,
        "subject": leaf.subject,
        "issuer": leaf.issuer,
        "not_before": time(life.not_before),
        "not_after": time(life.not_after),
        "life_left": output::duration(Duration::from_secs(life.left(now).as_secs())),
        "life_left_percent": life.percent_left(now).round(),
        "key_type": leaf.key,
        "fingerprint_sha256": leaf.fingerprint_sha256,
        "chain": chain.iter().map(link).collect::<Vec<_>>(),
        "verdict": verdict.code(),
        "explanation": verdict.text(),
        "defects": verdict.defects,
        "renewal": renewal,
    });
    let text = page(found, &chain, &verdict, renewal.as_deref(), now);
    Ok((document, text))
}

fn link(summary: &CertificateSummary) -> Value {
    json!({
        "subject": summary.subject,
        "issuer": summary.issuer,
        "spiffe_id": summary.spiffe_id,
        "serial": summary.serial,
        "is_authority": summary.is_authority,
        "not_before": time(summary.not_before()),
        "not_after": time(summary.not_after()),
        "key_type": summary.key,
        "fingerprint_sha256": summary.fingerprint_sha256,
    })
}

fn page(
    found: &Found,
    chain: &[CertificateSummary],
    verdict: &Verdict,
    renewal: Option<&str>,
    now: SystemTime,
) -> String {
    let leaf = &chain[0]; // `described` lets no empty chain in.
    let life = Life::of(leaf);
    let identity = leaf.spiffe_id.as_ref().map_or_else(|| "none: not an X.509-SVID".to_owned(), ToString::to_string);
    let mut lines = vec![("source", found.source.clone()), ("identity", identity)];
    if !leaf.dns_names.is_empty() {
        lines.push(("dns names", leaf.dns_names.join(", ")));
    }
    lines.push(("serial", leaf.serial.clone()));
    lines.push(("issuer", leaf.issuer.clone()));
    lines.push(("life", format!("{} to {}", time(life.not_before), time(life.not_after))));
    lines.push(("life left", life.text(now)));
    lines.push(("renewal", renewal.unwrap_or("nothing here is known to renew it").to_owned()));
    lines.push(("key", leaf.key.clone()));
    lines.push(("sha-256", leaf.fingerprint_sha256.clone()));
    for above in &chain[1..] {
        lines.push(("below", format!("{}, until {}", above.subject, time(above.not_after()))));
    }
    lines.push(("verdict", format!("{}: {}", verdict.code(), verdict.text())));
    if !verdict.defects.is_empty() {
        lines.push(("profile", verdict.defects.join(", ")));
    }
    lines.iter().map(|(name, value)| format!("{name:<10} {value}")).collect::<Vec<_>>().join("\n")
}

fn needs_renewal(target: &TargetArgs, limit: Left, output: OutputArg) -> Result<(), Failure> {
    let found = wait(source::find(target))?;
    let now = SystemTime::now();
    let lives: Vec<(String, Life)> = found
        .iter()
        .map(|found| Ok((found.source.clone(), Life::of(&summary(found)?[0]))))
        .collect::<Result<_, Failure>>()?;
    let due: Vec<bool> = lives.iter().map(|(_, life)| life.is_within(limit, now)).collect();
    let rows: Vec<Value> = lives
        .iter()
        .zip(&due)
        .map(|((source, life), due)| {
            json!({"source": source, "not_after": time(life.not_after), "life_left": output::duration(Duration::from_secs(life.left(now).as_secs())), "needs_renewal": due})
        })
        .collect();
    output::print(output.output, &rows, || {
        let text = |((source, life), due): (&(String, Life), &bool)| {
            let verdict = if *due { "should be renewed" } else { "need not be renewed yet" };
            format!("{source} {verdict}: {} left", life.text(now))
        };
        lives.iter().zip(&due).map(text).collect::<Vec<_>>().join("\n")
    })?;
    if due.contains(&true) { Ok(()) } else { Err(Failure::quiet()) }
}

/// Looks again and again; a target that is away for a moment is waited for.
fn watch(target: &TargetArgs, every: Duration, count: Option<u64>, output: OutputArg) -> Result<(), Failure> {
    let mut known: Option<String> = None;
    let mut replaced = 0;
    wait(async {
        loop {
            match source::find(target).await {
                Ok(found) => {
                    let first = &found[0];
                    let leaf = &summary(first)?[0];
                    if known.as_deref() != Some(leaf.fingerprint_sha256.as_str()) {
                        replaced += u64::from(known.is_some());
                        known = Some(leaf.fingerprint_sha256.clone());
                        tell(first, leaf, output)?;
                    }
                }
                Err(failure) if known.is_none() => return Err(failure),
                Err(failure) => output::message(&format!("not there: {}", failure.brief())),
            }
            if output::is_closed() || count.is_some_and(|count| replaced >= count) {
                return Ok(());
            }
            tokio::time::sleep(every).await;
        }
    })
}

fn tell(found: &Found, leaf: &CertificateSummary, output: OutputArg) -> Result<(), Failure> {
    let (now, life) = (SystemTime::now(), Life::of(leaf));
    let document = json!({
        "at": time(now),
        "source": found.source,
        "spiffe_id": leaf.spiffe_id,
        "serial": leaf.serial,
        "not_after": time(life.not_after),
        "issuer": leaf.issuer,
    });
    output::record(output.output, &document, || {
        let id = leaf.spiffe_id.as_ref().map_or_else(|| leaf.subject.clone(), ToString::to_string);
        format!("{}  {id}  serial {}  until {}", time(now), leaf.serial, time(life.not_after))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    #[test]
    fn what_is_left_is_a_time_or_a_share() {
        assert_eq!("33%".parse(), Ok(Left::Percent(33.0)));
        assert_eq!("1h30m".parse(), Ok(Left::Time(HOUR * 3 / 2)));
        for wrong in ["", "%", "101%", "-1%", "soon", "5", "NaN%"] {
            assert!(wrong.parse::<Left>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_life_is_judged_by_time_and_by_share() {
        let start = SystemTime::UNIX_EPOCH;
        let life = Life { not_before: start, not_after: start + HOUR };
        let at = |minutes: u64| start + Duration::from_secs(minutes * 60);
        assert!(!life.is_within(Left::Percent(50.0), at(29)) && life.is_within(Left::Percent(50.0), at(30)));
        assert!(!life.is_within(Left::Time(HOUR / 4), at(44)) && life.is_within(Left::Time(HOUR / 4), at(45)));
        assert!(life.is_within(Left::Time(Duration::ZERO), at(61)), "expired");
        assert_eq!((life.text(at(61)), life.text(at(15))), ("expired".into(), "45m (75 %)".into()));
    }
}
