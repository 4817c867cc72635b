//! Taking a step of a rotation: what is stored is read, the machine is asked, a new authority is tried, and the whole
//! change is written in one transaction. A server that dies in between has done nothing or everything.

use std::collections::BTreeSet;
use std::time::SystemTime;

use identity::authority::{RevokedSerial, X509Authority};
use identity::bundle::TrustBundle;
use identity::jwt::JwtAuthorityKey;
use identity::revocation::{RevocationReason, serial_bytes};
use identity::summary::CertificateSummary;
use identity::wit::WitAuthorityKey;

use super::{Authorities, AuthoritiesError, rows, trial};
use crate::agent::Agent;
use crate::certifier::secs;
use crate::custody::Place;
use crate::rotation::machine::{Line, Member, Mode, Moved, Node, Refused, Step, World};
use crate::store::{
    Acknowledgement, AuthoritiesChange, AuthorityKind, AuthorityRow, AuthorityState, Store, StoreError,
    StoredAuthorities, TakenStep,
};

/// What is asked of a rotation. The authority to be prepared is made here.
#[derive(Clone, Debug)]
pub(crate) enum Asked {
    Prepare(Mode),
    Step(Step),
}

/// Why a step was not taken.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StepError {
    #[error(transparent)]
    Refused(#[from] Refused),
    #[error("another server changed the authorities at the same time; try again")]
    Busy,
    #[error(transparent)]
    Authorities(#[from] AuthoritiesError),
}

impl From<StoreError> for StepError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::AuthorityChanged => Self::Busy,
            error => Self::Authorities(error.into()),
        }
    }
}

/// The nodes that a rotation counts on.
pub(crate) fn counted<'a>(agents: impl IntoIterator<Item = &'a Agent>, now: i64) -> Vec<Node> {
    let counted = agents.into_iter().filter(|agent| agent.counts(now));
    counted.map(|agent| Node { id: agent.id.to_string(), enforced: agent.bundle_sequence }).collect()
}

impl Authorities {
    /// Takes a step; when it answers, the step is stored and in force on this server.
    pub(crate) async fn step(
        &self,
        store: &Store,
        kind: AuthorityKind,
        asked: &Asked,
        now: SystemTime,
    ) -> Result<(), StepError> {
        let _one = self.changing.lock().await;
        self.step_alone(store, kind, asked, now).await
    }

    /// The same for a caller that holds the lock.
    pub(super) async fn step_alone(
        &self,
        store: &Store,
        kind: AuthorityKind,
        asked: &Asked,
        now: SystemTime,
    ) -> Result<(), StepError> {
        for _ in 0..TRIES_MAX {
            let stored = store.authorities().await?;
            // From the database and not from memory: nodes may report to other servers.
            let agents = store.agents_now().await?;
            let nodes = counted(&agents, secs(now));
            let line = rows::line(&stored, kind);
            let (step, made) = match asked {
                Asked::Prepare(mode) => {
                    let made = self.successor(kind, &stored, now)?;
                    (Step::Prepare(member_of(&made), *mode), Some(made))
                }
                Asked::Step(step) => (step.clone(), None),
            };
            let next_sequence = stored.bundle_sequence + 1;
            let moved = line.take(&step, World { nodes: &nodes, next_sequence, now: secs(now), in_use_until: 0 })?;
            let mut change = self.change(kind, &stored, &line, moved, made, now)?;
            if !matches!(step, Step::Forget(_)) {
                let taken = taken(kind, &line, &step, &agents, secs(now));
                change.taken = Some(TakenStep { actor: store.actor(), ..taken });
            }
            for row in &change.put {
                tracing::info!(kind = row.kind.as_str(), id = row.id, state = row.state.as_str(), "authority changed");
            }
            for id in &change.gone {
                tracing::info!(id, "authority dropped");
            }
            match store.change_authorities(change, stored.revision).await {
                Err(StoreError::AuthorityChanged) => continue,
                written => written?,
            }
            return Ok(self.read(store, now).await?);
        }
        Err(StepError::Busy)
    }

