"""A process opens a stream of the Workload API and then becomes another program, which goes on reading: what that one gets.

HTTP/2 by hand, because the connection has to survive `exec`: the next program is `cat`, with the socket as its input."""

import argparse
import json
import os
import select
import socket
import struct
import subprocess
import sys
import time

DATA, HEADERS, SETTINGS = 0, 1, 4
END_STREAM, END_HEADERS = 1, 4


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--socket", required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--become-cat", action="store_true")
    args = parser.parse_args()
    if args.become_cat:
        become_cat(args.socket)
    command = [sys.executable, __file__, "--socket", args.socket, "--seconds", "0", "--become-cat"]
    child = subprocess.Popen(command, stdout=subprocess.PIPE)
    try:
        print(json.dumps(read_after_exec(child.stdout.fileno(), args.seconds)))
    finally:
        child.kill()
        child.wait()


def become_cat(path):
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(path)
    connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(SETTINGS, 0, 0, b""))
    connection.sendall(frame(HEADERS, END_HEADERS, 1, request()) + frame(DATA, END_STREAM, 1, bytes(5)))
    while True:
        kind, _, _, payload = read_frame(lambda size: receive(connection, size))
        if kind == DATA and payload:
            break
    os.dup2(connection.fileno(), 0)
    os.execv("/bin/cat", ["cat"])


def read_after_exec(descriptor, seconds):
    """Frames that the next program was sent, until the stream ends or the time is over."""
    end, messages, ended = time.monotonic() + seconds, 0, False

    def read(size):
        held = b""
        while len(held) < size:
            ready, _, _ = select.select([descriptor], [], [], max(0, end - time.monotonic()))
            more = os.read(descriptor, size - len(held)) if ready else b""
            if not more:
                raise TimeoutError
            held += more
        return held

    try:
        while not ended:
            kind, flags, stream, payload = read_frame(read)
            messages += stream == 1 and kind == DATA and len(payload) > 0
            ended = stream == 1 and kind == HEADERS and bool(flags & END_STREAM)
    except TimeoutError:
        pass
    return {"messages": messages, "ended": ended}


def request():
    """Header fields without compression: indexed where the static table has the whole, else literal."""
    path = literal(b"\x04", b"/SpiffeWorkloadAPI/FetchX509SVID")
    fields = [b"\x83", b"\x86", path, literal(b"\x01", b"localhost"), literal(b"\x0f\x10", b"application/grpc")]
    fields += [named(b"te", b"trailers"), named(b"workload.spiffe.io", b"true")]
    return b"".join(fields)


def named(name, value):
    return literal(b"\x00" + bytes([len(name)]) + name, value)


def literal(name, value):
    return name + bytes([len(value)]) + value


def frame(kind, flags, stream, payload):
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def read_frame(read):
    head = read(9)
    size = int.from_bytes(head[:3], "big")
    return head[3], head[4], int.from_bytes(head[5:9], "big"), read(size)


def receive(connection, size):
    held = b""
    while len(held) < size:
        more = connection.recv(size - len(held))
        if not more:
            sys.exit("the agent closed the connection")
        held += more
    return held


main()
