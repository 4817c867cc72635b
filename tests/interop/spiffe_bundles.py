"""py-spiffe as a workload: how many roots of each trust domain the Workload API gives it."""

import json

from spiffe import WorkloadApiClient


def main():
    with WorkloadApiClient() as client:
        bundles = client.fetch_x509_bundles(timeout=20)
        print(json.dumps({str(domain.name): len(bundle.x509_authorities) for domain, bundle in found(bundles)}))


def found(bundles):
    for bundle in bundles.bundles:
        yield bundle.trust_domain, bundle


main()