    /// A new authority, tried.
    fn successor(
        &self,
        kind: AuthorityKind,
        stored: &StoredAuthorities,
        now: SystemTime,
    ) -> Result<AuthorityRow, AuthoritiesError> {
        let (state, trust_domain, ttl) = (AuthorityState::Prepared, &self.keys.trust_domain, self.ttls.signing);
        match kind {
            AuthorityKind::Root | AuthorityKind::X509 => {
                if active_root(stored).is_some_and(|root| root.place == Place::Offline) {
                    return Err(AuthoritiesError::Offline);
                }
                let made = self.keys.places.make()?;
                let root = X509Authority::root_of(trust_domain, made.key.clone(), self.ttls.root, now)?;
                let certificate = root.certificate().clone();
                let bundle = TrustBundle::from_x509_authorities(trust_domain.clone(), [certificate])?;
                trial::x509(&root.generate_intermediate(ttl, now)?, &bundle, now)?;
                self.keys.keep_root(&root, &made, state, 0, now)
            }
            AuthorityKind::Jwt => {
                let made = self.keys.places.make_for_tokens()?;
                let key = JwtAuthorityKey::of(made.key.clone(), None)?;
                let mut bundle = TrustBundle::new(trust_domain.clone());
                bundle.jwt_authorities.push(key.public(None));
                trial::jwt(&key, &bundle, now)?;
                self.keys.keep_token_key(kind, key.key_id(), &made, state, 0, ttl, now)
            }
            AuthorityKind::Wit => {
                let made = self.keys.places.make_for_tokens()?;
                let key = WitAuthorityKey::of(made.key.clone(), None)?;
                let mut bundle = TrustBundle::new(trust_domain.clone());
                bundle.wit_authorities.push(key.public(None));
                trial::wit(&key, &bundle, now)?;
                self.keys.keep_token_key(kind, key.key_id(), &made, state, 0, ttl, now)
            }
        }
    }

    /// The rows that change when a line moves.
    pub(super) fn change(
        &self,
        kind: AuthorityKind,
        stored: &StoredAuthorities,
        before: &Line,
        moved: Moved,
        made: Option<AuthorityRow>,
        now: SystemTime,
    ) -> Result<AuthoritiesChange, AuthoritiesError> {
        let line = moved.line;
        let mut change = AuthoritiesChange { publishes: moved.publishes, ..AuthoritiesChange::default() };
        for member in &line.members {
            let known = stored.rows.iter().find(|row| row.id == member.id).or(made.as_ref());
            let row = known.ok_or(AuthoritiesError::Missing("authority of a rotation"))?;
            if before.member(&member.id) != Some(member) {
                let (state, published, tainted) = (member.stage, member.published, member.tainted);
                change.put.push(AuthorityRow { state, published, tainted, ..row.clone() });
            }
        }
        let gone = before.members.iter().filter(|member| line.member(&member.id).is_none());
        change.gone = gone.map(|member| member.id.clone()).collect();
        let active = |line: &Line| line.active().map(|member| member.id.clone());
        if let Some(id) = active(&line).filter(|id| active(before).as_ref() != Some(id)) {
            self.begin(kind, stored, &id, &mut change, now)?;
        }
        if kind == AuthorityKind::Root {
            if before.running.as_ref().is_some_and(|running| running.mode == Mode::Compromised) {
                self.sign_off(stored, &mut change, now)?;
            }
            drop_below_gone(stored, &mut change);
        }
        if (&before.running, &before.waived) != (&line.running, &line.waived) {
            change.rotation = Some(rows::rotation_row(kind, &line));
        }
        Ok(change)
    }

