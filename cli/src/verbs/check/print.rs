//! The result of a look: lines for people, documents for programs, a test report for build servers.

use std::time::Duration;

use serde_json::{Value, json};

use super::Found;
use super::rules::Outcome;
use crate::args::CheckFormat;
use crate::exit::Failure;
use crate::output::{self, Format};

pub(super) fn print(outcomes: &[Outcome], took: Duration, format: CheckFormat) -> Result<(), Failure> {
    let format = match format {
        CheckFormat::Junit => {
            output::line(&junit(outcomes));
            return Ok(());
        }
        CheckFormat::Table => Format::Table,
        CheckFormat::Json => Format::Json,
        CheckFormat::Yaml => Format::Yaml,
    };
    let document = json!({
        "success": count(outcomes, Found::Fail) == 0,
        "checks": outcomes.iter().map(document).collect::<Vec<_>>(),
    });
    output::print(format, &document, || text(outcomes, took))
}

fn count(outcomes: &[Outcome], found: Found) -> usize {
    outcomes.iter().filter(|outcome| outcome.found == found).count()
}

pub(super) fn document(outcome: &Outcome) -> Value {
    let remedy = (outcome.found != Found::Ok).then_some(outcome.check.remedy);
    json!({
        "id": outcome.check.id,
        "title": outcome.check.title,
        "result": outcome.found.word(),
        "value": outcome.value,
        "remedy": remedy,
    })
}

fn text(outcomes: &[Outcome], took: Duration) -> String {
    let mut lines = Vec::new();
    for Outcome { check, found, value } in outcomes {
        let word = match found {
            Found::Ok => "ok   ",
            Found::Unknown => "?    ",
            Found::Warn => "WARN ",
            Found::Fail => "FAIL ",
        };
        lines.push(format!("{word} {:<7} {:<42} {value}", check.id, check.title));
        if *found != Found::Ok {
            lines.push(format!("              -> {}", check.remedy));
        }
    }
    let [ok, unknown, warn, fail] =
        [Found::Ok, Found::Unknown, Found::Warn, Found::Fail].map(|found| count(outcomes, found));
    let verdict = if fail == 0 { "all is well" } else { "NOT WELL" };
    let verdict = if fail == 0 && warn + unknown > 0 { "well, with remarks" } else { verdict };
    let took = output::duration(Duration::from_millis(u64::try_from(took.as_millis()).unwrap_or(u64::MAX)));
    lines.push(format!("\n{verdict}: {fail} failed, {warn} warnings, {unknown} unknown, {ok} ok, in {took}"));
    lines.join("\n")
}

fn junit(outcomes: &[Outcome]) -> String {
    let (failures, skipped) = (count(outcomes, Found::Fail), count(outcomes, Found::Unknown));
    let mut lines = vec![
        r#"<?xml version="1.0" encoding="UTF-8"?>"#.to_owned(),
        format!(
            r#"<testsuite name="kasbah check" tests="{}" failures="{failures}" skipped="{skipped}">"#,
            outcomes.len()
        ),
    ];
    for Outcome { check, found, value } in outcomes {
        let (title, value, remedy) = (escaped(check.title), escaped(value), escaped(check.remedy));
        let inner = match found {
            Found::Fail => format!(r#"<failure message="{value}">{remedy}</failure>"#),
            Found::Unknown => format!(r#"<skipped message="{value}"/>"#),
            Found::Warn => format!("<system-out>warning: {value}: {remedy}</system-out>"),
            Found::Ok => format!("<system-out>{value}</system-out>"),
        };
        lines.push(format!(r#"  <testcase classname="{}" name="{title}">{inner}</testcase>"#, check.id));
    }
    lines.push("</testsuite>".to_owned());
    lines.join("\n")
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::super::rules::outcome;
    use super::*;

    fn outcomes() -> Vec<Outcome> {
        let all = [("CA-01", Found::Ok), ("CA-07", Found::Fail), ("ID-02", Found::Warn), ("HO-04", Found::Unknown)];
        all.into_iter().filter_map(|(id, found)| outcome(id, (found, "<value> & \"more\"".into()))).collect()
    }

    #[test]
    fn people_see_values_and_remedies() {
        let text = text(&outcomes(), Duration::from_millis(1800));
        assert!(text.contains("FAIL  CA-07   database") && text.contains("-> see the CA's log"), "{text}");
        assert!(text.ends_with("NOT WELL: 1 failed, 1 warnings, 1 unknown, 1 ok, in 1s800ms"), "{text}");
    }

    #[test]
    fn build_servers_get_well_formed_xml() {
        let report = junit(&outcomes());
        assert!(report.contains(r#"tests="4" failures="1" skipped="1""#), "{report}");
        assert!(report.contains("&lt;value&gt; &amp; &quot;more&quot;") && !report.contains("<value>"), "{report}");
    }
}
