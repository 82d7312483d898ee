#!/usr/bin/env python3
"""A client of sideloadd written from its contract alone, with Python's http.client and ssl.

    sideload_contract.py SCENARIO --port N --keys DIR [--root DIR] [--src DIR] [--hold SECONDS]

It stands for the clients that exist already: certificates checked against exactly one file, host names not checked,
headers and body in separate writes, one connection kept alive. Each scenario ends with exit status 0 or a traceback.
It holds no secret, and never touches --root except to look.
"""
import argparse
import http.client
import json
import os
import socket
import ssl
import stat
import sys
import time
from datetime import datetime, timedelta, timezone
from urllib.parse import quote

HOST = "127.0.0.1"


def context(keys, client="sideloading_client", version=None):
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    made.check_hostname = False
    made.verify_mode = ssl.CERT_REQUIRED
    made.load_verify_locations(os.path.join(keys, "sideloading_server.cert.pem"))
    if client:
        made.load_cert_chain(os.path.join(keys, client + ".cert.pem"), os.path.join(keys, client + ".key.pem"))
    if version:
        made.minimum_version = made.maximum_version = version
    return made


class Client:
    """One connection; `ask` checks that every answer is what the contract says of all of them."""

    def __init__(self, args):
        self.args = args
        self.connection = http.client.HTTPSConnection(HOST, args.port, context=context(args.keys), timeout=30)
        self.connection.connect()
        self.socket = self.connection.sock

    def ask(self, method, path, body=None, headers=None, pause=0.0, expect=200):
        self.connection.putrequest(method, path)
        for name, value in (headers or {}).items():
            self.connection.putheader(name, value)
        if body is not None:
            self.connection.putheader("Content-Length", str(len(body)))
        self.connection.endheaders()
        if pause:
            time.sleep(pause)
        if body:
            try:
                self.connection.send(body)
            except (BrokenPipeError, ConnectionResetError):
                pass  # An answer may still be there.
        answer = self.connection.getresponse()
        content = answer.read()
        assert answer.status == expect, (method, path, answer.status, content[:300], "expected", expect)
        if method == "GET" and path.startswith("/files/") and expect == 200:
            return content, answer
        kind = answer.getheader("Content-Type", "")
        assert kind.startswith("application/json"), (method, path, kind, content[:300])
        value = json.loads(content)
        if expect >= 400:
            assert isinstance(value, dict) and value.get("message"), (method, path, value)
        return value

    def same_connection(self):
        return self.connection.sock is self.socket

    def close(self):
        self.connection.close()


def listing(client):
    found = {}
    for item in client.ask("GET", "/files"):
        assert set(item) == {"filepath", "mtime", "size"}, item
        assert isinstance(item["size"], int) and isinstance(item["filepath"], str), item
        mtime = datetime.fromisoformat(item["mtime"])
        assert mtime.tzinfo is None, item
        # What older interpreters can read: no fraction, milliseconds or microseconds.
        fraction = item["mtime"].partition(".")[2]
        assert len(fraction) in (0, 3, 6), item
        found[item["filepath"]] = (mtime, item["size"])
    return found


