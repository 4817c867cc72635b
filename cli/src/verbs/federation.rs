//! `kasbah federation`: whose bundles are fetched, from where, and how that goes.

use proto::kasbah::ca::v1::FederationState;
use proto::spire::api::types::federation_relationship::BundleEndpointProfile;
use proto::spire::api::types::{
    Bundle, FederationRelationship, FederationRelationshipMask, HttpsWebProfile, HttpsspiffeProfile,
};
use serde_json::{Value, json};

use super::{ca, time_text, wait};
use crate::args::{BundleFormat, EndpointArg, FederationCommand, ProfileArg};
use crate::bundle_message;
use crate::ca_client::CaClient;
use crate::exit::{Exit, Failure};
use crate::output::{self, Format};

pub(crate) fn run(command: &FederationCommand) -> Result<(), Failure> {
    wait(dispatch(command))
}

async fn dispatch(command: &FederationCommand) -> Result<(), Failure> {
    match command {
        FederationCommand::Create {
            ca: arg,
            trust_domain,
            bundle_endpoint_url,
            bundle_endpoint_profile,
            endpoint,
            output,
        } => {
            let wanted = FederationRelationship {
                trust_domain: trust_domain.clone(),
                bundle_endpoint_url: bundle_endpoint_url.clone(),
                bundle_endpoint_profile: Some(profile(*bundle_endpoint_profile, endpoint)?),
                trust_domain_bundle: first_bundle(trust_domain, endpoint)?,
            };
            let created = ca(arg).await?.create_relationship(wanted).await?;
            print(output.output, &[(created, None)])
        }
        FederationCommand::Update {
            ca: arg,
            trust_domain,
            bundle_endpoint_url,
            bundle_endpoint_profile,
            endpoint,
            output,
        } => {
            let (wanted, mask) = change(trust_domain, bundle_endpoint_url, *bundle_endpoint_profile, endpoint)?;
            let updated = ca(arg).await?.update_relationship(wanted, mask).await?;
            print(output.output, &[(updated, None)])
        }
        FederationCommand::List { ca: arg, output } => {
            let ca = ca(arg).await?;
            let relationships = ca.relationships().await?;
            print_all(output.output, &with_states(&ca, relationships, "").await?)
        }
        FederationCommand::Show { ca: arg, trust_domain, output } => {
            let ca = ca(arg).await?;
            let found = ca.relationship(trust_domain).await?;
            let name = found.trust_domain.clone();
            print(output.output, &with_states(&ca, vec![found], &name).await?)
        }
        FederationCommand::Delete { ca: arg, trust_domain } => {
            ca(arg).await?.delete_relationship(trust_domain).await?;
            output::message(&format!("no longer federated with {trust_domain}; its bundle is gone"));
            Ok(())
        }
        FederationCommand::Refresh { ca: arg, trust_domain } => {
            ca(arg).await?.refresh_bundle(trust_domain).await?;
            output::message(&format!("the bundle of {trust_domain} is the newest"));
            Ok(())
        }
    }
}

type Shown = (FederationRelationship, Option<FederationState>);

async fn with_states(
    ca: &CaClient,
    relationships: Vec<FederationRelationship>,
    only: &str,
) -> Result<Vec<Shown>, Failure> {
    let states = ca.federation_states(only).await?;
    let state = |name: &str| states.iter().find(|state| state.trust_domain == name).cloned();
    Ok(relationships
        .into_iter()
        .map(|one| {
            let state = state(&one.trust_domain);
            (one, state)
        })
        .collect())
}