    /// Compromised roots tell with their last signature that nothing below them counts any more: what was proven by them
    /// loses its connections.
    fn sign_off(
        &self,
        stored: &StoredAuthorities,
        change: &mut AuthoritiesChange,
        now: SystemTime,
    ) -> Result<(), AuthoritiesError> {
        change.now = Some(now);
        for root in stored.rows.iter().filter(|row| change.gone.contains(&row.id) && row.not_after > secs(now)) {
            if !self.keys.holds(root) || !rows::may_sign_lists(root) {
                continue;
            }
            let below = stored.rows.iter().filter(|row| row.kind == AuthorityKind::X509 && row.issuer_id == root.id);
            let revoked = below.map(|row| revoked_authority(row, now)).collect::<Result<Vec<_>, _>>()?;
            if !revoked.is_empty() {
                change.last_lists.push((self.keys.open_x509(root)?, revoked));
            }
        }
        Ok(())
    }

    /// An authority is about to sign: it is tried once more, against the bundle that everybody has by now. A root gets
    /// an intermediate; one whose key is not here has it already.
    fn begin(
        &self,
        kind: AuthorityKind,
        stored: &StoredAuthorities,
        id: &str,
        change: &mut AuthoritiesChange,
        now: SystemTime,
    ) -> Result<(), AuthoritiesError> {
        let row = stored.rows.iter().find(|row| row.id == id).ok_or(AuthoritiesError::Missing("new authority"))?;
        let published = self.keys.publish(stored, secs(now))?;
        match kind {
            AuthorityKind::Root | AuthorityKind::X509 => {
                let below = if row.place == Place::Offline {
                    installed_below(stored, id, secs(now)).ok_or(AuthoritiesError::Offline)?.clone()
                } else {
                    let made = self.keys.places.make()?;
                    let signer = self.keys.open_x509(row)?;
                    let below = signer.intermediate_of(made.key.clone(), self.ttls.signing, now)?;
                    self.keys.keep_intermediate(&below, &made, id, now)?
                };
                trial::x509(&self.keys.open_x509(&below)?, &published, now)?;
                retire_intermediate(stored, change);
                change.put.push(AuthorityRow { state: AuthorityState::Active, ..below });
                Ok(())
            }
            AuthorityKind::Jwt => trial::jwt(&self.keys.open_jwt(row)?, &published, now),
            AuthorityKind::Wit => trial::wit(&self.keys.open_wit(row)?, &published, now),
        }
    }

    /// A new intermediate under the root that signs, in the place of the one before.
    pub(super) async fn renew_intermediate(&self, store: &Store, now: SystemTime) -> Result<(), StepError> {
        let stored = store.authorities().await?;
        let root = active_root(&stored).ok_or(AuthoritiesError::Missing("root"))?;
        let mut change = AuthoritiesChange::default();
        self.begin(AuthorityKind::Root, &stored, &root.id, &mut change, now)?;
        store.change_authorities(change, stored.revision).await?;
        self.read(store, now).await?;
        tracing::info!(id = self.current().x509_id, root = root.id, "intermediate renewed");
        Ok(())
    }

    /// For tests of what follows.
    #[cfg(test)]
    pub(crate) async fn renew_intermediate_now(&self, store: &Store, now: SystemTime) {
        self.renew_intermediate(store, now).await.unwrap();
    }

    /// Drops intermediates whose life is over.
    pub(super) async fn drop_ended(&self, store: &Store, now: SystemTime) -> Result<(), StepError> {
        let stored = store.authorities().await?;
        let ended = stored.rows.iter().filter(|row| {
            let over = row.not_after <= secs(now) && row.state != AuthorityState::Active;
            over && row.kind == AuthorityKind::X509
        });
        let gone = ended.map(|row| row.id.clone()).collect();
        let change = AuthoritiesChange { gone, ..AuthoritiesChange::default() };
        store.change_authorities(change, stored.revision).await?;
        Ok(self.read(store, now).await?)
    }
}

fn active_root(stored: &StoredAuthorities) -> Option<&AuthorityRow> {
    stored.rows.iter().find(|row| row.kind == AuthorityKind::Root && row.state == AuthorityState::Active)
}

