//! Keys in a PKCS#11 token (OASIS PKCS#11 3.1): a hardware module, or SoftHSM. They are made in the token, sensitive and never
//! extractable; what leaves it are public keys and signatures.

use std::path::PathBuf;
use std::sync::{Mutex, OnceLock, PoisonError};

use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use cryptoki::error::{Error as TokenError, RvError};
use cryptoki::mechanism::Mechanism;
use cryptoki::mechanism::eddsa::{EddsaParams, EddsaSignatureScheme};
use cryptoki::object::{Attribute, AttributeType, ObjectClass, ObjectHandle};
use cryptoki::session::{Session, UserType};
use cryptoki::types::AuthPin;
use identity::key::KeyKind;
use identity::public_key::{Curve, PublicKey};
use identity::signing_key::{ecdsa_der, prehash};
use zeroize::Zeroizing;

use super::desk::{Keeper, KeeperError};
use super::settings::Pkcs11Token;

/// One session with a token.
pub(super) struct Token {
    settings: Pkcs11Token,
    session: Option<Session>,
}

impl Token {
    pub(super) fn new(settings: Pkcs11Token) -> Self {
        Self { settings, session: None }
    }

    /// Works with the session, a second time with a new one if it has ended since: the token was away.
    fn with<T>(&mut self, work: impl Fn(&Session) -> Result<T, KeeperError>) -> Result<T, KeeperError> {
        let was_open = self.session.is_some();
        match self.with_once(&work) {
            Err(KeeperError::Away(_)) if was_open => self.with_once(&work),
            worked => worked,
        }
    }

    /// Opens the session if need be, and works with it; one that failed is not used again.
    fn with_once<T>(&mut self, work: &impl Fn(&Session) -> Result<T, KeeperError>) -> Result<T, KeeperError> {
        if self.session.is_none() {
            self.session = Some(open(&self.settings)?);
        }
        let Some(session) = &self.session else { return Err(KeeperError::Away("there is no session".into())) };
        let outcome = work(session);
        if matches!(outcome, Err(KeeperError::Away(_))) {
            self.session = None;
        }
        outcome
    }
}

impl Keeper for Token {
    fn create(&mut self, name: &str, kind: KeyKind) -> Result<Vec<u8>, KeeperError> {
        self.with(|session| create(session, name, kind))
    }

    fn sign(&mut self, name: &str, kind: KeyKind, message: &[u8]) -> Result<Vec<u8>, KeeperError> {
        self.with(|session| {
            let key = private_key(session, name)?;
            let signature = match kind {
                KeyKind::P256 | KeyKind::P384 => session.sign(&Mechanism::Ecdsa, key, &prehash(kind, message)),
                KeyKind::Ed25519 => {
                    session.sign(&Mechanism::Eddsa(EddsaParams::new(EddsaSignatureScheme::Pure)), key, message)
                }
                KeyKind::Rsa => session.sign(&Mechanism::Sha256RsaPkcs, key, message),
            };
            let signature = signature.map_err(|error| failed("sign", &error))?;
            match kind {
                KeyKind::P256 | KeyKind::P384 => Ok(ecdsa_der(&signature)),
                KeyKind::Ed25519 | KeyKind::Rsa => Ok(signature),
            }
        })
    }

    fn check(&mut self) -> Result<(), KeeperError> {
        self.with(|session| session.get_session_info().map(drop).map_err(|error| failed("look", &error)))
    }
}

fn create(session: &Session, name: &str, kind: KeyKind) -> Result<Vec<u8>, KeeperError> {
    let (mechanism, parameters) = match kind {
        KeyKind::P256 => (Mechanism::EccKeyPairGen, P256_PARAMETERS),
        KeyKind::P384 => (Mechanism::EccKeyPairGen, P384_PARAMETERS),
        KeyKind::Ed25519 => (Mechanism::EccEdwardsKeyPairGen, ED25519_PARAMETERS),
        KeyKind::Rsa => return Err(KeeperError::Refused("RSA keys are not made".into())),
    };
    let (label, id) = (Attribute::Label(name.into()), Attribute::Id(name.into()));
    let public = [
        Attribute::Token(true),
        Attribute::Private(false),
        Attribute::Verify(true),
        Attribute::EcParams(parameters.to_vec()),
        label.clone(),
        id.clone(),
    ];
    let private = [
        Attribute::Token(true),
        Attribute::Private(true),
        Attribute::Sensitive(true),
        Attribute::Extractable(false),
        Attribute::Sign(true),
        label,
        id,
    ];
    let made = session.generate_key_pair(&mechanism, &public, &private);
    let (public, _) = made.map_err(|error| failed("make a key", &error))?;
    let attributes = session.get_attributes(public, &[AttributeType::EcPoint]);
    let attributes = attributes.map_err(|error| failed("read the public key", &error))?;
    let point = attributes.iter().find_map(|attribute| match attribute {
        Attribute::EcPoint(point) => Some(point.as_slice()),
        _ => None,
    });
    let spki = point.and_then(|point| spki(kind, point));
    spki.ok_or_else(|| KeeperError::Refused("the token's public key is not understood".into()))
}

