"""py-spiffe as a workload: fetches an X.509-SVID, watches for one, fetches a JWT-SVID and has it validated."""

import argparse
import json
import threading

from spiffe import WorkloadApiClient


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--audience", required=True)
    args = parser.parse_args()
    with WorkloadApiClient() as client:
        svid = client.fetch_x509_svid(timeout=20)
        domain = svid.spiffe_id.trust_domain
        bundle = client.fetch_x509_bundles(timeout=20).get_bundle_for_trust_domain(domain)
        assert bundle and bundle.x509_authorities, "no X.509 bundle"
        jwt_svid = client.fetch_jwt_svid(audience={args.audience}, timeout=20)
        jwt_bundle = client.fetch_jwt_bundles(timeout=20).get_bundle_for_trust_domain(domain)
        assert jwt_bundle and jwt_bundle.jwt_authorities, "no JWT bundle"
        validated = client.validate_jwt_svid(token=jwt_svid.token, audience=args.audience, timeout=20)
        report = {
            "x509_svid": str(svid.spiffe_id),
            "watched": watch_once(client),
            "jwt_svid": str(jwt_svid.spiffe_id),
            "jwt_validated": str(validated.spiffe_id),
        }
    print(json.dumps(report))


def watch_once(client):
    """The first identity that a watch brings."""
    came, seen = threading.Event(), []

    def on_update(context):
        seen.append(str(context.default_svid.spiffe_id))
        came.set()

    def on_error(error):
        seen.append(f"error: {error}")
        came.set()

    handler = client.stream_x509_contexts(on_update, on_error)
    assert came.wait(20), "the watch brought nothing"
    handler.cancel()
    return seen[0]


main()
