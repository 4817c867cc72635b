//! Equal content, equal bytes: protobuf maps are encoded in hash order, so their entries are sorted here.
//!
//! Versions are hashes of bytes; without this a resource would seem to change each time it is compiled.

use envoy_types::pb::google::protobuf::Any;
use prost::{Message, Name};

/// Which fields of a message are maps, and which fields hold messages that have some.
pub(crate) struct Maps {
    maps: &'static [u32],
    nested: &'static [(u32, &'static Self)],
}

/// The message as `Any`, in canonical bytes.
pub(super) fn pack<M: Message + Name>(message: &M) -> Any {
    let name = M::full_name();
    let value = sorted(message.encode_to_vec(), maps_of(&name));
    Any { type_url: format!("type.googleapis.com/{name}"), value }
}

/// The bytes of a message of type `url`, with map entries in order.
pub(crate) fn canonical_bytes(type_url: &str, bytes: Vec<u8>) -> Vec<u8> {
    sorted(bytes, maps_of(type_url.rsplit('/').next().unwrap_or_default()))
}

fn maps_of(name: &str) -> Option<&'static Maps> {
    KNOWN.iter().find(|(known, _)| *known == name).map(|(_, maps)| *maps)
}

fn sorted(bytes: Vec<u8>, maps: Option<&Maps>) -> Vec<u8> {
    match maps.map(|maps| sort(&bytes, maps, 0)) {
        Some(Some(sorted)) => sorted,
        // Without maps there is nothing to do; bytes that do not parse are not ours to change.
        _ => bytes,
    }
}

/// One field as it stands in the bytes.
struct Field {
    number: u32,
    bytes: Vec<u8>,
}

fn sort(bytes: &[u8], maps: &Maps, depth: usize) -> Option<Vec<u8>> {
    if depth > DEPTH_MAX {
        return None;
    }
    let mut fields = Vec::new();
    let mut rest = bytes;
    while !rest.is_empty() {
        fields.push(next_field(&mut rest, maps, depth)?);
    }
    for map in maps.maps {
        let mut entries: Vec<Vec<u8>> = fields
            .iter_mut()
            .filter(|field| field.number == *map)
            .map(|field| std::mem::take(&mut field.bytes))
            .collect();
        // An entry begins with its key.
        entries.sort();
        let slots = fields.iter_mut().filter(|field| field.number == *map);
        for (slot, entry) in slots.zip(entries) {
            slot.bytes = entry;
        }
    }
    Some(fields.into_iter().flat_map(|field| field.bytes).collect())
}

fn next_field(rest: &mut &[u8], maps: &Maps, depth: usize) -> Option<Field> {
    let whole = *rest;
    let tag = varint(rest)?;
    let number = u32::try_from(tag >> 3).ok()?;
    match tag & 7 {
        0 => {
            varint(rest)?;
        }
        1 => *rest = rest.get(8..)?,
        5 => *rest = rest.get(4..)?,
        2 => {
            let len = usize::try_from(varint(rest)?).ok()?;
            let body = rest.get(..len)?;
            *rest = &rest[len..];
            if let Some((_, nested)) = maps.nested.iter().find(|(field, _)| *field == number) {
                let body = sort(body, nested, depth + 1)?;
                let mut bytes = Vec::with_capacity(body.len() + 10);
                prost::encoding::encode_varint(tag, &mut bytes);
                prost::encoding::encode_varint(body.len() as u64, &mut bytes);
                bytes.extend(body);
                return Some(Field { number, bytes });
            }
        }
        _ => return None,
    }
    Some(Field { number, bytes: whole[..whole.len() - rest.len()].to_vec() })
}

fn varint(rest: &mut &[u8]) -> Option<u64> {
    prost::encoding::decode_varint(rest).ok()
}