fn profile(profile: ProfileArg, endpoint: &EndpointArg) -> Result<BundleEndpointProfile, Failure> {
    match (profile, &endpoint.endpoint_spiffe_id) {
        (ProfileArg::Web, None) => Ok(BundleEndpointProfile::HttpsWeb(HttpsWebProfile {})),
        (ProfileArg::Spiffe, Some(id)) => {
            Ok(BundleEndpointProfile::HttpsSpiffe(HttpsspiffeProfile { endpoint_spiffe_id: id.clone() }))
        }
        (ProfileArg::Web, Some(_)) => {
            Err(Failure::new(Exit::Usage, "--endpoint-spiffe-id belongs to the profile https_spiffe"))
        }
        (ProfileArg::Spiffe, None) => {
            Err(Failure::new(Exit::Usage, "the profile https_spiffe needs --endpoint-spiffe-id")
                .remedy("for a Kasbah or SPIRE server it is spiffe://TRUST_DOMAIN/spire/server"))
        }
    }
}

fn first_bundle(trust_domain: &str, endpoint: &EndpointArg) -> Result<Option<Bundle>, Failure> {
    let format = endpoint.trust_domain_bundle_format.unwrap_or(BundleFormat::Spiffe);
    let path = endpoint.trust_domain_bundle_path.as_deref();
    path.map(|path| bundle_message::read(trust_domain, format, Some(path))).transpose()
}

/// What is to change, and the mask that says so.
fn change(
    trust_domain: &str,
    url: &Option<String>,
    wanted: Option<ProfileArg>,
    endpoint: &EndpointArg,
) -> Result<(FederationRelationship, FederationRelationshipMask), Failure> {
    let wanted = wanted.or_else(|| endpoint.endpoint_spiffe_id.as_ref().map(|_| ProfileArg::Spiffe));
    let relationship = FederationRelationship {
        trust_domain: trust_domain.to_owned(),
        bundle_endpoint_url: url.clone().unwrap_or_default(),
        bundle_endpoint_profile: wanted.map(|wanted| profile(wanted, endpoint)).transpose()?,
        trust_domain_bundle: first_bundle(trust_domain, endpoint)?,
    };
    let mask = FederationRelationshipMask {
        bundle_endpoint_url: url.is_some(),
        bundle_endpoint_profile: relationship.bundle_endpoint_profile.is_some(),
        trust_domain_bundle: relationship.trust_domain_bundle.is_some(),
    };
    if mask == FederationRelationshipMask::default() {
        return Err(Failure::new(Exit::Usage, "nothing to change is named"));
    }
    Ok((relationship, mask))
}

/// One relationship: a document of its own.
fn print(format: Format, shown: &[Shown]) -> Result<(), Failure> {
    let value = shown.first().map(|(one, state)| document(one, state.as_ref())).unwrap_or_default();
    output::print(format, &value, || table(shown))
}

fn print_all(format: Format, shown: &[Shown]) -> Result<(), Failure> {
    let value: Vec<Value> = shown.iter().map(|(one, state)| document(one, state.as_ref())).collect();
    output::print(format, &value, || table(shown))
}

fn document(relationship: &FederationRelationship, state: Option<&FederationState>) -> Value {
    let (profile, endpoint_id) = profile_text(relationship);
    let mut value = json!({
        "trust_domain": relationship.trust_domain,
        "bundle_endpoint_url": relationship.bundle_endpoint_url,
        "bundle_endpoint_profile": profile,
        "endpoint_spiffe_id": endpoint_id,
        "bundle_sequence": relationship.trust_domain_bundle.as_ref().map(|bundle| bundle.sequence_number),
    });
    if let (Some(state), Some(members)) = (state, value.as_object_mut()) {
        let time = |secs: i64| (secs > 0).then(|| time_text(secs));
        members.insert("succeeded_at".into(), json!(time(state.succeeded_at)));
        members.insert("next_at".into(), json!(time(state.next_at)));
        members.insert("failures".into(), json!(state.failures));
        members.insert("reason".into(), json!(state.reason));
        members.insert("problem".into(), json!(state.problem));
    }
    value
}

fn profile_text(relationship: &FederationRelationship) -> (&'static str, &str) {
    match &relationship.bundle_endpoint_profile {
        Some(BundleEndpointProfile::HttpsSpiffe(profile)) => ("https_spiffe", &profile.endpoint_spiffe_id),
        Some(BundleEndpointProfile::HttpsWeb(_)) => ("https_web", ""),
        None => ("", ""),
    }
}

