//! What happened, as Markdown and as HTML with a picture of the time.

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::load::Seen;
use crate::resting::Row;

pub(crate) struct Report {
    /// The drill's name, also of its files.
    pub(crate) name: &'static str,
    pub(crate) begun: Instant,
    agents: u64,
    processes: usize,
    /// Whose connections were counted.
    pub(crate) proxies: Vec<String>,
    pub(crate) acts: Vec<Act>,
    pub(crate) loads: Vec<Seen>,
    /// What stock Envoy has seen.
    pub(crate) envoy: Value,
    pub(crate) error: Option<String>,
}

/// A part of the drill.
#[derive(Default)]
pub(crate) struct Act {
    pub(crate) name: String,
    /// After the beginning of the drill.
    pub(crate) at: Duration,
    pub(crate) steps: Vec<(String, Duration)>,
    /// When each proxy accepted the last of somebody who was revoked.
    pub(crate) cuts: Vec<Cut>,
    /// What connections rested on, step by step.
    pub(crate) rows: Vec<Row>,
}

/// The end of what somebody revoked could do at one proxy.
#[derive(Clone, Debug)]
pub(crate) struct Cut {
    pub(crate) proxy: String,
    pub(crate) what: &'static str,
    /// How often it was accepted.
    pub(crate) accepted: u64,
    /// When the last was, after the revocation began; zero for before it.
    pub(crate) last: Duration,
}

impl Act {
    pub(crate) fn of(steps: Vec<(String, Duration)>) -> Self {
        Self { steps, ..Self::default() }
    }

    fn took(&self) -> Duration {
        self.steps.iter().map(|(_, took)| *took).sum()
    }

    fn steps(&self) -> String {
        let steps = self.steps.iter().map(|(name, took)| format!("{name} {} ms", took.as_millis()));
        steps.collect::<Vec<_>>().join(", ")
    }
}

impl Report {
    pub(crate) fn new(name: &'static str, status: &Value, processes: usize) -> Self {
        let agents = status["total"].as_u64().unwrap_or_default();
        let (proxies, acts, loads) = (Vec::new(), Vec::new(), Vec::new());
        Self { name, begun: Instant::now(), agents, processes, proxies, acts, loads, envoy: Value::Null, error: None }
    }

    fn title(&self) -> String {
        let (first, rest) = self.name.split_at(1);
        format!("{}{rest} drill", first.to_uppercase())
    }

    fn verdict(&self) -> String {
        match &self.error {
            None => "everything went through and no request failed".into(),
            Some(error) => format!("FAILED: {}", error.lines().next().unwrap_or_default()),
        }
    }

    fn stage(&self) -> String {
        format!(
            "{} agents; 4 proxies of the demo, 2 of further nodes, 1 stock Envoy; {} processes of the demo; {:.1} s",
            self.agents,
            self.processes,
            self.begun.elapsed().as_secs_f64()
        )
    }

    /// What the loads have seen, Envoy's last.
    fn loads(&self) -> Vec<(&str, u64, u64, u64)> {
        let of = |seen: &'_ Seen| (seen.answered, seen.failed, seen.reopened);
        let mut rows: Vec<(&str, u64, u64, u64)> = Vec::new();
        for seen in &self.loads {
            let (answered, failed, reopened) = of(seen);
            rows.push((seen.name.as_str(), answered, failed, reopened));
        }
        if let (Some(answered), Some(failed)) = (self.envoy["answered"].as_u64(), self.envoy["failed"].as_u64()) {
            rows.push(("HTTP: stock Envoy, both ways", answered, failed, 0));
        }
        let sum = |of: fn(&(&str, u64, u64, u64)) -> u64| rows.iter().map(of).sum();
        rows.push(("all", sum(|row| row.1), sum(|row| row.2), sum(|row| row.3)));
        rows
    }

    /// With the act that each belongs to, and a cell for each proxy.
    fn rows(&self) -> impl Iterator<Item = (&str, &str, Vec<String>)> {
        let cells = |row: &Row| (0..self.proxies.len()).map(|place| row.cell(place)).collect();
        self.acts
            .iter()
            .flat_map(move |act| act.rows.iter().map(move |row| (act.name.as_str(), &*row.step, cells(row))))
    }

    fn rows_markdown(&self) -> String {
        if self.rows().next().is_none() {
            return String::new();
        }
        let mut text = format!("\n{ROWS}.\n\n| act | step | {} |\n|---|---|", self.proxies.join(" | "));
        text.push_str(&"---|".repeat(self.proxies.len()));
        for (act, step, cells) in self.rows() {
            text.push_str(&format!("\n| {act} | {step} | {} |", cells.join(" | ")));
        }
        text.push('\n');
        text
    }

    fn rows_html(&self) -> String {
        if self.rows().next().is_none() {
            return String::new();
        }
        let rows = self
            .rows()
            .map(|(act, step, cells)| format!("<tr><td>{}<td>{step}<td>{}\n", escaped(act), cells.join("<td>")));
        let (rows, proxies) = (rows.collect::<String>(), self.proxies.join("<th>"));
        format!("<p>{ROWS}.\n<table><tr><th>act<th>step<th>{proxies}\n{rows}</table>\n")
    }

    /// With the act that each belongs to.
    pub(crate) fn cuts(&self) -> impl Iterator<Item = (&str, &Cut)> {
        self.acts.iter().flat_map(|act| act.cuts.iter().map(|cut| (act.name.as_str(), cut)))
    }

