"""py-spiffe keeps watching: reports the serials of all certificates that the agent pushes in a given time."""

import argparse
import json
import sys
import time

from spiffe import WorkloadApiClient


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, required=True)
    args = parser.parse_args()
    serials, errors = [], []

    def on_update(context):
        serial = f"{context.default_svid.leaf.serial_number:x}"
        if serial not in serials:
            serials.append(serial)

    with WorkloadApiClient() as client:
        handler = client.stream_x509_contexts(on_update, lambda error: errors.append(str(error)))
        time.sleep(args.seconds)
        handler.cancel()
    print(json.dumps({"serials": serials, "errors": errors}))
    sys.exit(1 if errors else 0)


main()