def contract(args):
    client = Client(args)
    assert client.ask("GET", "/files") == []

    # A file with its time, headers and body in writes of their own.
    when = "2024-02-29T14:46:57.123456"
    assert client.ask("PUT", "/files/lib/a.py", b"print(1)\n", {"mtime": when}, pause=0.1) == {}
    assert listing(client) == {"lib/a.py": (datetime.fromisoformat(when), 9)}
    assert client.ask("GET", "/files/lib/a.py")[0] == b"print(1)\n"
    moment = datetime.fromisoformat(when).replace(tzinfo=timezone.utc).timestamp()
    assert abs(os.stat(os.path.join(args.root, "lib/a.py")).st_mtime - moment) < 0.001

    # No fraction is a time as well; no header at all is now; so is a second PUT another content.
    client.ask("PUT", "/files/lib/a.py", b"print(22)\n", {"mtime": "2023-01-02T03:04:05"})
    assert listing(client)["lib/a.py"] == (datetime(2023, 1, 2, 3, 4, 5), 10)
    client.ask("PUT", "/files/lib/a.py", b"print(333)\n")
    mtime, size = listing(client)["lib/a.py"]
    assert size == 11 and abs(mtime - datetime.now(timezone.utc).replace(tzinfo=None)) < timedelta(seconds=30), mtime
    client.ask("PUT", "/files/lib/a.py", b"x", {"mtime": "2023-01-02T03:04:05Z"}, expect=400)
    client.ask("PUT", "/files/lib/a.py", b"x", {"mtime": "yesterday"}, expect=400)
    assert client.ask("GET", "/files/lib/a.py")[0] == b"print(333)\n"
    assert client.ask("DELETE", "/files/lib/a.py") == {}

    # Names, encoded fully or as far as a path asks for.
    names = ["plain.txt", "with space/\u00fc\u00f1/100%#?&+;=@:,'()!*~$.txt", "\u65e5\u672c/\u8a9e.txt", ".hidden", "a/b/c/d/e", "%41%2f", "..."]
    for number, name in enumerate(names):
        body = name.encode() * 3
        encoded = quote(name) if number % 2 else quote(name, safe="")
        client.ask("PUT", "/files/" + encoded, body, {"mtime": "2024-05-06T07:08:09.5"})
        assert client.ask("GET", "/files/" + quote(name))[0] == body, name
        with open(os.path.join(args.root, name), "rb") as file:
            assert file.read() == body, name
    assert set(listing(client)) == set(names), listing(client)
    for name in names:
        assert client.ask("DELETE", "/files/" + quote(name)) == {}
        client.ask("DELETE", "/files/" + quote(name), expect=404)
        client.ask("GET", "/files/" + quote(name), expect=404)
    assert client.ask("GET", "/files") == []

    # Nothing, and much.
    client.ask("PUT", "/files/empty", b"")
    assert client.ask("GET", "/files/empty")[0] == b""
    large = os.urandom(1 << 20) * 5 + b"end"
    client.ask("PUT", "/files/large", large, pause=0.05)
    assert client.ask("GET", "/files/large")[0] == large
    client.ask("PUT", "/files/script.sh", b"#!/bin/sh\nexit 0\n")
    assert stat.S_IMODE(os.stat(os.path.join(args.root, "script.sh")).st_mode) == 0o755
    assert stat.S_IMODE(os.stat(os.path.join(args.root, "empty")).st_mode) == 0o644
    for name in ["empty", "large", "script.sh"]:
        client.ask("DELETE", "/files/" + name)

    # The application.
    client.ask("DELETE", "/application", expect=409)
    client.ask("POST", "/application", expect=404)
    client.ask("PUT", "/files/main.py", b"import time\nprint('up', flush=True)\ntime.sleep(60)\n")
    assert isinstance(client.ask("POST", "/application"), dict)
    client.ask("POST", "/application", expect=409)
    assert isinstance(client.ask("DELETE", "/application"), dict)
    client.ask("DELETE", "/application", expect=409)
    assert isinstance(client.ask("POST", "/application", b""), dict)
    assert isinstance(client.ask("DELETE", "/application"), dict)

    # Errors are JSON, too.
    for method, path, expect in [
        ("GET", "/", 404),
        ("GET", "/nothing/here", 404),
        ("POST", "/files", 405),
        ("GET", "/application", 405),
        ("PATCH", "/files/main.py", 405),
        ("GET", "/files/%zz", 400),
    ]:
        client.ask(method, path, expect=expect)
    assert client.same_connection(), "all of that was one connection"
    client.close()


