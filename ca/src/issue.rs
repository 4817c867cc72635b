//! Issuing: sign, write the record, and only then hand out.

pub(crate) mod downstream;
pub(crate) mod wit;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use identity::CertificateDer;
use identity::authority::{AuthorityError, LeafProfile};
use identity::csr::{Csr, CsrError};
use identity::digest;
use identity::jwt::{JwtSvidProfile, SignError};
use identity::spiffe_id::SpiffeId;

use crate::api::Caller;
use crate::audit::Act;
use crate::authorities::Signing;
use crate::certifier::{Certifier, Wanted, secs};
use crate::policy::KeyType;
use crate::random::sha256_hex;
use crate::refusal::Refusal;
use crate::store::{Issuance, IssuanceKind, Store, StoreError};

/// An X.509-SVID that the caller is entitled to; who makes one has checked that.
#[derive(Clone, Debug)]
pub(crate) struct X509Order {
    pub(crate) kind: IssuanceKind,
    pub(crate) id: SpiffeId,
    pub(crate) dns_names: Vec<String>,
    pub(crate) ip_addresses: Vec<IpAddr>,
    pub(crate) ttl: Duration,
    /// Empty when no entry allows it.
    pub(crate) entry_id: String,
    pub(crate) caller: String,
}

/// A JWT-SVID that the caller is entitled to.
#[derive(Clone, Debug)]
pub(crate) struct JwtOrder {
    pub(crate) kind: IssuanceKind,
    pub(crate) id: SpiffeId,
    pub(crate) audiences: Vec<String>,
    pub(crate) ttl: Duration,
    pub(crate) with_token_id: bool,
    pub(crate) entry_id: String,
    pub(crate) caller: String,
}

/// What may be signed now: the policy has allowed it, and the clock can be believed.
#[derive(Clone)]
pub(crate) struct Admission {
    now: SystemTime,
    signing: Arc<Signing>,
    ttl: Duration,
}

/// A signed certificate. It must not leave the process before its record is written.
#[derive(Clone, Debug)]
pub(crate) struct IssuedX509 {
    /// Leaf first, without the root.
    pub(crate) chain: Vec<CertificateDer<'static>>,
    pub(crate) serial: String,
    pub(crate) not_after: i64,
    /// When its holder is advised to renew it, Unix seconds; 0: there is no advice.
    pub(crate) renew_at: i64,
}

/// A signed token. It must not leave the process before its record is written.
#[derive(Clone)]
pub(crate) struct IssuedToken {
    pub(crate) token: String,
    pub(crate) issued_at: i64,
    pub(crate) expires_at: i64,
}

impl Certifier {
    /// Issues one certificate for the key of `csr`; nothing else of the request counts.
    pub(crate) async fn issue_x509(&self, order: X509Order, csr: &Csr) -> Result<IssuedX509, Refusal> {
        let coming = self.store.coming();
        let (issued, record) = self.sign_x509(&order, csr)?;
        drop(coming);
        match self.record(vec![record]).await {
            // The new authority signs; who asked need not know.
            Err(Refusal::Store(StoreError::AuthorityChanged)) => (),
            recorded => return recorded.map(|()| issued),
        }
        let (issued, record) = self.sign_x509(&order, csr)?;
        self.record(vec![record]).await?;
        Ok(issued)
    }

    /// The same for an administrator: what he lets be issued is an act of his own.
    pub(crate) async fn mint_x509(&self, caller: &Caller, order: X509Order, csr: &Csr) -> Result<IssuedX509, Refusal> {
        let (issued, record) = self.sign_x509(&order, csr)?;
        let act = Act::new("mint.x509", &record.serial).of(&order.id);
        self.record_in(&self.acting(caller, act), vec![record]).await?;
        Ok(issued)
    }

    /// The moment and the authorities to sign with. Whoever signs gets them here, so that nobody signs while the clock
    /// cannot be believed.
    fn signing_now(&self) -> Result<(SystemTime, Arc<Signing>), Refusal> {
        self.clock_watch.check()?;
        Ok((self.now(), self.authorities.current()))
    }

    /// Signs without recording: the caller records, then hands out.
    pub(crate) fn sign_x509(&self, order: &X509Order, csr: &Csr) -> Result<(IssuedX509, Issuance), Refusal> {
        self.sign_admitted(order, csr, &self.admit_x509(order, csr)?)
    }

