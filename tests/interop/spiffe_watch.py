"""py-spiffe keeps watching: reports the serials of all certificates that the agent pushes in a given time, and uses every
call of the Workload API beside it. With --rotations it ends early, after so many new certificates."""

import argparse
import datetime
import json
import sys
import threading
import time

from spiffe import WorkloadApiClient


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--rotations", type=int)
    args = parser.parse_args()
    watched = Watched()
    with WorkloadApiClient() as client:
        handler = client.stream_x509_contexts(watched.on_update, watched.on_error)
        end = time.monotonic() + args.seconds
        while time.monotonic() < end and not watched.has(args.rotations):
            watched.look()
            call_all(client, watched)
            time.sleep(0.05)
        handler.cancel()
    print(json.dumps({"serials": watched.serials, "errors": watched.errors, "calls": watched.calls}))
    sys.exit(1 if watched.errors else 0)


class Watched:
    """What the stream brought; whatever is wrong with it is an error."""

    def __init__(self):
        self.serials, self.errors, self.calls = [], [], 0
        self.lock, self.ends = threading.Lock(), None

    def on_update(self, context):
        with self.lock:
            leaf = context.default_svid.leaf
            self.valid("an SVID on the stream", leaf.not_valid_after_utc)
            self.ends = leaf.not_valid_after_utc
            serial = f"{leaf.serial_number:x}"
            if serial not in self.serials:
                self.serials.append(serial)

    def on_error(self, error):
        self.errors.append(str(error))

    def look(self):
        """The certificate that came last must not have ended: its successor is late then."""
        with self.lock:
            if self.ends:
                self.valid("the newest SVID", self.ends)

    def valid(self, what, ends):
        late = (now() - ends).total_seconds()
        if late >= 0:
            self.errors.append(f"{what} ended {late:.3f} s ago")

    def has(self, rotations):
        return rotations is not None and len(self.serials) > rotations


def call_all(client, watched):
    """Fetches and validates what there is; each answer must be of now."""
    try:
        svid = client.fetch_x509_svid(timeout=10)
        watched.valid("a fetched SVID", svid.leaf.not_valid_after_utc)
        domain = svid.spiffe_id.trust_domain
        assert client.fetch_x509_bundles(timeout=10).get_bundle_for_trust_domain(domain).x509_authorities
        token = client.fetch_jwt_svid(audience={"db"}, timeout=10)
        watched.valid("a JWT-SVID", datetime.datetime.fromtimestamp(token.expiry, datetime.timezone.utc))
        assert client.fetch_jwt_bundles(timeout=10).get_bundle_for_trust_domain(domain).jwt_authorities
        client.validate_jwt_svid(token=token.token, audience="db", timeout=10)
        watched.calls += 1
    except Exception as error:
        watched.errors.append(repr(error))


def now():
    return datetime.datetime.now(datetime.timezone.utc)


main()
