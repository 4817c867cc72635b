"""Stock Envoy as a sidecar of the mesh: configuration from our ADS, certificates from our SDS, calls both ways over mTLS.

One Envoy at an address of its own carries the workload `envoy`: its outbound listener calls helloworld behind our
sidecar, and our `test` sidecar calls the workload through Envoy's inbound listener."""

import argparse
import http.client
import http.server
import ipaddress
import json
import pathlib
import socket
import subprocess
import sys
import threading
import time

HELLOWORLD = "helloworld.default.svc.cluster.local:9095"
ENVOY = "envoy.default.svc.cluster.local:9095"
DOCUMENTS = """\
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: envoy, namespace: default}}
spec:
  hosts: [envoy.default.svc.cluster.local]
  location: MESH_INTERNAL
  resolution: STATIC
  ports: [{{number: 9095, name: http, protocol: HTTP}}]
  workloadSelector: {{labels: {{app: envoy}}}}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {{name: envoy-v1, namespace: default}}
spec:
  address: {address}
  ports: {{http: 15006}}
  labels: {{app: envoy}}
  serviceAccount: test
"""


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mode", choices=["sotw", "delta"], required=True)
    parser.add_argument("--envoy", required=True)
    parser.add_argument("--kasbah", required=True)
    parser.add_argument("--dir", type=pathlib.Path, required=True)
    parser.add_argument("--scratch", type=pathlib.Path, required=True)
    parser.add_argument("--hold", action="store_true", help="go on calling both ways until stdin ends")
    args = parser.parse_args()
    endpoints = json.loads((args.dir / "endpoints.json").read_text())
    test = endpoints["workloads"]["test"]["address"]
    address = str(ipaddress.ip_address(test) + 100)
    workload = serve_workload(address)
    (args.dir / "config" / "stock-envoy.yaml").write_text(DOCUMENTS.format(address=address))
    admin = free_port()
    log = args.scratch / f"envoy-{args.mode}.log"
    bootstrap = args.scratch / f"envoy-{args.mode}.json"
    bootstrap.write_text(json.dumps(configuration(args, endpoints, address, admin), indent=1))
    envoy = start(args, bootstrap, log)
    try:
        report = {
            "envoy_to_kasbah": eventually(lambda: ask(address, HELLOWORLD, "/helloworld/whoami", "/sa/test"), envoy, log),
            "kasbah_to_envoy": eventually(lambda: ask(test, ENVOY, "/", "the workload behind Envoy"), envoy, log),
            "rejected": rejected(admin),
            "updates": updates(admin),
            "plain_text_refused": plain_text_refused(address),
        }
        if args.hold:
            report |= hold(address, test)
    finally:
        envoy.terminate()
        envoy.wait(20)
        workload.shutdown()
    print(json.dumps(report))
    if report["rejected"] or not report["plain_text_refused"]:
        sys.exit(f"{tail(log)}")


def hold(address, test):
    """Calls both ways, again and again; how many were answered, how many failed and how."""
    ended = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), ended.set()), daemon=True).start()
    answered, failures = 0, []
    calls = [
        lambda: ask(address, HELLOWORLD, "/helloworld/whoami", "/sa/test"),
        lambda: ask(test, ENVOY, "/", "the workload behind Envoy"),
    ]
    while not ended.wait(0.02):
        for call in calls:
            try:
                call()
                answered += 1
            except Exception as failure:
                failures.append(str(failure))
    return {"answered": answered, "failed": len(failures), "failures": failures[:5]}


def start(args, bootstrap, log):
    """Envoy under the launch name `test`, so that the agent gives it that identity."""
    command = [args.kasbah, "run", "--dir", str(args.dir), "--name", "test", "--"]
    command += [args.envoy, "-c", str(bootstrap), "--disable-hot-restart", "--concurrency", "1", "-l", "info"]
    return subprocess.Popen(command, stdout=log.open("wb"), stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)