    /// Asks the policy; this counts against its quotas.
    pub(crate) fn admit_x509(&self, order: &X509Order, csr: &Csr) -> Result<Admission, Refusal> {
        let (now, signing) = self.signing_now()?;
        let ttl = self.allowed_ttl(order, KeyType::of(csr.public_key()))?;
        Ok(Admission { now, signing, ttl })
    }

    /// Signs what was admitted, without recording.
    pub(crate) fn sign_admitted(
        &self,
        order: &X509Order,
        csr: &Csr,
        admission: &Admission,
    ) -> Result<(IssuedX509, Issuance), Refusal> {
        let Admission { now, signing, ttl } = admission;
        let (now, ttl) = (*now, *ttl);
        let serial = serial(now);
        // The server's own certificate must be good for nodes that do not know the newest root yet.
        let signer = match order.kind {
            IssuanceKind::Server => signing.below(&self.server_root()),
            _ => &signing.x509,
        };
        let profile = LeafProfile {
            id: order.id.clone(),
            dns_names: order.dns_names.clone(),
            ip_addresses: order.ip_addresses.clone(),
            ttl,
            backdate: self.ttls.backdate(ttl),
            serial,
            crl_url: self.revocations.url_for(signer.subject_key_id()),
        };
        let chain = signer.sign_svid(csr.public_key_spki(), &profile, now);
        let chain = chain.map_err(|error| unsigned(&order.id, error))?;
        let not_after = secs((now + ttl).min(signer.not_after()));
        let renew_at = match order.kind {
            IssuanceKind::X509 => {
                self.renewals.advise(secs(now), not_after, &serial[SERIAL_TIME..], signing.is_being_replaced())
            }
            _ => 0,
        };
        let issued = IssuedX509 { chain, serial: digest::serial_hex(&serial), not_after, renew_at };
        let record = Issuance {
            serial: issued.serial.clone(),
            kind: order.kind,
            spiffe_id: order.id.to_string(),
            entry_id: order.entry_id.clone(),
            caller: order.caller.clone(),
            fingerprint: issued.chain.first().map(|leaf| sha256_hex(leaf)).unwrap_or_default(),
            authority_id: signer.subject_key_id().to_owned(),
            issued_at: secs(now),
            not_after,
            log_index: -1,
        };
        Ok((issued, record))
    }

    fn allowed_ttl(&self, order: &X509Order, key: Option<KeyType>) -> Result<Duration, Refusal> {
        let X509Order { kind, id, caller, dns_names, .. } = order;
        self.judge(&Wanted { kind: *kind, id, caller, dns_names, key }, order.ttl)
    }

    /// Issues one token.
    pub(crate) async fn issue_jwt(&self, order: JwtOrder) -> Result<IssuedToken, Refusal> {
        let coming = self.store.coming();
        let (issued, record) = self.sign_jwt(order)?;
        drop(coming);
        self.record(vec![record]).await?;
        Ok(issued)
    }

    /// The same for an administrator.
    pub(crate) async fn mint_jwt(&self, caller: &Caller, order: JwtOrder) -> Result<IssuedToken, Refusal> {
        let audiences = order.audiences.join(" ");
        let (issued, record) = self.sign_jwt(order)?;
        let act = Act::new("mint.jwt", &record.serial).of(&record.spiffe_id).detail(format_args!("for {audiences}"));
        self.record_in(&self.acting(caller, act), vec![record]).await?;
        Ok(issued)
    }

    fn sign_jwt(&self, order: JwtOrder) -> Result<(IssuedToken, Issuance), Refusal> {
        let (now, signing) = self.signing_now()?;
        let left = signing.jwt_not_after.duration_since(now).map_err(|_| Refusal::Signing)?;
        let wanted = Wanted { kind: order.kind, id: &order.id, caller: &order.caller, dns_names: &[], key: None };
        let ttl = self.judge(&wanted, order.ttl)?;
        let profile = JwtSvidProfile {
            id: order.id.clone(),
            audiences: order.audiences,
            ttl: ttl.min(left),
            issuer: self.jwt_issuer.clone(),
            token_id: order.with_token_id.then(crate::random::uuid),
        };
        let signed = signing.jwt.sign_svid(&profile, now).map_err(|error| token_unsigned(&order.id, &error))?;
        let (issued_at, expires_at) = (secs(signed.issued_at), secs(signed.expires_at));
        let record = Issuance {
            serial: sha256_hex(signed.token.as_bytes()),
            kind: order.kind,
            spiffe_id: order.id.to_string(),
            entry_id: order.entry_id,
            caller: order.caller,
            authority_id: signing.jwt.key_id().to_owned(),
            fingerprint: String::new(),
            issued_at,
            not_after: expires_at,
            log_index: -1,
        };
        Ok((IssuedToken { token: signed.token, issued_at, expires_at }, record))
    }

