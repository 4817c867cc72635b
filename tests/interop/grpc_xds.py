"""grpcio resolves `xds:///` through our ADS and calls over mTLS with the certificates of our agent."""

import argparse
import json
import os
import pathlib
import sys
import tempfile


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--discovery", required=True)
    parser.add_argument("--target", required=True)
    parser.add_argument("--identity", type=pathlib.Path, required=True)
    parser.add_argument("--address", required=True)
    args = parser.parse_args()
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(bootstrap(args), file)
        file.flush()
        # gRPC reads it when it is loaded.
        os.environ["GRPC_XDS_BOOTSTRAP"] = file.name
        print(json.dumps({"reply": call(args.target)}))


def bootstrap(args):
    """What a proxyless workload is given, in gRPC's own form."""
    identity = {
        "certificate_file": str(args.identity / "svid.pem"),
        "private_key_file": str(args.identity / "svid.key"),
        "ca_certificate_file": str(args.identity / "bundle.pem"),
        "refresh_interval": "10s",
    }
    return {
        "xds_servers": [
            {"server_uri": args.discovery, "channel_creds": [{"type": "insecure"}], "server_features": ["xds_v3"]}
        ],
        "node": {
            "id": f"sidecar~{args.address}~grpc-client.default~default.svc.cluster.local",
            "metadata": {
                "GENERATOR": "grpc",
                "NAMESPACE": "default",
                "SERVICE_ACCOUNT": "test",
                "INSTANCE_IPS": args.address,
                "INTERCEPTION_MODE": "NONE",
            },
        },
        "certificate_providers": {"default": {"plugin_name": "file_watcher", "config": identity}},
    }


def call(target):
    import grpc

    sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "proto" / "proto"))
    messages, services = grpc.protos_and_services("demo/helloworld.proto")
    # Without a transport socket from xDS there is no second way: plain text would be refused by the sidecar.
    credentials = grpc.xds_channel_credentials(grpc.local_channel_credentials())
    with grpc.secure_channel(target, credentials) as channel:
        stub = services.GreeterStub(channel)
        return stub.SayHello(messages.HelloRequest(name="Zaynab"), timeout=20, wait_for_ready=True).message


main()