/// The newest intermediate that was installed below a root whose key is not here.
fn installed_below<'a>(stored: &'a StoredAuthorities, root_id: &str, now: i64) -> Option<&'a AuthorityRow> {
    let below = |row: &&AuthorityRow| row.kind == AuthorityKind::X509 && row.issuer_id == root_id;
    let usable = |row: &&AuthorityRow| !row.certificate.is_empty() && row.not_after > now;
    stored.rows.iter().filter(below).filter(usable).max_by_key(|row| row.not_after)
}

pub(super) fn retire_intermediate(stored: &StoredAuthorities, change: &mut AuthoritiesChange) {
    let active = |row: &&AuthorityRow| row.kind == AuthorityKind::X509 && row.state == AuthorityState::Active;
    for row in stored.rows.iter().filter(active) {
        change.put.push(AuthorityRow { state: AuthorityState::Old, ..row.clone() });
    }
}

/// What the receipt will say about a step that `line` takes.
fn taken(kind: AuthorityKind, line: &Line, step: &Step, agents: &[Agent], now: i64) -> TakenStep {
    let (word, target) = match step {
        Step::Prepare(member, _) => ("prepare", member.id.clone()),
        Step::Activate(id) => ("activate", id.clone()),
        Step::Taint(id) => ("taint", id.clone()),
        Step::Revoke(id) => ("revoke", id.clone()),
        Step::Waive(node) => ("waive", node.clone()),
        Step::Forget(ids) => ("forget", ids.join(" ")),
        Step::Resume => ("resume", String::new()),
        Step::Abort => ("abort", String::new()),
    };
    let bundle_sequence = match step {
        Step::Activate(_) | Step::Taint(_) | Step::Revoke(_) => line.needed(step),
        _ => 0,
    };
    let has = agents.iter().filter(|agent| bundle_sequence > 0 && agent.counts(now));
    let has = has.filter(|agent| agent.bundle_sequence >= bundle_sequence).take(ACKNOWLEDGED_MAX);
    let acknowledged = has.map(|agent| Acknowledgement {
        node: agent.id.to_string(),
        bundle_sequence: agent.bundle_sequence,
        since: agent.bundle_since,
    });
    TakenStep {
        kind,
        started_at: line.running.as_ref().map_or(now, |running| running.started_at),
        step: word.into(),
        at: now,
        actor: String::new(),
        target,
        bundle_sequence,
        acknowledged: acknowledged.collect(),
        waived: line.waived.iter().cloned().collect(),
    }
}

/// Intermediates go with their root.
fn drop_below_gone(stored: &StoredAuthorities, change: &mut AuthoritiesChange) {
    let roots: BTreeSet<&String> = change.gone.iter().collect();
    let below = stored.rows.iter().filter(|row| row.kind == AuthorityKind::X509 && roots.contains(&row.issuer_id));
    let below: Vec<String> = below.map(|row| row.id.clone()).collect();
    change.gone.extend(below);
}

fn revoked_authority(row: &AuthorityRow, at: SystemTime) -> Result<RevokedSerial, AuthoritiesError> {
    let unusable = || AuthoritiesError::Unusable("signing authority");
    let chain = identity::pem::decode_certificates(row.certificate.as_bytes())?;
    let summary = chain.first().and_then(|own| CertificateSummary::decode(own).ok()).ok_or_else(unusable)?;
    let serial = serial_bytes(&summary.serial).ok_or_else(unusable)?;
    Ok(RevokedSerial { serial, at, reason: Some(RevocationReason::CaCompromise) })
}

pub(super) fn member_of(row: &AuthorityRow) -> Member {
    Member {
        id: row.id.clone(),
        stage: row.state,
        not_before: row.not_before,
        not_after: row.not_after,
        published: row.published,
        tainted: row.tainted,
    }
}

const TRIES_MAX: usize = 3;
/// The most nodes that one step of a receipt names.
const ACKNOWLEDGED_MAX: usize = 100_000;
