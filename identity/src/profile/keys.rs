//! The public key: of a kind and size that can be trusted.

use super::{Defect, Findings};
use crate::profile::shape::Shape;
use crate::public_key::PublicKey;

pub(super) fn check(shape: &Shape<'_>, findings: &mut Findings) {
    match PublicKey::from_spki_der(shape.spki) {
        Ok(PublicKey::Rsa { modulus, .. }) => {
            let whole_bytes = modulus.first().is_some_and(|byte| byte & 0x80 != 0);
            findings.add_if(!whole_bytes, Defect::KeySizeOdd);
        }
        Ok(_) => {}
        Err(_) => findings.add(Defect::KeyRefused),
    }
}