fn table(shown: &[Shown]) -> String {
    let rows = shown.iter().map(|(one, state)| {
        let bundle =
            one.trust_domain_bundle.as_ref().map_or_else(|| "-".into(), |bundle| bundle.sequence_number.to_string());
        let (fetched, problem) = match state {
            Some(state) if state.succeeded_at > 0 => (time_text(state.succeeded_at), state.reason.clone()),
            Some(state) => ("never".to_owned(), state.reason.clone()),
            None => ("-".to_owned(), String::new()),
        };
        let problem = if problem.is_empty() { "-".to_owned() } else { problem };
        let url = one.bundle_endpoint_url.clone();
        [one.trust_domain.clone(), profile_text(one).0.to_owned(), url, bundle, fetched, problem]
    });
    output::table(["TRUST DOMAIN", "PROFILE", "URL", "BUNDLE", "FETCHED", "PROBLEM"], rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown() -> Shown {
        let profile = HttpsspiffeProfile { endpoint_spiffe_id: "spiffe://other.org/spire/server".into() };
        let relationship = FederationRelationship {
            trust_domain: "other.org".into(),
            bundle_endpoint_url: "https://b.other.org/".into(),
            bundle_endpoint_profile: Some(BundleEndpointProfile::HttpsSpiffe(profile)),
            trust_domain_bundle: Some(Bundle { sequence_number: 3, ..Bundle::default() }),
        };
        let state = FederationState {
            trust_domain: "other.org".into(),
            succeeded_at: 1_800_000_000,
            next_at: 1_800_000_300,
            failures: 1,
            reason: "FEDERATION_UNREACHABLE".into(),
            problem: "the endpoint cannot be reached".into(),
            ..FederationState::default()
        };
        (relationship, Some(state))
    }

    #[test]
    fn a_relationship_is_shown_the_same_way_each_time() {
        let (relationship, state) = shown();
        let golden = json!({
            "trust_domain": "other.org",
            "bundle_endpoint_url": "https://b.other.org/",
            "bundle_endpoint_profile": "https_spiffe",
            "endpoint_spiffe_id": "spiffe://other.org/spire/server",
            "bundle_sequence": 3,
            "succeeded_at": "2027-01-15T08:00:00Z",
            "next_at": "2027-01-15T08:05:00Z",
            "failures": 1,
            "reason": "FEDERATION_UNREACHABLE",
            "problem": "the endpoint cannot be reached",
        });
        assert_eq!(document(&relationship, state.as_ref()), golden);
        let golden = "TRUST DOMAIN  PROFILE       URL                   BUNDLE  FETCHED               PROBLEM\n\
                      other.org     https_spiffe  https://b.other.org/  3       2027-01-15T08:00:00Z  FEDERATION_UNREACHABLE";
        assert_eq!(table(&[shown()]), golden);
    }

    #[test]
    fn a_change_names_only_what_is_given() {
        let none = EndpointArg::default();
        let (_, mask) = change("other.org", &Some("https://x/".into()), None, &none).unwrap();
        assert_eq!(
            (mask.bundle_endpoint_url, mask.bundle_endpoint_profile, mask.trust_domain_bundle),
            (true, false, false)
        );
        assert_eq!(change("other.org", &None, None, &none).unwrap_err().exit, Exit::Usage);
        assert_eq!(change("other.org", &None, Some(ProfileArg::Spiffe), &none).unwrap_err().exit, Exit::Usage);
        let id = EndpointArg { endpoint_spiffe_id: Some("spiffe://other.org/x".into()), ..none };
        assert!(change("other.org", &None, None, &id).unwrap().1.bundle_endpoint_profile);
        assert_eq!(change("other.org", &None, Some(ProfileArg::Web), &id).unwrap_err().exit, Exit::Usage);
    }
}
