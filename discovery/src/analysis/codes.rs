//! The codes of messages: their level, when they are told, and what to do. Numbers `IST…` are Istio's, with Istio's meaning
//! and level; `KSB…` are ours and about identities. A code never changes its meaning.

use super::message::Level::{self, Error, Info, Warning};

/// A code with what it means.
#[derive(Clone, Copy, Debug)]
pub struct Code {
    /// The code.
    pub code: &'static str,
    /// Its name; Istio's where the code is.
    pub name: &'static str,
    /// How bad it is.
    pub level: Level,
    /// When it is told.
    pub when: &'static str,
    /// What to do.
    pub fix: &'static str,
}

/// The entry of a code; that of an internal error for one that is in no table.
pub(crate) fn of(code: &str) -> &'static Code {
    CODES.iter().find(|known| known.code == code).unwrap_or(&INTERNAL)
}

const fn code(code: &'static str, name: &'static str, level: Level, when: &'static str, fix: &'static str) -> Code {
    Code { code, name, level, when, fix }
}

const INTERNAL: Code = code(
    "IST0001",
    "InternalError",
    Error,
    "an analyzer failed on these documents",
    "tell us with the documents (`kasbah bug-report`); all other analyzers have run",
);

/// Every code that can be told, in order.
pub const CODES: &[Code] = &[
    INTERNAL,
    code(
        "IST0002",
        "Deprecated",
        Warning,
        "a field or kind is deprecated or gone",
        "use the field that the message names in its place",
    ),
    code(
        "IST0101",
        "ReferencedResourceNotFound",
        Error,
        "something is named that is not in the set: a host, port, subset, gateway, secret, namespace or workload",
        "correct the name, or add the document to what is analysed",
    ),
    code(
        "IST0102",
        "NamespaceNotInjected",
        Info,
        "a namespace has no label that puts sidecars into its pods",
        "label it istio-injection=enabled, or =disabled when it is meant so",
    ),
    code(
        "IST0103",
        "PodMissingProxy",
        Warning,
        "a pod in a namespace with injection has no proxy",
        "start the pod anew, so that it is injected",
    ),
    code(
        "IST0106",
        "SchemaValidationError",
        Error,
        "a document is refused by schema or rules of its kind",
        "correct the field; `kasbah validate` says the same with the column",
    ),
    code(
        "IST0107",
        "MisplacedAnnotation",
        Warning,
        "an annotation stands on a kind where it has no effect",
        "move it to the kind that the message names",
    ),
    code(
        "IST0108",
        "UnknownAnnotation",
        Warning,
        "an annotation of istio.io that nobody knows",
        "correct its name or remove it",
    ),
    code(
        "IST0109",
        "ConflictingMeshGatewayVirtualServiceHosts",
        Error,
        "several VirtualServices claim one host inside the mesh",
        "merge them, or part them by exportTo or gateways",
    ),
    code(
        "IST0110",
        "ConflictingSidecarWorkloadSelectors",
        Error,
        "several Sidecars select one workload",
        "narrow the selectors until each workload has one Sidecar",
    ),
    code(
        "IST0111",
        "MultipleSidecarsWithoutWorkloadSelectors",
        Error,
        "a namespace has several Sidecars without selector",
        "keep one of them",
    ),
    code(
        "IST0112",
        "VirtualServiceDestinationPortSelectorRequired",
        Error,
        "a destination of a service with several ports names no port",
        "say destination.port.number",
    ),
    code(
        "IST0116",
        "DeploymentAssociatedToMultipleServices",
        Warning,
        "a deployment is behind several services that disagree on the protocol of a port",
        "give the services one protocol for the port",
    ),
    code(
        "IST0118",
        "PortNameIsNotUnderNamingConvention",
        Info,
        "the name of a service port does not say its protocol, which is guessed then",
        "call it PROTOCOL or PROTOCOL-NAME (http-web), or set appProtocol",
    ),
    code(
        "IST0123",
        "NamespaceMultipleInjectionLabels",
        Warning,
        "a namespace has labels of several ways to join the mesh",
        "keep one of the labels",
    ),
    code("IST0125", "InvalidAnnotation", Warning, "the value of an annotation cannot be used", "correct the value"),
    code(
        "IST0126",
        "UnknownMeshNetworksServiceRegistry",
        Error,
        "the mesh networks name a registry that does not exist",
        "name a cluster that a remote secret adds, or Kubernetes",
    ),
    code(
        "IST0127",
        "NoMatchingWorkloadsFound",
        Warning,
        "a policy selects no workload, so it protects nothing",
        "correct the selector or the namespace",
    ),
    code(
        "IST0128",
        "NoServerCertificateVerificationDestinationLevel",
        Warning,
        "TLS is used without saying which authority has to have signed the server's certificate",
        "set caCertificates, or credentialName with a workloadSelector",
    ),
    code(
        "IST0129",
        "NoServerCertificateVerificationPortLevel",
        Warning,
        "TLS of one port is used without saying which authority has to have signed the server's certificate",
        "set caCertificates on the port, or credentialName with a workloadSelector",
    ),
    code(
        "IST0130",
        "VirtualServiceUnreachableRule",
        Warning,
        "a rule of a VirtualService never runs, since rules before it take all of its requests",
        "move it before them, or remove it",
    ),
    code(
        "IST0131",
        "VirtualServiceIneffectiveMatch",
        Info,
        "a match of a rule never decides, since a match before it takes all of its requests",
        "move it before that one, or remove it",
    ),
    code(
        "IST0132",
        "VirtualServiceHostNotFoundInGateway",
        Warning,
        "a VirtualService is bound to a Gateway that serves none of its hosts",
        "add the host to the Gateway's servers, or bind another Gateway",
    ),
    code(
        "IST0133",
        "SchemaWarning",
        Warning,
        "something in a document has no effect or is unwise",
        "see the message; `kasbah validate` says the same with the column",
    ),
    code(
        "IST0134",
        "ServiceEntryAddressesRequired",
        Warning,
        "a ServiceEntry has a TCP port and no addresses, so it takes the port of every address",
        "set addresses, or a protocol that names its host",
    ),
    code("IST0135", "DeprecatedAnnotation", Info, "an annotation is deprecated", "use what has taken its place"),
    code("IST0136", "AlphaAnnotation", Info, "an annotation may still change", "be ready for it to change"),
    code(
        "IST0137",
        "DeploymentConflictingPorts",
        Warning,
        "a port of a deployment is behind several ports of services",
        "give the services one number for the target port, or each a target port of its own",
    ),
    code(
        "IST0138",
        "GatewayDuplicateCertificate",
        Warning,
        "several Gateways show one certificate: browsers then use one connection for the hosts of both and are answered 404",
        "put the hosts into one Gateway, or give each a certificate of its own",
    ),
    code(
        "IST0139",
        "InvalidWebhook",
        Error,
        "a webhook names a service that does not exist, or injects beside another one",
        "correct the service, or remove one of the webhooks",
    ),
    code(
        "IST0140",
        "IngressRouteRulesNotAffected",
        Warning,
        "subsets chosen inside the mesh are not chosen for what comes through this gateway",
        "name the subset in the gateway's VirtualService, too",
    ),
    code(
        "IST0144",
        "InvalidApplicationUID",
        Warning,
        "a program runs as the user of the proxy (1337), whose traffic is never captured",
        "run it as another user",
    ),
    code(
        "IST0145",
        "ConflictingGateways",
        Error,
        "several Gateways claim a host on one port of the same proxies",
        "keep the host in one of them",
    ),
    code(
        "IST0146",
        "ImageAutoWithoutInjectionWarning",
        Warning,
        "a deployment leaves its proxy to an injector that does not see it",
        "label the namespace or the pods for injection",
    ),
    code(
        "IST0147",
        "ImageAutoWithoutInjectionError",
        Error,
        "a pod runs with the image `auto`, which no injector has replaced",
        "label it for injection and start it anew",
    ),
    code(
        "IST0148",
        "NamespaceInjectionEnabledByDefault",
        Info,
        "a namespace is injected by the injector's default",
        "say it by a label, so that it stays when the default changes",
    ),
    code(
        "IST0149",
        "JwtClaimBasedRoutingWithoutRequestAuthN",
        Error,
        "routes of a gateway are chosen by claims that nobody verifies there",
        "add a RequestAuthentication that selects the gateway",
    ),
    code(
        "IST0150",
        "ExternalNameServiceTypeInvalidPortName",
        Warning,
        "the port name of a service that is an alias for a name outside makes it take all addresses",
        "name the port after its protocol, other than plain tcp",
    ),
    code(
        "IST0151",
        "EnvoyFilterUsesRelativeOperation",
        Warning,
        "a patch depends on what other patches have done before it, and says no priority",
        "set spec.priority",
    ),
    code(
        "IST0152",
        "EnvoyFilterUsesReplaceOperationIncorrectly",
        Error,
        "REPLACE is given for what cannot be replaced",
        "use it for HTTP_FILTER, NETWORK_FILTER or VIRTUAL_HOST only, or MERGE",
    ),
    code(
        "IST0153",
        "EnvoyFilterUsesAddOperationIncorrectly",
        Error,
        "ADD is given for what cannot be added",
        "use MERGE or another operation for ROUTE_CONFIGURATION and HTTP_ROUTE",
    ),
    code(
        "IST0154",
        "EnvoyFilterUsesRemoveOperationIncorrectly",
        Error,
        "REMOVE is given for what cannot be removed",
        "do not use REMOVE with ROUTE_CONFIGURATION and HTTP_ROUTE",
    ),
    code(
        "IST0155",
        "EnvoyFilterUsesRelativeOperationWithProxyVersion",
        Warning,
        "a patch depends on one that is only applied to some versions of the proxy, and says no priority",
        "set spec.priority, and match the same version",
    ),
    code(
        "IST0157",
        "InvalidTelemetryProvider",
        Warning,
        "a Telemetry asks for access logs, and neither it nor the mesh says by which provider",
        "name a provider, or set defaultProviders.accessLogging of the mesh",
    ),
    code(
        "IST0158",
        "PodsIstioProxyImageMismatchInNamespace",
        Warning,
        "pods run another proxy than the injector would give them today",
        "start the pods anew",
    ),
    code(
        "IST0159",
        "ConflictingTelemetryWorkloadSelectors",
        Error,
        "several Telemetries select one workload",
        "narrow the selectors until each workload has one Telemetry",
    ),
    code(
        "IST0160",
        "MultipleTelemetriesWithoutWorkloadSelectors",
        Error,
        "a namespace has several Telemetries without selector",
        "keep one of them",
    ),
    code(
        "IST0161",
        "InvalidGatewayCredential",
        Error,
        "the secret of a gateway's certificate cannot be used, or its certificate is not valid now",
        "put a valid certificate and its key into the secret",
    ),
    code(
        "IST0162",
        "GatewayPortNotDefinedOnService",
        Warning,
        "no Service leads to a port of a Gateway, so nobody reaches it",
        "add the port to the gateway's Service",
    ),
    code(
        "IST0163",
        "InvalidExternalControlPlaneConfig",
        Warning,
        "a webhook says neither service nor URL of the control plane, or an URL that is none",
        "set clientConfig.url or clientConfig.service",
    ),
    code(
        "IST0164",
        "ExternalControlPlaneAddressIsNotAHostname",
        Info,
        "a webhook names the control plane by its IP address",
        "name it by its host name, which certificates are made for",
    ),
    code(
        "IST0165",
        "ReferencedInternalGateway",
        Warning,
        "a VirtualService is bound to a Gateway that is made from one of the Gateway API",
        "bind an HTTPRoute to the Gateway of the Gateway API",
    ),
    code(
        "IST0166",
        "IneffectiveSelector",
        Warning,
        "a policy selects pods of a gateway of the Gateway API, where selectors have no effect",
        "use targetRefs with the Gateway",
    ),
    code(
        "IST0167",
        "IneffectivePolicy",
        Warning,
        "a policy has no effect where it is",
        "remove it, or select workloads with sidecars",
    ),
    code(
        "IST0171",
        "NegativeConditionStatus",
        Warning,
        "a controller has written into the document's status that something is not well",
        "see the reason in the message",
    ),
    code(
        "IST0173",
        "DestinationRuleSubsetNotSelectPods",
        Error,
        "the labels of a subset select no workload",
        "correct the labels",
    ),
    code(
        "IST0174",
        "UnknownDestinationRuleHost",
        Warning,
        "a DestinationRule is for a host that nobody serves",
        "correct the host, or add its service to what is analysed",
    ),
    code(
        "IST0175",
        "JwksUriFetchUnrestricted",
        Warning,
        "key sets are fetched from addresses that documents name, and no address is forbidden",
        "set BLOCKED_CIDRS_IN_JWKS_URIS on istiod",
    ),
    code(
        "IST0176",
        "GatewayAPICRDVersionBelowMinimum",
        Warning,
        "a definition of the Gateway API is too old for its documents to be read",
        "install a newer version of the Gateway API",
    ),
    code(
        "IST0177",
        "ConflictingServiceEntryProtocol",
        Warning,
        "ServiceEntries give one port of one host different protocols",
        "give the port one protocol, or part them by exportTo",
    ),
    code(
        "KSB0101",
        "MutualTlsMismatch",
        Error,
        "a DestinationRule speaks otherwise than its workloads accept: plain text where mTLS is demanded, or mTLS where it is off",
        "remove the rule's tls, so that both sides agree by themselves, or make the workload PERMISSIVE until all have moved",
    ),
    code(
        "KSB0102",
        "SeveralPeerAuthentications",
        Error,
        "several PeerAuthentications without selector are in one namespace, or several select one workload; the oldest holds",
        "keep one of them",
    ),
    code(
        "KSB0103",
        "PortLevelMtlsWithoutPort",
        Warning,
        "a PeerAuthentication says the mode of a port that no selected workload has; it counts ports of workloads, not of services",
        "use the workload's own port (targetPort)",
    ),
    code(
        "KSB0104",
        "PolicyOnIdentityWithoutMtls",
        Warning,
        "a policy asks who the peer is where plain text is accepted: whoever sends plain text is nobody, and not denied by name",
        "make the workload STRICT by a PeerAuthentication",
    ),
    code(
        "KSB0105",
        "PrincipalWithScheme",
        Error,
        "a principal begins with spiffe://; principals are written without, so this one never matches",
        "remove spiffe://",
    ),
    code(
        "KSB0106",
        "PrincipalOfForeignTrustDomain",
        Warning,
        "a principal is of a trust domain that is neither the mesh's own nor an alias of it",
        "correct the trust domain, or federate with it (`kasbah federation create`)",
    ),
    code(
        "KSB0107",
        "PrincipalWithoutAccount",
        Warning,
        "a principal names a service account that no workload runs as",
        "correct namespace and account of the principal",
    ),
    code(
        "KSB0108",
        "TokenNotDemanded",
        Warning,
        "tokens are verified, and no policy demands one: requests without a token pass",
        "add an AuthorizationPolicy that asks for requestPrincipals or a claim",
    ),
    code(
        "KSB0109",
        "ClaimNobodyVerifies",
        Error,
        "a policy asks for a token's principal or claims where no RequestAuthentication verifies tokens, so it never holds",
        "add a RequestAuthentication that selects the same workloads",
    ),
    code(
        "KSB0110",
        "IssuerMismatch",
        Warning,
        "a policy names an issuer that no RequestAuthentication of its workloads trusts; they are compared letter by letter",
        "write the issuer as the RequestAuthentication does",
    ),
    code(
        "KSB0111",
        "WeakKeySource",
        Warning,
        "keys for tokens are fetched without TLS, or from an address of this machine or a private network",
        "use https and a public name, or put the keys into `jwks`",
    ),
    code(
        "KSB0112",
        "GatewayCertificateUnfit",
        Warning,
        "a gateway's certificate ends soon, is not for all hosts of the server, or its chain is out of order",
        "renew it with the hosts as DNS names, and put each issuer's certificate after its own",
    ),
    code(
        "KSB0113",
        "PeerNotVerifiable",
        Warning,
        "a service inside the mesh says neither its workloads' service accounts nor subjectAltNames, so its clients take any identity for it",
        "set serviceAccount of its endpoints, or subjectAltNames",
    ),
    code(
        "KSB0114",
        "MeshWideDenial",
        Warning,
        "an ALLOW policy without rules for the whole mesh denies every request that no other policy allows",
        "keep it when this is meant, with policies that allow what is needed",
    ),
    code(
        "KSB0115",
        "PolicyShadowed",
        Warning,
        "an ALLOW policy never decides, since a DENY policy denies everything at its workloads",
        "remove the one that is not meant",
    ),
    code(
        "KSB0116",
        "CaptureBypassed",
        Warning,
        "a workload that demands mTLS leaves some of its ports or its whole network outside of the proxy",
        "remove the exclusion, or accept that those ports are not protected",
    ),
    code(
        "KSB0117",
        "ForwardedAddressTrusted",
        Warning,
        "a policy goes by the address in X-Forwarded-For, and no proxy before the mesh is declared: clients choose it freely",
        "set gatewayTopology.numTrustedProxies, or use ipBlocks",
    ),
    code(
        "KSB0118",
        "RuleNeverMatches",
        Warning,
        "a rule of a policy contradicts itself, or asks for HTTP where its workloads only relay bytes",
        "correct the rule, or remove it",
    ),
    code(
        "KSB0119",
        "PathsNotNormalized",
        Warning,
        "a policy goes by paths, and the mesh leaves them as clients write them: /a/../b or //b escapes it",
        "set pathNormalization.normalization of the mesh to BASE, MERGE_SLASHES or DECODE_AND_MERGE_SLASHES",
    ),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_is_there_once_and_in_order() {
        assert!(CODES.windows(2).all(|pair| pair[0].code < pair[1].code));
        assert!(CODES.iter().all(|code| code.code.len() == 7 && !code.when.is_empty() && !code.fix.is_empty()));
        assert_eq!(of("IST0145").name, "ConflictingGateways");
        assert_eq!(of("nonsense").code, "IST0001");
    }
}