// google.protobuf.Struct: fields are a map; values nest.
static STRUCT: Maps = Maps { maps: &[1], nested: &[(1, &STRUCT_ENTRY)] };
static STRUCT_ENTRY: Maps = Maps { maps: &[], nested: &[(2, &VALUE)] };
static VALUE: Maps = Maps { maps: &[], nested: &[(5, &STRUCT), (6, &LIST)] };
static LIST: Maps = Maps { maps: &[], nested: &[(1, &VALUE)] };
// envoy.config.core.v3.Metadata: filter name to Struct.
static METADATA: Maps = Maps { maps: &[1, 2], nested: &[(1, &METADATA_ENTRY)] };
static METADATA_ENTRY: Maps = Maps { maps: &[], nested: &[(2, &STRUCT)] };
// Endpoints: ClusterLoadAssignment.endpoints.lb_endpoints.metadata.
static LOAD_ASSIGNMENT: Maps = Maps { maps: &[5], nested: &[(2, &LOCALITY)] };
static LOCALITY: Maps = Maps { maps: &[], nested: &[(2, &LB_ENDPOINT), (9, &METADATA)] };
static LB_ENDPOINT: Maps = Maps { maps: &[], nested: &[(3, &METADATA)] };
// Cluster: typed options, metadata, inline endpoints, transport socket matches.
static CLUSTER: Maps = Maps { maps: &[36], nested: &[(25, &METADATA), (33, &LOAD_ASSIGNMENT), (43, &SOCKET_MATCH)] };
static SOCKET_MATCH: Maps = Maps { maps: &[], nested: &[(2, &STRUCT)] };
// Routes: per-filter settings of table, virtual host, route and weighted cluster.
static ROUTES: Maps = Maps { maps: &[16], nested: &[(2, &VIRTUAL_HOST)] };
static VIRTUAL_HOST: Maps = Maps { maps: &[15], nested: &[(3, &ROUTE)] };
static ROUTE: Maps = Maps { maps: &[13], nested: &[(2, &ROUTE_ACTION), (4, &METADATA)] };
static ROUTE_ACTION: Maps = Maps { maps: &[], nested: &[(3, &WEIGHTED)] };
static WEIGHTED: Maps = Maps { maps: &[], nested: &[(1, &CLUSTER_WEIGHT)] };
static CLUSTER_WEIGHT: Maps = Maps { maps: &[10], nested: &[(3, &METADATA)] };
static CONNECTION_MANAGER: Maps = Maps { maps: &[], nested: &[(4, &ROUTES)] };
// Filters.
static RBAC_FILTER: Maps = Maps { maps: &[], nested: &[(1, &RBAC), (2, &RBAC)] };
static RBAC: Maps = Maps { maps: &[2], nested: &[] };
static JWT: Maps = Maps { maps: &[1, 5], nested: &[] };
static ACCESS_LOG_FILE: Maps = Maps { maps: &[], nested: &[(3, &STRUCT), (4, &STRUCT), (5, &LOG_FORMAT)] };
static ACCESS_LOG_STDOUT: Maps = Maps { maps: &[], nested: &[(1, &LOG_FORMAT)] };
static LOG_FORMAT: Maps = Maps { maps: &[], nested: &[(2, &STRUCT)] };

static KNOWN: &[(&str, &Maps)] = &[
    ("envoy.config.cluster.v3.Cluster", &CLUSTER),
    ("envoy.config.endpoint.v3.ClusterLoadAssignment", &LOAD_ASSIGNMENT),
    ("envoy.config.route.v3.RouteConfiguration", &ROUTES),
    ("envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager", &CONNECTION_MANAGER),
    ("envoy.extensions.filters.http.rbac.v3.RBAC", &RBAC_FILTER),
    ("envoy.extensions.filters.network.rbac.v3.RBAC", &RBAC_FILTER),
    ("envoy.extensions.filters.http.jwt_authn.v3.JwtAuthentication", &JWT),
    ("envoy.extensions.access_loggers.file.v3.FileAccessLog", &ACCESS_LOG_FILE),
    ("envoy.extensions.access_loggers.stream.v3.StdoutAccessLog", &ACCESS_LOG_STDOUT),
];

const DEPTH_MAX: usize = 64;

#[cfg(test)]
mod tests {
    use envoy_types::pb::envoy::config::rbac::v3::{Policy, Rbac};
    use envoy_types::pb::envoy::extensions::filters::http::rbac::v3::Rbac as Filter;

    use super::*;

    fn filter() -> Filter {
        let policies = (0..50).map(|index| (format!("policy-{index}"), Policy::default())).collect();
        Filter { rules: Some(Rbac { policies, ..Rbac::default() }), ..Filter::default() }
    }

    #[test]
    fn equal_messages_have_equal_bytes_and_keep_their_meaning() {
        let (one, other) = (pack(&filter()), pack(&filter()));
        assert_eq!(one, other);
        assert_eq!(Filter::decode(one.value.as_slice()).unwrap(), filter());
    }

    #[test]
    fn bytes_that_are_no_message_stay_as_they_are() {
        let url = "type.googleapis.com/envoy.config.cluster.v3.Cluster";
        assert_eq!(canonical_bytes(url, vec![0xff, 0xff]), [0xff, 0xff]);
    }
}
