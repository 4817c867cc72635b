//! A request as people read it: the fields of a message by name, so that whoever approves it knows what he approves.

use std::fmt::Write as _;
use std::sync::LazyLock;

use prost::Message as _;
use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field};
use prost_types::field_descriptor_proto::Type;
use prost_types::{DescriptorProto, FieldDescriptorProto, FileDescriptorSet};

static FILES: LazyLock<FileDescriptorSet> =
    LazyLock::new(|| FileDescriptorSet::decode(proto::FILE_DESCRIPTOR_SET).unwrap_or_default());

/// The request of a unary gRPC call (with its frame's head) to `path`.
pub(super) fn of_request(path: &str, framed: &[u8]) -> String {
    let mut text = String::new();
    if let (Some(message), Some(content)) = (input_of(path), framed.get(FRAME_HEAD..)) {
        write(&mut text, message, content, 0);
    }
    text.chars().take(TEXT_CHARS_MAX).collect()
}

fn input_of(path: &str) -> Option<&'static DescriptorProto> {
    let (service, method) = path.strip_prefix('/')?.split_once('/')?;
    let found = FILES.file.iter().find_map(|file| {
        let name = service.strip_prefix(file.package())?.strip_prefix('.')?;
        file.service.iter().find(|one| one.name() == name)?.method.iter().find(|one| one.name() == method)
    })?;
    message(found.input_type())
}

/// `.package.Outer.Inner`.
fn message(name: &str) -> Option<&'static DescriptorProto> {
    FILES.file.iter().find_map(|file| {
        let mut names = name.strip_prefix('.')?.strip_prefix(file.package())?.strip_prefix('.')?.split('.');
        let first = names.next()?;
        let outer = file.message_type.iter().find(|one| one.name() == first)?;
        names.try_fold(outer, |outer, name| outer.nested_type.iter().find(|one| one.name() == name))
    })
}

fn write(text: &mut String, message: &DescriptorProto, mut content: &[u8], depth: usize) {
    while !content.is_empty() && text.len() < TEXT_BYTES_MAX {
        let Ok((tag, wire)) = decode_key(&mut content) else { return };
        let field = message.field.iter().find(|field| field.number() == i32::try_from(tag).unwrap_or(-1));
        let separator = if text.is_empty() || text.ends_with('{') { "" } else { " " };
        match (field, wire) {
            (Some(field), WireType::LengthDelimited) => {
                let Ok(length) = decode_varint(&mut content) else { return };
                let Some(inner) = usize::try_from(length).ok().and_then(|length| content.split_at_checked(length))
                else {
                    return;
                };
                content = inner.1;
                let _ = write!(text, "{separator}{}: ", field.name());
                value(text, field, inner.0, depth);
            }
            (Some(field), WireType::Varint) => {
                let Ok(number) = decode_varint(&mut content) else { return };
                let shown = if field.r#type() == Type::Bool { (number != 0).to_string() } else { number.to_string() };
                let _ = write!(text, "{separator}{}: {shown}", field.name());
            }
            _ => {
                if skip_field(wire, tag, &mut content, DecodeContext::default()).is_err() {
                    return;
                }
            }
        }
    }
}

fn value(text: &mut String, field: &FieldDescriptorProto, content: &[u8], depth: usize) {
    match field.r#type() {
        Type::Message if depth < DEPTH_MAX => {
            text.push('{');
            if let Some(inner) = message(field.type_name()) {
                write(text, inner, content, depth + 1);
            }
            text.push('}');
        }
        Type::String => {
            let _ = write!(text, "{:?}", String::from_utf8_lossy(content));
        }
        // Certificates and keys are not for reading; that they are the same is told by the digest of the request.
        _ => {
            let _ = write!(text, "({} bytes)", content.len());
        }
    }
}

const FRAME_HEAD: usize = 5;
const DEPTH_MAX: usize = 8;
const TEXT_BYTES_MAX: usize = 4096;
const TEXT_CHARS_MAX: usize = 2048;

#[cfg(test)]
mod tests {
    use proto::spire::api::server::agent::v1::BanAgentRequest;
    use proto::spire::api::server::localauthority::v1::ActivateX509AuthorityRequest;
    use proto::spire::api::types::Spiffeid;

    use super::*;

    fn framed(message: &impl prost::Message) -> Vec<u8> {
        [&[0; FRAME_HEAD][..], &message.encode_to_vec()].concat()
    }

    #[test]
    fn a_request_is_readable() {
        let path = "/spire.api.server.localauthority.v1.LocalAuthority/ActivateX509Authority";
        let request = ActivateX509AuthorityRequest { authority_id: "ab\"c".into() };
        assert_eq!(of_request(path, &framed(&request)), r#"authority_id: "ab\"c""#);
        let ban = BanAgentRequest { id: Some(Spiffeid { trust_domain: "td".into(), path: "/a".into() }) };
        let path = "/spire.api.server.agent.v1.Agent/BanAgent";
        assert_eq!(of_request(path, &framed(&ban)), r#"id: {trust_domain: "td" path: "/a"}"#);
    }

    #[test]
    fn rubbish_is_no_harm_and_long_ones_are_cut() {
        let path = "/spire.api.server.agent.v1.Agent/BanAgent";
        for rubbish in [&b""[..], b"\0\0\0\0\0\x0a\xff", b"\0\0\0\0\0\x0a\xff\xff\xff\xff\x0f", &[0xff; 64]] {
            let _ = of_request(path, rubbish);
        }
        assert_eq!(of_request("/x/y", b"\0\0\0\0\0"), "");
        let ban = BanAgentRequest { id: Some(Spiffeid { trust_domain: "x".repeat(10_000), path: String::new() }) };
        assert_eq!(of_request(path, &framed(&ban)).chars().count(), TEXT_CHARS_MAX);
    }
}
