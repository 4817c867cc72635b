//! The signed receipt of a rotation: printed, and checked anywhere.

use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use identity::digest::hex;
use identity::transparency::LogPublicKey;
use proto::kasbah::ca::v1::{Kind, ReceiptRequest, ReceiptResponse};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::args::OutputArg;
use crate::ca_client::CaClient;
use crate::exit::{Exit, Failure, chain};
use crate::output;

/// A receipt as it is kept.
#[derive(Debug, Serialize, Deserialize)]
struct Kept {
    /// The text that was signed.
    document: String,
    /// Base64.
    signature: String,
    /// Base64 of the SubjectPublicKeyInfo.
    log_key: String,
    /// SHA-256 of the key: compare it with `kasbah log head`.
    log_id: String,
}

pub(super) async fn print(client: &CaClient, kind: Kind, output: OutputArg) -> Result<(), Failure> {
    let answer = client.receipt(ReceiptRequest { kind: kind.into(), started_at: 0 }).await?;
    let (kept, document) = check(&Kept::of(&answer)?)?;
    output::print(output.output, &kept, || text(&document))
}

pub(super) fn verify(file: &Path, output: OutputArg) -> Result<(), Failure> {
    let bad = |why: String| {
        Failure::new(Exit::Data, format!("{} is no receipt: {why}", file.display()))
            .remedy("keep the whole output of `kasbah ca rotate receipt -o json`")
    };
    let read = std::fs::read(file).map_err(|error| bad(error.to_string()))?;
    let kept: Kept = serde_json::from_slice(&read).map_err(|error| bad(error.to_string()))?;
    let (kept, document) = check(&kept)?;
    let answer = json!({"verified": true, "log_id": kept.log_id, "receipt": document});
    output::print(output.output, &answer, || {
        format!("ok: signed by the log {} (compare with `kasbah log head`)\n{}", kept.log_id, text(&document))
    })
}

impl Kept {
    fn of(answer: &ReceiptResponse) -> Result<Self, Failure> {
        let document = String::from_utf8(answer.document.clone());
        Ok(Self {
            document: document.map_err(|_| Failure::new(Exit::Data, "the CA's receipt is no text"))?,
            signature: STANDARD.encode(&answer.signature),
            log_key: STANDARD.encode(&answer.log_key),
            log_id: String::new(),
        })
    }
}

/// Verifies the signature; answers the receipt with the id of the key that made it.
fn check(kept: &Kept) -> Result<(Kept, Value), Failure> {
    let bad = |why: &str| Failure::failed(format!("the receipt does not hold: {why}"));
    let decode = |text: &str| STANDARD.decode(text).map_err(|_| bad("it is not readable"));
    let key = LogPublicKey::from_spki_der(&decode(&kept.log_key)?).map_err(|error| bad(&chain(&error)))?;
    let signed = key.verify_statement(kept.document.as_bytes(), &decode(&kept.signature)?);
    signed.map_err(|_| bad("its signature does not verify: it was changed, or something else signed it"))?;
    let document: Value = serde_json::from_str(&kept.document).map_err(|error| bad(&error.to_string()))?;
    let log_id = hex(&key.id());
    if !kept.log_id.is_empty() && kept.log_id != log_id {
        return Err(bad("it names another log than its key"));
    }
    let Kept { document: signed, signature, log_key, .. } = kept;
    let kept = Kept { document: signed.clone(), signature: signature.clone(), log_key: log_key.clone(), log_id };
    Ok((kept, document))
}

fn text(document: &Value) -> String {
    let field = |value: &Value, name: &str| value[name].as_str().unwrap_or("-").to_owned();
    let rows = document["steps"].as_array().into_iter().flatten().map(|step| {
        let count = |name: &str| step[name].as_array().map_or(0, Vec::len);
        let waived: Vec<&str> = step["waived"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        let bundle = step["bundle_sequence"].as_u64().filter(|number| *number > 0);
        [
            field(step, "at"),
            field(step, "step"),
            field(step, "by"),
            field(step, "target"),
            bundle.map_or_else(|| "-".into(), |number| format!("bundle {number} at {} nodes", count("acknowledged"))),
            waived.join(" "),
        ]
    });
    let (kind, result) = (field(document, "kind"), field(document, "result"));
    let head = format!("rotation of {kind}, begun {}: {result}\n", field(document, "started_at"));
    head + &output::table(["AT", "STEP", "BY", "TARGET", "ACKNOWLEDGED", "WAIVED"], rows)
}

#[cfg(test)]
mod tests {
    use identity::transparency::LogKey;

    use super::*;

    #[test]
    fn a_receipt_holds_until_a_letter_of_it_is_changed() {
        let key = LogKey::generate().unwrap();
        let document = r#"{"kind":"root","result":"done","steps":[]}"#;
        let kept = Kept::of(&ReceiptResponse {
            document: document.into(),
            signature: key.sign_statement(document.as_bytes()).unwrap(),
            log_key: key.public().spki_der().to_vec(),
        });
        let kept = kept.unwrap();
        let (kept, read) = check(&kept).unwrap();
        assert_eq!((kept.log_id.as_str(), &read["result"]), (hex(&key.public().id()).as_str(), &json!("done")));
        let changed = Kept { document: document.replace("done", "gone"), ..kept };
        assert!(check(&changed).unwrap_err().to_string().contains("does not hold"));
    }
}