/// CKA_EC_POINT is the point in a DER OCTET STRING; some tokens give the bare point.
fn spki(kind: KeyKind, point: &[u8]) -> Option<Vec<u8>> {
    let bare = match point {
        [0x04, len, rest @ ..] if usize::from(*len) == rest.len() => rest,
        bare => bare,
    };
    let key = match kind {
        KeyKind::P256 => PublicKey::ec(Curve::P256, bare),
        KeyKind::P384 => PublicKey::ec(Curve::P384, bare),
        KeyKind::Ed25519 => PublicKey::ed25519(bare),
        KeyKind::Rsa => return None,
    };
    key.ok().map(|key| key.spki_der())
}

fn private_key(session: &Session, name: &str) -> Result<ObjectHandle, KeeperError> {
    let wanted = [Attribute::Class(ObjectClass::PRIVATE_KEY), Attribute::Label(name.into())];
    let found = session.find_objects(&wanted).map_err(|error| failed("find the key", &error))?;
    match found.as_slice() {
        [key] => Ok(*key),
        [] => Err(KeeperError::Refused(format!("the token has no key `{name}`"))),
        _ => Err(KeeperError::Refused(format!("the token has several keys `{name}`"))),
    }
}

/// Loads the module once per process (PKCS#11 forbids a second C_Initialize), and logs in to its token.
fn open(settings: &Pkcs11Token) -> Result<Session, KeeperError> {
    let module = module(&settings.module)?;
    let slots = module.get_slots_with_token().map_err(|error| failed("list tokens", &error))?;
    let labelled = |slot: &&cryptoki::slot::Slot| {
        module.get_token_info(**slot).is_ok_and(|info| info.label() == settings.token_label)
    };
    let Some(slot) = slots.iter().find(labelled) else {
        return Err(KeeperError::Away(format!("there is no token `{}`", settings.token_label)));
    };
    let session = module.open_rw_session(*slot).map_err(|error| failed("open a session", &error))?;
    let pin = super::kek::secret(&settings.pin).map_err(|error| KeeperError::Away(error.to_string()))?;
    let pin: Zeroizing<String> = Zeroizing::new(String::from_utf8_lossy(pin.trim_ascii()).into_owned());
    match session.login(UserType::User, Some(&AuthPin::new(pin.as_str().into()))) {
        // Sessions of one process share the login.
        Ok(()) | Err(TokenError::Pkcs11(RvError::UserAlreadyLoggedIn, _)) => Ok(session),
        Err(error) => Err(failed("log in", &error)),
    }
}

fn module(path: &PathBuf) -> Result<Pkcs11, KeeperError> {
    static LOADED: OnceLock<Mutex<Vec<(PathBuf, Pkcs11)>>> = OnceLock::new();
    let mut loaded = LOADED.get_or_init(Mutex::default).lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((_, module)) = loaded.iter().find(|(known, _)| known == path) {
        return Ok(module.clone());
    }
    let module = Pkcs11::new(path).map_err(|error| failed("load the module", &error))?;
    match module.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK)) {
        Ok(()) | Err(TokenError::Pkcs11(RvError::CryptokiAlreadyInitialized, _)) => (),
        Err(error) => return Err(failed("start the module", &error)),
    }
    loaded.push((path.clone(), module.clone()));
    Ok(module)
}

fn failed(what: &str, error: &TokenError) -> KeeperError {
    KeeperError::Away(format!("the token cannot {what}: {error}"))
}

/// Object identifiers of the curves, DER; Ed25519 as the printable name that tokens of PKCS#11 3.0 take.
const P256_PARAMETERS: &[u8] = &[0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];
const P384_PARAMETERS: &[u8] = &[0x06, 0x05, 0x2b, 0x81, 0x04, 0x00, 0x22];
const ED25519_PARAMETERS: &[u8] = &[0x13, 0x0c, 0x65, 0x64, 0x77, 0x61, 0x72, 0x64, 0x73, 0x32, 0x35, 0x35, 0x31, 0x39];
