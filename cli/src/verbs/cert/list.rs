//! `kasbah cert list`: all certificates and keys of the mesh, those first that end first.

use std::time::SystemTime;

use serde_json::{Value, json};

use super::{Left, Life, source, time};
use crate::args::{DirArg, OutputArg};
use crate::exit::{Exit, Failure};
use crate::output;

struct Listed {
    holder: &'static str,
    name: String,
    serial: String,
    life: Life,
    renew_at: Option<String>,
}

pub(super) fn run(dir: &DirArg, expires_in: Option<Left>, output: OutputArg) -> Result<(), Failure> {
    let endpoints = source::endpoints(dir)?.ok_or_else(|| {
        Failure::refused(Exit::Unavailable, "MESH_NOT_RUNNING", format!("no mesh is known in {}", dir.dir.display()))
            .remedy("start one with `kasbah up`, or name its folder with --dir DIR or KASBAH_DIR")
    })?;
    let now = SystemTime::now();
    let mut listed = super::wait(gather(&endpoints))?;
    listed.retain(|one| expires_in.is_none_or(|limit| one.life.is_within(limit, now)));
    listed.sort_by(|one, two| (one.life.not_after, &one.name).cmp(&(two.life.not_after, &two.name)));
    let documents: Vec<Value> = listed.iter().map(|one| document(one, now)).collect();
    output::print(output.output, &documents, || {
        let rows = listed.iter().map(|one| {
            let renewal = one.renew_at.clone().unwrap_or_else(|| "-".into());
            [one.name.clone(), one.holder.into(), one.serial.clone(), one.life.text(now), renewal]
        });
        output::table(["NAME", "HELD BY", "SERIAL", "LIFE LEFT", "RENEWED AT"], rows)
    })
}

fn document(one: &Listed, now: SystemTime) -> Value {
    json!({
        "name": one.name,
        "held_by": one.holder,
        "serial": one.serial,
        "not_before": time(one.life.not_before),
        "not_after": time(one.life.not_after),
        "life_left": output::duration(std::time::Duration::from_secs(one.life.left(now).as_secs())),
        "life_left_percent": one.life.percent_left(now).round(),
        "renew_at": one.renew_at,
    })
}

/// What the CA and the agents say they have.
async fn gather(endpoints: &Value) -> Result<Vec<Listed>, Failure> {
    let (ca, agent) = (certs(endpoints, "/ca/admin").await?, certs(endpoints, "/agent/admin").await?);
    let mut listed = Vec::new();
    for authority in ca["authorities"].as_array().into_iter().flatten() {
        let text = |member: &str| authority[member].as_str().unwrap_or_default().to_owned();
        let name = format!("{} authority ({})", text("kind"), text("state"));
        listed.extend(entry("ca", name, text("id"), authority));
    }
    let own = |value: &Value| value["spiffe_id"].as_str().unwrap_or_default().to_owned();
    let serial = |value: &Value| value["serial"].as_str().unwrap_or_default().to_owned();
    listed.extend(entry("ca", own(&ca["own_svid"]), serial(&ca["own_svid"]), &ca["own_svid"]));
    listed.extend(entry("agent", own(&agent["agent"]), serial(&agent["agent"]), &agent["agent"]));
    for svid in agent["svids"].as_array().into_iter().flatten() {
        listed.extend(entry("agent", own(svid), serial(svid), svid));
    }
    Ok(listed)
}

async fn certs(endpoints: &Value, pointer: &str) -> Result<Value, Failure> {
    let admin = endpoints.pointer(pointer).and_then(Value::as_str).and_then(|admin| admin.parse().ok());
    let admin = admin.ok_or_else(|| Failure::new(Exit::Data, format!("endpoints.json has no {pointer}")))?;
    let away = |why: String| {
        Failure::new(Exit::Unavailable, format!("{admin} does not answer: {why}")).remedy("see `kasbah status`")
    };
    let (_, body) = runtime::ask::get(admin, "/certs").await.map_err(|error| away(error.to_string()))?;
    serde_json::from_slice(&body).map_err(|error| away(error.to_string()))
}

fn entry(holder: &'static str, name: String, serial: String, value: &Value) -> Option<Listed> {
    let moment = |member: &str| humantime::parse_rfc3339(value[member].as_str()?).ok();
    let life = Life { not_before: moment("not_before")?, not_after: moment("not_after")? };
    let renew_at = value["renew_at"].as_str().map(str::to_owned);
    Some(Listed { holder, name, serial, life, renew_at })
}
