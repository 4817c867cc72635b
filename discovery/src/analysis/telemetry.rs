//! Telemetry: providers that are missing or going.

use super::Context;
use super::message::Report;
use super::resource::What;

/// Access logs without a provider.
pub(crate) fn providers(context: &Context<'_>, report: &mut Report) {
    let defaults = context.set.mesh().map(|mesh| mesh.root().path("defaultProviders.accessLogging"));
    if defaults.is_some_and(|defaults| defaults.items().next().is_some()) {
        return;
    }
    for telemetry in context.set.of(What::Telemetry) {
        for log in telemetry.spec().get("accessLogging").items() {
            let is_off = log.get("disabled").is_true();
            if !is_off && log.get("providers").items().next().is_none() {
                report.tell("IST0157", telemetry, log, "access logs are asked for, and no provider writes them");
            }
        }
    }
}

/// Traces sent to Lightstep, which is deprecated.
pub(crate) fn lightstep(context: &Context<'_>, report: &mut Report) {
    let Some(mesh) = context.set.mesh() else { return };
    let providers = mesh.root().get("extensionProviders").items();
    let names: Vec<&str> = providers
        .filter(|provider| provider.get("lightstep").exists())
        .map(|provider| provider.get("name").text())
        .collect();
    for telemetry in context.set.of(What::Telemetry) {
        let tracing = telemetry.spec().get("tracing").items();
        for provider in tracing.flat_map(|tracing| tracing.get("providers").items()) {
            let name = provider.get("name");
            if names.contains(&name.text()) {
                let text =
                    format!("the provider `{}` is Lightstep's, which is deprecated; use opentelemetry", name.text());
                report.tell("IST0002", telemetry, name, text);
            }
        }
    }
}
