#!/usr/bin/env python3
"""Numbered MQTT messages for the device tests: a publisher, a next hop, and the comparison. Of the standard library only
what python3-minimal has.

    load.py publish HOST:PORT TOPIC ACKED [N] publishes N (0), N + 1, N + 2 ... at QoS 1, 100 in flight, until killed;
                                              appends every number whose PUBACK came to ACKED
    load.py sink PORT ARRIVED                 a next hop: takes any CONNECT and SUBSCRIBE, appends every number of a
                                              PUBLISH to ARRIVED and only then answers with PUBACK
    load.py objects FOLDER ARRIVED            the numbers of the objects of s3put below FOLDER; checks their sidecars
    load.py compare ACKED ARRIVED...          exit 1 if an acknowledged number is missing or a payload was damaged

A payload is a function of its number alone, so a receiver checks every byte. The files are on a file system
that writes through: a number in ACKED was really acknowledged before the power went, a number in ARRIVED really taken over.
It speaks just enough MQTT for that, on purpose without the library that is under test.
"""
import hashlib
import os
import re
import socket
import sys
import time

WINDOW = 100


def payload(number):
    """9 bytes of number, then 0 to 6000 bytes that depend on it, so that frames end at all places of a segment."""
    seed = hashlib.sha256(b"%d" % number).digest()
    length = int.from_bytes(seed[:4], "big") % 6000 if number % 4 == 0 else seed[0]
    return b"%08d:" % number + (seed * (length // 32 + 1))[:length]


def number_of(body):
    """The number of a payload, or None if any byte of it is wrong."""
    try:
        number = int(body[:8])
    except ValueError:
        return None
    return number if body == payload(number) else None


def length_field(n):
    out = bytearray()
    while True:
        n, low = n >> 7, n & 0x7F
        out.append(low | (0x80 if n else 0))
        if not n:
            return bytes(out)


def packet(head, body):
    return bytes([head]) + length_field(len(body)) + body


def text(s):
    s = s.encode() if isinstance(s, str) else s
    return len(s).to_bytes(2, "big") + s


def varint(data, at):
    value, shift = 0, 0
    while True:
        if at >= len(data):
            return None, at
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if not byte & 0x80:
            return value, at


def packets(buffer):
    """Takes whole packets off the front of a bytearray: (first byte, body)."""
    at, found = 0, []
    while at + 2 <= len(buffer):
        length, start = varint(buffer, at + 1)
        if length is None or start + length > len(buffer):
            break
        found.append((buffer[at], bytes(buffer[start:start + length])))
        at = start + length
    del buffer[:at]
    return found


def append(fd, numbers):
    if numbers:
        os.write(fd, "".join("%s\n" % n for n in numbers).encode())


def connect(host, port):
    for _ in range(300):
        try:
            return socket.create_connection((host, port), timeout=60)
        except OSError:
            time.sleep(0.1)
    sys.exit("load.py: nobody listens on %s:%d" % (host, port))


def publish(address, topic, acked, first="0"):
    host, port = address.rsplit(":", 1)
    fd = os.open(acked, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    link = connect(host, int(port))
    link.sendall(packet(0x10, text("MQTT") + b"\x04\x02" + (60).to_bytes(2, "big") + text("load")))
    buffer, flying, number, welcome = bytearray(), {}, int(first), False
    while True:
        if welcome and len(flying) < WINDOW:
            out = bytearray()
            while len(flying) < WINDOW:
                pid = number % 65535 + 1
                flying[pid] = number
                out += packet(0x32, text(topic) + pid.to_bytes(2, "big") + payload(number))
                number += 1
            link.sendall(out)
        data = link.recv(65536)
        if not data:
            sys.exit("load.py: the connection was closed at message %d" % number)
        buffer += data
        done = []
        for head, body in packets(buffer):
            if head == 0x20:
                welcome = body[1] == 0
            elif head == 0x40:
                done.append(flying.pop(int.from_bytes(body[:2], "big")))
        append(fd, done)


def serve(link, fd):
    buffer, version = bytearray(), 4
    while True:
        data = link.recv(65536)
        if not data:
            return
        buffer += data
        numbers, out = [], bytearray()
        for head, body in packets(buffer):
            kind = head & 0xF0
            if kind == 0x10:
                version = body[6]
                out += packet(0x20, b"\0\0\0" if version == 5 else b"\0\0")
            elif kind == 0x30:
                at = 2 + int.from_bytes(body[:2], "big")
                pid = b""
                if head & 0x06:
                    pid, at = body[at:at + 2], at + 2
                if version == 5:
                    size, at = varint(body, at)
                    at += size
                number = number_of(body[at:])
                numbers.append("damaged" if number is None else number)
                if pid:
                    out += packet(0x40, pid)
            elif kind == 0x80:
                out += packet(0x90, body[:2] + (b"\0" if version == 5 else b"") + b"\1")
            elif kind == 0xC0:
                out += b"\xd0\0"
        append(fd, numbers)
        link.sendall(out)


def sink(port, arrived):
    fd = os.open(arrived, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    listener = socket.create_server(("127.0.0.1", int(port)))
    while True:
        link, _ = listener.accept()
        try:
            serve(link, fd)
        except OSError as error:
            print("load.py: sink:", error, file=sys.stderr)


def objects(folder, arrived):
    numbers, problems = [], []
    for where, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(where, name)
            if name.startswith("."):
                print("left over:", path)
                continue
            if name.endswith(".json"):
                continue
            with open(path, "rb") as file:
                body = file.read()
            number = number_of(body)
            numbers.append("damaged" if number is None else number)
            try:
                with open(path + ".json", "rb") as file:
                    # Without json: a small image has Debian's python3-minimal, which lacks it.
                    sums = re.findall(rb'"sha256": *"([0-9a-f]{64})"', file.read())
                if sums != [hashlib.sha256(body).hexdigest().encode()]:
                    problems.append(path + ": the sidecar names another sha256")
            except OSError as error:
                problems.append("%s: sidecar: %s" % (path, error))
    with open(arrived, "w", encoding="ascii") as file:
        file.writelines("%s\n" % n for n in numbers)
    print("objects %d, of them damaged %d, sidecar problems %d" % (len(numbers), numbers.count("damaged"), len(problems)))
    for problem in problems[:20]:
        print(problem)
    sys.exit(1 if problems or "damaged" in numbers else 0)


def compare(acked, *arrived):
    def lines(path):
        # A line without its end was being written when the power went.
        with open(path, encoding="ascii") as file:
            return [line.strip() for line in file if line.endswith("\n")] if os.path.exists(path) else []

    sent = set(lines(acked))
    came = [line for path in arrived if os.path.exists(path) for line in lines(path)]
    damaged = came.count("damaged")
    missing = sorted(sent - set(came), key=int)
    print("acked %d arrived %d distinct %d twice %d unacked-but-kept %d damaged %d missing %d" % (
        len(sent), len(came), len(set(came)), len(came) - len(set(came)), len(set(came) - sent), damaged, len(missing)))
    if missing:
        print("MISSING:", " ".join(missing[:50]))
    sys.exit(1 if missing or damaged or not sent else 0)


if __name__ == "__main__":
    verbs = {"publish": publish, "sink": sink, "objects": objects, "compare": compare}
    if len(sys.argv) < 4 or sys.argv[1] not in verbs:
        sys.exit(__doc__)
    verbs[sys.argv[1]](*sys.argv[2:])