    /// Writes the records of what was signed, and counts it.
    pub(crate) async fn record(&self, records: Vec<Issuance>) -> Result<(), Refusal> {
        self.record_in(&self.store, records).await
    }

    async fn record_in(&self, store: &Store, records: Vec<Issuance>) -> Result<(), Refusal> {
        if records.is_empty() {
            return Ok(());
        }
        let kinds: Vec<_> = records.iter().map(|record| record.kind).collect();
        records.iter().for_each(announce);
        if let Err(error) = store.record(records).await {
            // Boxed, as it is rare and large: each call would carry the space for it.
            if matches!(error, StoreError::AuthorityChanged)
                && let Err(error) = Box::pin(self.authorities.reload(&self.store, self.now())).await
            {
                tracing::error!(reason = error.reason(), error = ?error, "authorities not read");
            }
            return Err(error.into());
        }
        for kind in kinds {
            self.counts.issued(kind.as_str(), 1);
        }
        Ok(())
    }

    /// Logs and counts what was recorded together with the node that it is for.
    pub(crate) fn recorded(&self, record: &Issuance) {
        announce(record);
        self.counts.issued(record.kind.as_str(), 1);
    }
}

/// A positive serial number of 16 bytes: milliseconds since 1970, then 80 random bits. Records of certificates thus lie in the
/// order of time, and nobody can guess one (RFC 5280, section 4.1.2.2; the CA/Browser Forum asks for 64 bits).
fn serial(now: SystemTime) -> [u8; 16] {
    let millis = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_millis();
    // Of the same length always, whatever the clock says.
    let millis = u64::try_from(millis).unwrap_or(u64::MAX).clamp(1 << 40, (1 << 47) - 1);
    let mut serial = [0; 16];
    serial[..SERIAL_TIME].copy_from_slice(&millis.to_be_bytes()[2..]);
    serial[SERIAL_TIME..].copy_from_slice(&digest::random::<{ 16 - SERIAL_TIME }>());
    serial
}

/// Bytes of a serial number that are its time.
const SERIAL_TIME: usize = 6;

/// Not at `info`: the record, the audit trail and the transparency log say it better, and it costs.
fn announce(record: &Issuance) {
    tracing::debug!(
        kind = record.kind.as_str(),
        spiffe_id = record.spiffe_id,
        serial = record.serial,
        entry_id = record.entry_id,
        caller = record.caller,
        "issued"
    );
}

/// Why there is no token.
fn token_unsigned(id: &SpiffeId, error: &SignError) -> Refusal {
    if matches!(error, SignError::KeyUnavailable) {
        return Refusal::KeyUnavailable;
    }
    tracing::error!(error = ?error, spiffe_id = %id, "signing failed");
    Refusal::Signing
}

fn unsigned(id: &SpiffeId, error: AuthorityError) -> Refusal {
    match error {
        AuthorityError::PublicKey(source) => Refusal::Csr(CsrError::Key(source)),
        AuthorityError::KeyUnavailable => Refusal::KeyUnavailable,
        error => {
            tracing::error!(error = ?error, spiffe_id = %id, "signing failed");
            Refusal::Signing
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn serial_numbers_are_positive_of_one_length_and_lie_in_the_order_of_time() {
        let at = |millis| SystemTime::UNIX_EPOCH + Duration::from_millis(millis);
        let moments = [at(0), at(1_795_867_200_000), at(1_795_867_200_001), at(5_000_000_000_000), at(u64::MAX / 2)];
        let serials = moments.map(serial);
        assert!(serials.iter().all(|serial| serial[0] & 0x80 == 0 && serial[0] != 0), "{serials:?}");
        assert!(serials.is_sorted(), "{serials:?}");
        assert_ne!(serial(moments[1]), serial(moments[1]));
    }
}