    pub(crate) fn markdown(&self) -> String {
        let mut text = format!("# {}\n\n{}.\n\n{}\n\n", self.title(), self.verdict(), self.stage());
        text.push_str("| at, s | act | steps |\n|---|---|---|\n");
        for act in &self.acts {
            text.push_str(&format!("| {:.1} | {} | {} |\n", act.at.as_secs_f64(), act.name, act.steps()));
        }
        if self.cuts().next().is_some() {
            text.push_str(
                "\n| act | proxy | what of the revoked | accepted | the last, ms after the command began |\n",
            );
            text.push_str("|---|---|---|---|---|\n");
            for (act, Cut { proxy, what, accepted, last }) in self.cuts() {
                text.push_str(&format!("| {act} | {proxy} | {what} | {accepted} | {} |\n", last.as_millis()));
            }
        }
        text.push_str(&self.rows_markdown());
        text.push_str("\n| load | answered | failed | re-opened |\n|---|---|---|---|\n");
        for (name, answered, failed, reopened) in self.loads() {
            text.push_str(&format!("| {name} | {answered} | {failed} | {reopened} |\n"));
        }
        text
    }

    pub(crate) fn html(&self) -> String {
        let acts = self.acts.iter().map(|act| {
            format!("<tr><td>{:.1}<td>{}<td>{}\n", act.at.as_secs_f64(), escaped(&act.name), escaped(&act.steps()))
        });
        let cuts = self.cuts().map(|(act, Cut { proxy, what, accepted, last })| {
            let (act, proxy, last) = (escaped(act), escaped(proxy), last.as_millis());
            format!("<tr><td>{act}<td>{proxy}<td>{what}<td>{accepted}<td>{last}\n")
        });
        let mut cuts: String = cuts.collect();
        if !cuts.is_empty() {
            let head =
                "<tr><th>act<th>proxy<th>what of the revoked<th>accepted<th>the last, ms after the command began";
            cuts = format!("{}\n<table>{head}\n{cuts}</table>\n", self.picture_of_cuts());
        }
        let loads = self.loads().into_iter().map(|(name, answered, failed, reopened)| {
            format!("<tr><td>{}<td>{answered}<td>{failed}<td>{reopened}\n", escaped(name))
        });
        format!(
            "<!doctype html><meta charset=utf-8><title>{0}</title>\n<style>{STYLE}</style>\n<h1>{0}</h1>\n<p>{1}.\n<p>{2}\n{3}\n\
             <table><tr><th>at, s<th>act<th>steps\n{4}</table>\n{cuts}{6}<table><tr><th>load<th>answered<th>failed<th>re-opened\n{5}</table>\n",
            self.title(),
            escaped(&self.verdict()),
            escaped(&self.stage()),
            self.picture(),
            acts.collect::<String>(),
            loads.collect::<String>(),
            self.rows_html(),
        )
    }

    /// A bar for each act, on one axis of time.
    fn picture(&self) -> String {
        let whole = self.acts.last().map_or(1.0, |act| (act.at + act.took()).as_secs_f64());
        let bars = self.acts.iter().map(|act| Bar {
            name: format!("{} ({} ms)", act.name, act.took().as_millis()),
            begin: act.at.as_secs_f64(),
            took: act.took().as_secs_f64(),
        });
        drawn("when each act was", whole, &bars.collect::<Vec<_>>())
    }

    /// A bar for each cut, from the moment the revocation was asked for to the last that was accepted.
    fn picture_of_cuts(&self) -> String {
        let whole = self.cuts().map(|(_, cut)| cut.last.as_secs_f64()).fold(0.0, f64::max);
        let bars = self.cuts().map(|(act, cut)| Bar {
            name: format!("{} ms, {}, {}, {act}", cut.last.as_millis(), cut.proxy, cut.what),
            begin: 0.0,
            took: cut.last.as_secs_f64(),
        });
        // Room for the words.
        drawn("the last that each proxy accepted", whole * 2.5, &bars.collect::<Vec<_>>())
    }
}

/// A stretch of time, in seconds.
struct Bar {
    name: String,
    begin: f64,
    took: f64,
}

fn drawn(label: &str, whole: f64, bars: &[Bar]) -> String {
    let place = |secs: f64| secs / whole.max(0.001) * WIDTH;
    let drawn = bars.iter().enumerate().map(|(row, bar)| {
        let (x, y, width) = (place(bar.begin), row * ROW, place(bar.took).max(2.0));
        let (anchor, at) = if x > WIDTH / 2.0 { ("end", x - 6.0) } else { ("start", x + width + 6.0) };
        format!(
            "<rect x='{x:.1}' y='{y}' width='{width:.1}' height='12'/><text x='{at:.1}' y='{}' text-anchor='{anchor}'>{}</text>\n",
            y + 10,
            escaped(&bar.name),
        )
    });
    let (height, drawn) = (bars.len() * ROW, drawn.collect::<String>());
    format!("<svg viewBox='0 0 {WIDTH} {height}' role='img' aria-label='{label}'>\n{drawn}</svg>")
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}

/// What the table of connections says.
const ROWS: &str = "Connections between proxies that rest on the root which is replaced, of all that are open: the most during the step, \
and the last before the next. Envoy does not say what its connections were made with; each of them ends at one of our proxies and is \
counted there";
const WIDTH: f64 = 900.0;
const ROW: usize = 18;
const STYLE: &str = "body{font:15px system-ui;max-width:60rem;margin:2rem auto;color:#222}table{border-collapse:collapse;margin:1rem 0}\
td,th{border:1px solid #ccc;padding:.2rem .6rem;text-align:left}svg{width:100%}rect{fill:#2a6f97}text{font-size:11px}";