def configuration(args, endpoints, address, admin):
    discovery_host, discovery_port = endpoints["discovery"]["xds"].rsplit(":", 1)
    http2 = {
        "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
            "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
            "explicit_http_config": {"http2_protocol_options": {}},
        }
    }

    def cluster(name, where):
        endpoint = {"lb_endpoints": [{"endpoint": {"address": where}}]}
        assignment = {"cluster_name": name, "endpoints": [endpoint]}
        return {
            "name": name,
            "type": "STATIC",
            "connect_timeout": "1s",
            "typed_extension_protocol_options": http2,
            "load_assignment": assignment,
        }

    ads = {"ads": {}, "resource_api_version": "V3"}
    return {
        "node": {
            "id": f"sidecar~{address}~envoy.default~default.svc.cluster.local",
            "cluster": "envoy.default",
            "metadata": {
                "NAMESPACE": "default",
                "SERVICE_ACCOUNT": "test",
                "WORKLOAD_NAME": "envoy",
                "LABELS": {"app": "envoy", "version": "v1"},
                "INSTANCE_IPS": address,
                "INTERCEPTION_MODE": "NONE",
            },
        },
        "dynamic_resources": {
            "ads_config": {
                "api_type": "GRPC" if args.mode == "sotw" else "DELTA_GRPC",
                "transport_api_version": "V3",
                "set_node_on_first_message_only": True,
                "grpc_services": [{"envoy_grpc": {"cluster_name": "xds-grpc"}}],
            },
            "lds_config": ads,
            "cds_config": ads,
        },
        "static_resources": {
            "clusters": [
                cluster("xds-grpc", socket_address(discovery_host, discovery_port)),
                cluster("sds-grpc", {"pipe": {"path": endpoints["agent"]["sds"].removeprefix("unix://")}}),
            ]
        },
        "admin": {"address": socket_address("127.0.0.1", admin)},
    }


def socket_address(host, port):
    return {"socket_address": {"address": host, "port_value": int(port)}}


def serve_workload(address):
    class Workload(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            body = b"the workload behind Envoy\n"
            self.send_response(200)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer((address, 9095), Workload)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


def ask(sidecar, host, path, expected):
    """A request through a sidecar's outbound listener; the status, once the answer is the expected one."""
    connection = http.client.HTTPConnection(sidecar, 15001, timeout=5)
    connection.request("GET", path, headers={"host": host})
    response = connection.getresponse()
    body = response.read().decode(errors="replace")
    if response.status != 200 or expected not in body:
        raise RuntimeError(f"{host}{path} answered {response.status} {dict(response.getheaders())}: {body[:300]}")
    return response.status


def eventually(look, envoy, log):
    began = time.monotonic()
    while True:
        try:
            return look()
        except Exception as seen:
            if envoy.poll() is not None:
                sys.exit(f"Envoy ended with {envoy.returncode}: {tail(log)}")
            if time.monotonic() - began > 30:
                sys.exit(f"{seen}\n{tail(log)}")
            time.sleep(0.1)


def stats(admin, suffix):
    connection = http.client.HTTPConnection("127.0.0.1", admin, timeout=5)
    connection.request("GET", f"/stats?filter={suffix}$")
    lines = connection.getresponse().read().decode().splitlines()
    return [(name, int(value)) for name, value in (line.rsplit(": ", 1) for line in lines)]


def rejected(admin):
    return [name for name, count in stats(admin, "update_rejected") if count]


def updates(admin):
    accepted = {name.split(".")[-2]: count for name, count in stats(admin, "update_success") if count}
    missing = {"cds", "lds"} - set(accepted)
    assert not missing, f"Envoy accepted no {missing}: {accepted}"
    return accepted


def plain_text_refused(address):
    try:
        connection = http.client.HTTPConnection(address, 15006, timeout=5)
        connection.request("GET", "/", headers={"host": ENVOY})
        return connection.getresponse().status is None
    except (OSError, http.client.HTTPException):
        return True


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def tail(log):
    return "\n".join(log.read_text(errors="replace").splitlines()[-40:])


main()
