//! What happened, as Markdown and as HTML with a picture of the time.

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::load::Seen;

pub(crate) struct Report {
    pub(crate) begun: Instant,
    agents: u64,
    processes: usize,
    pub(crate) acts: Vec<Act>,
    pub(crate) loads: Vec<Seen>,
    /// What stock Envoy has seen.
    pub(crate) envoy: Value,
    pub(crate) error: Option<String>,
}

/// A part of the drill.
pub(crate) struct Act {
    pub(crate) name: String,
    /// After the beginning of the drill.
    pub(crate) at: Duration,
    pub(crate) steps: Vec<(String, Duration)>,
}

impl Act {
    fn took(&self) -> Duration {
        self.steps.iter().map(|(_, took)| *took).sum()
    }
}

impl Report {
    pub(crate) fn new(status: &Value, processes: usize) -> Self {
        let agents = status["total"].as_u64().unwrap_or_default();
        let (acts, loads) = (Vec::new(), Vec::new());
        Self { begun: Instant::now(), agents, processes, acts, loads, envoy: Value::Null, error: None }
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

    pub(crate) fn markdown(&self) -> String {
        let mut text = format!("# Rotation drill\n\n{}.\n\n{}\n\n", self.verdict(), self.stage());
        text.push_str("| at, s | act | steps |\n|---|---|---|\n");
        for act in &self.acts {
            let steps: Vec<String> =
                act.steps.iter().map(|(name, took)| format!("{name} {} ms", took.as_millis())).collect();
            text.push_str(&format!("| {:.1} | {} | {} |\n", act.at.as_secs_f64(), act.name, steps.join(", ")));
        }
        text.push_str("\n| load | answered | failed |\n|---|---|---|\n");
        for Seen { name, answered, failed, .. } in &self.loads {
            text.push_str(&format!("| {name} | {answered} | {failed} |\n"));
        }
        if let (Some(answered), Some(failed)) = (self.envoy["answered"].as_u64(), self.envoy["failed"].as_u64()) {
            text.push_str(&format!("| HTTP: stock Envoy, both ways | {answered} | {failed} |\n"));
        }
        text
    }

    pub(crate) fn html(&self) -> String {
        let rows = |text: &str| text.replace('&', "&amp;").replace('<', "&lt;");
        let acts = self.acts.iter().map(|act| {
            let steps: Vec<String> =
                act.steps.iter().map(|(name, took)| format!("{} {} ms", rows(name), took.as_millis())).collect();
            format!("<tr><td>{:.1}<td>{}<td>{}\n", act.at.as_secs_f64(), rows(&act.name), steps.join(", "))
        });
        let loads = self
            .loads
            .iter()
            .map(|seen| format!("<tr><td>{}<td>{}<td>{}\n", rows(&seen.name), seen.answered, seen.failed));
        let envoy = match (self.envoy["answered"].as_u64(), self.envoy["failed"].as_u64()) {
            (Some(answered), Some(failed)) => {
                format!("<tr><td>HTTP: stock Envoy, both ways<td>{answered}<td>{failed}\n")
            }
            _ => String::new(),
        };
        format!(
            "<!doctype html><meta charset=utf-8><title>Rotation drill</title>\n<style>{STYLE}</style>\n<h1>Rotation drill</h1>\n<p>{}.\n<p>{}\n{}\n\
             <table><tr><th>at, s<th>act<th>steps\n{}</table>\n<table><tr><th>load<th>answered<th>failed\n{}{envoy}</table>\n",
            rows(&self.verdict()),
            rows(&self.stage()),
            self.picture(),
            acts.collect::<String>(),
            loads.collect::<String>(),
        )
    }

    /// A bar for each act, on one axis of time.
    fn picture(&self) -> String {
        let whole = self.acts.last().map_or(1.0, |act| (act.at + act.took()).as_secs_f64()).max(0.001);
        let place = |time: Duration| time.as_secs_f64() / whole * WIDTH;
        let bars = self.acts.iter().enumerate().map(|(row, act)| {
            let (x, y, width) = (place(act.at), row * ROW, place(act.took()).max(2.0));
            let name = act.name.replace('&', "&amp;").replace('<', "&lt;");
            let label = if x > WIDTH / 2.0 { ("end", x - 6.0) } else { ("start", x + width + 6.0) };
            format!(
                "<rect x='{x:.1}' y='{y}' width='{width:.1}' height='12'/><text x='{:.1}' y='{}' text-anchor='{}'>{name} ({} ms)</text>\n",
                label.1,
                y + 10,
                label.0,
                act.took().as_millis()
            )
        });
        let height = self.acts.len() * ROW;
        format!(
            "<svg viewBox='0 0 {WIDTH} {height}' role='img' aria-label='when each act was'>\n{}</svg>",
            bars.collect::<String>()
        )
    }
}

const WIDTH: f64 = 900.0;
const ROW: usize = 18;
const STYLE: &str = "body{font:15px system-ui;max-width:60rem;margin:2rem auto;color:#222}table{border-collapse:collapse;margin:1rem 0}\
td,th{border:1px solid #ccc;padding:.2rem .6rem;text-align:left}svg{width:100%}rect{fill:#2a6f97}text{font-size:11px}";
