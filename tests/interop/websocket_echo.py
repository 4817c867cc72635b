"""A WebSocket client: text, binary, empty and large messages come back as they were; so does a ping."""

import argparse
import json
import os
import ssl
import sys

from websockets.sync.client import connect


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", required=True)
    parser.add_argument("--ca-file")
    args = parser.parse_args()
    context = ssl.create_default_context(cafile=args.ca_file) if args.url.startswith("wss:") else None
    messages = ["salaam", "", "ü" * 70_000, b"\x00\x01\xff", b"", os.urandom(300_000)]
    with connect(args.url, ssl=context, open_timeout=20, max_size=1 << 20, proxy=None) as socket:
        for message in messages:
            socket.send(message)
            answer = socket.recv(timeout=20)
            if answer != message:
                sys.exit(f"{len(message)} of {type(message).__name__} came back as {len(answer)} of {type(answer).__name__}")
        socket.ping().wait(20)
    print(json.dumps({"echoed": len(messages)}))


main()