def rejected_body(args):
    """A body that nobody wants is read all the same, and the connection goes on."""
    client = Client(args)
    client.ask("GET", "/files")
    for size in (1, 100_000, 3_000_000):
        client.ask("PUT", "/files/../outside", b"z" * size, pause=0.05, expect=400)
        client.ask("PUT", "/files/%2Fabsolute", b"z" * size, expect=400)
        client.ask("PUT", "/files/x", b"z" * size, {"mtime": "nonsense"}, expect=400)
        client.ask("POST", "/nowhere", b"z" * size, expect=404)
        client.ask("GET", "/files")
        assert client.same_connection(), size
    assert client.ask("GET", "/files") == []


def end_of_file(args):
    """Connections that end without a close_notify, at every stage, harm nobody."""
    for lead in (b"", b"GET /fil", b"GET /files HTTP/1.1\r\nHost: x\r\n\r\n", b"PUT /files/half HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nhalf"):
        raw = socket.create_connection((HOST, args.port), timeout=10)
        wrapped = context(args.keys).wrap_socket(raw)
        if lead:
            wrapped.sendall(lead)
        if lead.startswith(b"GET /files"):
            assert wrapped.recv(12).startswith(b"HTTP/1.1 200"), lead
        os.close(wrapped.detach())
    # Half-closed as HTTP/1.0 clients do it: the answer comes all the same.
    raw = socket.create_connection((HOST, args.port), timeout=10)
    wrapped = context(args.keys).wrap_socket(raw)
    wrapped.sendall(b"GET /files HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    got = b""
    while True:
        try:
            piece = wrapped.recv(65536)
        except ssl.SSLEOFError:
            break
        if not piece:
            break
        got += piece
    assert got.startswith(b"HTTP/1.1 200") and got.endswith(b"[]"), got
    client = Client(args)
    assert client.ask("GET", "/files") == []


def attempt(args, made):
    """What a server lets us see when we ask for the list and send a file."""
    raw = socket.create_connection((HOST, args.port), timeout=10)
    got = b""
    try:
        with made.wrap_socket(raw) as wrapped:
            wrapped.sendall(b"PUT /files/intruder HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nbad")
            wrapped.sendall(b"GET /files HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            while True:
                piece = wrapped.recv(65536)
                if not piece:
                    break
                got += piece
    except (ssl.SSLError, ConnectionResetError, BrokenPipeError) as error:
        return got, repr(error)
    return got, "end of file"


def refused(args):
    """No certificate, another's, and those that --keys holds as `outdated` and `early`: not one byte of HTTP."""
    for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        for who in (None, "stranger", "outdated", "early"):
            got, why = attempt(args, context(args.keys, who, version))
            print(version.name, who, why)
            assert got == b"", (who, got)
        got, why = attempt(args, context(args.keys, version=version))
        assert got.count(b"HTTP/1.1 200") == 2, (version, got, why)
        client = Client(args)
        assert client.ask("DELETE", "/files/intruder") == {}
    # No TLS at all.
    for lead in (b"GET /files HTTP/1.1\r\n\r\n", bytes(range(256)), b"\x16\x03\x01\xff\xff" + b"\x00" * 1000):
        raw = socket.create_connection((HOST, args.port), timeout=10)
        raw.sendall(lead)
        raw.shutdown(socket.SHUT_WR)
        got = b""
        try:
            while True:
                piece = raw.recv(65536)
                if not piece:
                    break
                got += piece
        except ConnectionResetError:
            pass
        assert b"HTTP" not in got, got
    assert Client(args).ask("GET", "/files") == []


def attack(args):
    """Paths that lead elsewhere: 400, whatever the method; --root holds links that somebody prepared."""
    client = Client(args)
    before = open(os.path.join(args.src, "secret")).read()
    paths = ["/etc/passwd", "../secret", "a/../../secret", "..", ".", "a/./b", "a//b", "a/", "", "nul\0", "back\\slash", "tab\tname",
             "line\nbreak", "out/secret", "out-file", "up/secret", "deep/out/secret", "loop/x", ".sideloadd/lock",
             ".sideloadd/objects/x", "x" * 256, "y/" * 600 + "z", "chain/secret"]
    for path in paths:
        encoded = quote(path, safe="")
        for method, body in (("GET", None), ("PUT", b"overwritten"), ("DELETE", None)):
            if path == "out-file" and method == "DELETE":
                continue  # The link itself is in the root, and may go.
            client.ask(method, "/files/" + encoded, body, expect=400)
    client.ask("GET", "/files/%ff%fe", expect=400)
    client.ask("GET", "/files/%2e%2e%2fsecret", expect=400)
    # Not normalised by anybody on the way.
    client.ask("GET", "/files/../../../../etc/passwd", expect=400)
    # A link within the root is followed.
    assert client.ask("GET", "/files/inside")[0] == b"inside\n"
    assert open(os.path.join(args.src, "secret")).read() == before
    assert os.listdir(args.src) == ["secret"], os.listdir(args.src)
    assert client.same_connection()


def original_sync(args):
    """The original's way: list, compare time (1 s) and size, send what differs, delete what has gone. Prints counts."""
    client = Client(args)
    there, sent, deleted = listing(client), 0, 0
    for folder, _, files in os.walk(args.src):
        for name in files:
            path = os.path.join(folder, name)
            relative = os.path.relpath(path, args.src)
            about = os.stat(path)
            mtime = datetime.fromtimestamp(about.st_mtime, timezone.utc).replace(tzinfo=None)
            known = there.pop(relative, None)
            if known and known[1] == about.st_size and abs(known[0] - mtime) < timedelta(seconds=1):
                continue
            with open(path, "rb") as file:
                client.ask("PUT", "/files/" + quote(relative), file.read(), {"mtime": mtime.isoformat()})
            sent += 1
    for relative in there:
        client.ask("DELETE", "/files/" + quote(relative))
        deleted += 1
    assert client.same_connection()
    print(json.dumps({"sent": sent, "deleted": deleted}))


def slow(args):
    """Silent, slow and stuck peers, held for --hold seconds while somebody else works. Prints `holding` first."""
    held = []
    for _ in range(6):
        held.append(socket.create_connection((HOST, args.port)))  # Never says a word.
    drip = []
    for lead in (b"GET /files HTTP/1.1\r\nHost: x\r\nX: ", b"PUT /files/slow HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n"):
        for _ in range(3):
            raw = socket.create_connection((HOST, args.port))
            wrapped = context(args.keys).wrap_socket(raw)
            wrapped.sendall(lead)
            drip.append(wrapped)
    # Asks for much and reads nothing.
    deaf = []
    for _ in range(3):
        raw = socket.create_connection((HOST, args.port))
        wrapped = context(args.keys).wrap_socket(raw)
        wrapped.sendall(b"GET /files/big HTTP/1.1\r\nHost: x\r\n\r\n")
        deaf.append(wrapped)
    print("holding", flush=True)
    began, cut = time.monotonic(), 0
    while time.monotonic() - began < args.hold:
        for wrapped in list(drip):
            try:
                wrapped.sendall(b"a")
            except OSError:
                drip.remove(wrapped)
                cut += 1
        time.sleep(0.2)
    for raw in held:
        raw.settimeout(0.2)
        try:
            cut += raw.recv(1) == b""
        except socket.timeout:
            pass
        except OSError:
            cut += 1
    print(json.dumps({"cut": cut, "deaf": len(deaf)}))


SCENARIOS = [contract, rejected_body, end_of_file, refused, attack, original_sync, slow]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("scenario", choices=[s.__name__ for s in SCENARIOS])
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--keys", required=True)
    parser.add_argument("--root")
    parser.add_argument("--src")
    parser.add_argument("--hold", type=float, default=5)
    args = parser.parse_args()
    {s.__name__: s for s in SCENARIOS}[args.scenario](args)


if __name__ == "__main__":
    sys.exit(main())
