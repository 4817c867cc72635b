"""Reads the loopback device until stdin ends and says of every stream to a port whether it was only TLS 1.3.

Judged is what went over the wire: each stream whose start was seen has to begin with a ClientHello and a ServerHello that
agree on TLS 1.3, to consist of TLS records alone, and not to show the marker that the test put into its requests."""

import argparse
import ipaddress
import json
import pathlib
import select
import socket
import struct
import sys
import time

TLS13 = b"\x03\x04"
HANDSHAKE, APPLICATION_DATA = 22, 23
KNOWN_RECORDS = {20, 21, HANDSHAKE, APPLICATION_DATA}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--marker", required=True)
    parser.add_argument("--report", type=pathlib.Path, required=True)
    args = parser.parse_args()
    try:
        device = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(0x0800))
    except PermissionError as error:
        sys.exit(f"the loopback device cannot be read: {error}")
    device.setsockopt(socket.SOL_SOCKET, 33, 64 << 20)  # SO_RCVBUFFORCE
    device.bind(("lo", 0x0800))
    print("listening", flush=True)
    streams = capture(device, args.port)
    report = [judge(key, stream, args.marker.encode()) for key, stream in sorted(streams.items())]
    args.report.write_text(json.dumps({"streams": [one for one in report if one]}, indent=1))


def capture(device, port):
    """The segments of each connection to the port: {(client, its port, server): {"to"|"from": {sequence: bytes}}}."""
    streams = {}
    ends_at = None
    while True:
        ready, _, _ = select.select([device] if ends_at else [device, sys.stdin], [], [], 0.5 if ends_at else None)
        if ends_at and (not ready or time.monotonic() > ends_at):
            return streams
        if sys.stdin in ready:
            # What is under way still arrives; other programs' traffic may never end.
            ends_at = time.monotonic() + 3
        elif device in ready:
            packet, origin = device.recvfrom(1 << 16)
            # Loopback shows every packet twice: as it leaves and as it arrives.
            if origin[2] != socket.PACKET_OUTGOING:
                note(streams, packet, port)


def note(streams, packet, port):
    head = (packet[0] & 15) * 4
    if packet[9] != socket.IPPROTO_TCP:
        return
    length = struct.unpack("!H", packet[2:4])[0] or len(packet)
    source, target = (str(ipaddress.ip_address(packet[at : at + 4])) for at in (12, 16))
    from_port, to_port, sequence = struct.unpack("!HHI", packet[head : head + 8])
    data = packet[head + (packet[head + 12] >> 4) * 4 : length]
    synchronises = packet[head + 13] & 2
    if to_port == port:
        key, way = (source, from_port, target), "to"
    elif from_port == port:
        key, way = (target, to_port, source), "from"
    else:
        return
    stream = streams.setdefault(key, {"to": {}, "from": {}, "start": {}})
    if synchronises:
        stream["start"][way] = (sequence + 1) % (1 << 32)
    if data:
        segments = stream[way]
        if len(data) > len(segments.get(sequence, b"")):
            segments[sequence] = data


def judge(key, stream, marker):
    client, client_port, server = key
    told = {"client": f"{client}:{client_port}", "server": server}
    if set(stream["start"]) != {"to", "from"}:
        return None
    to, back = (joined(stream[way], stream["start"][way]) for way in ("to", "from"))
    if not to and not back:
        return None
    problems = []
    if marker in to or marker in back:
        problems.append("the marker is readable")
    for way, data in (("to", to), ("from", back)):
        problems += [f"{way}: {problem}" for problem in unknown_records(data)]
    if not problems and not agrees_on_tls13(to, back):
        problems.append("the handshake is not TLS 1.3")
    return told | {"bytes": len(to) + len(back), "verdict": "; ".join(problems) or "TLSv1.3"}


def joined(segments, start):
    data = bytearray()
    for sequence, part in sorted(segments.items(), key=lambda item: (item[0] - start) % (1 << 32)):
        at = (sequence - start) % (1 << 32)
        if at > len(data):
            break  # a hole: what follows cannot be told apart
        data[at : at + len(part)] = part
    return bytes(data)


def unknown_records(data):
    at = 0
    while at + 5 <= len(data):
        kind, major, length = data[at], data[at + 1], struct.unpack("!H", data[at + 3 : at + 5])[0]
        if kind not in KNOWN_RECORDS or major != 3 or length > (1 << 14) + 256:
            return [f"no TLS record at byte {at}: {data[at:at + 12]!r}"]
        at += 5 + length
    return []


def agrees_on_tls13(to, back):
    """Whether supported_versions of both hellos is there and the server's choice is TLS 1.3."""
    if not (to[:1] == back[:1] == bytes([HANDSHAKE]) and to[5] == 1 and back[5] == 2):
        return False
    offered, chosen = extension_43(hello(to), client=True), extension_43(hello(back), client=False)
    return offered is not None and offered[1:] == TLS13 and chosen == TLS13


def hello(data):
    """The body of the first handshake message."""
    record = data[5 : 5 + struct.unpack("!H", data[3:5])[0]]
    return record[4 : 4 + int.from_bytes(record[1:4], "big")]


def extension_43(body, client):
    """supported_versions: a list in a ClientHello, the choice in a ServerHello."""
    at = 34  # version and random
    at += 1 + body[at]  # session id
    if client:
        at += 2 + struct.unpack("!H", body[at : at + 2])[0]  # cipher suites
        at += 1 + body[at]  # compression methods
    else:
        at += 3  # the chosen cipher suite and no compression
    if at + 2 > len(body):
        return None  # older than extensions
    end = at + 2 + struct.unpack("!H", body[at : at + 2])[0]
    at += 2
    while at + 4 <= end:
        kind, length = struct.unpack("!HH", body[at : at + 4])
        if kind == 43:
            return body[at + 4 : at + 4 + length]
        at += 4 + length
    return None


main()
