"""A stand-in for sideloading as it was done before: one HTTP request a file, each file whole in memory.

    one_file_a_request.py agent ADDR PORT CERTS ROOT
    one_file_a_request.py sync ADDR PORT CERTS SRC [--keep-alive]

Written from the description of that way of working, for `make bench` only: list the device's files with their sizes and
times, send those that differ (times compared to a tenth of a second), delete those that are no more. Without --keep-alive
each request is a connection of its own, as http.server does it by default. Nothing is staged, verified or made durable.
"""

import datetime
import http.client
import http.server
import json
import os
import ssl
import sys
import urllib.parse

UTC = datetime.timezone.utc


def files(top):
    for folder, _, names in os.walk(top):
        for name in names:
            path = os.path.join(folder, name)
            yield os.path.relpath(path, top), os.stat(path)


def naive(mtime):
    return datetime.datetime.fromtimestamp(mtime, UTC).replace(tzinfo=None).isoformat()


def seconds(text):
    return datetime.datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


def context(purpose, certs, own, peer):
    made = ssl.SSLContext(purpose)
    made.check_hostname = False
    made.verify_mode = ssl.CERT_REQUIRED
    made.load_cert_chain(f"{certs}/sideloading_{own}.cert.pem", f"{certs}/sideloading_{own}.key.pem")
    made.load_verify_locations(f"{certs}/sideloading_{peer}.cert.pem")
    return made


class Agent(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = 1 << 16
    root = ""

    def answer(self, value, status=200):
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def place(self):
        return os.path.join(self.root, urllib.parse.unquote(self.path.removeprefix("/files/")))

    def do_GET(self):
        self.answer([{"filepath": p, "mtime": naive(s.st_mtime), "size": s.st_size} for p, s in files(self.root)])

    def do_PUT(self):
        content = self.rfile.read(int(self.headers["Content-Length"]))
        path = self.place()
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.write(content)
        mtime = seconds(self.headers["mtime"])
        os.utime(path, (mtime, mtime))
        self.answer({})

    def do_DELETE(self):
        os.remove(self.place())
        self.answer({})

    def log_message(self, *_):
        pass


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64


def agent(addr, port, certs, root):
    Agent.root = root
    server = Server((addr, int(port)), Agent)
    server.socket = context(ssl.PROTOCOL_TLS_SERVER, certs, "server", "client").wrap_socket(
        server.socket, server_side=True
    )
    server.serve_forever()


def sync(addr, port, certs, src, *flags):
    tls = context(ssl.PROTOCOL_TLS_CLIENT, certs, "client", "server")
    connection = None

    def request(method, path, body=None, headers=None):
        nonlocal connection
        if connection is None:
            connection = http.client.HTTPSConnection(addr, int(port), context=tls)
        connection.request(method, path, body, headers or {})
        response = connection.getresponse()
        value = json.loads(response.read())
        if response.status != 200:
            sys.exit(f"{method} {path}: {response.status}")
        if "--keep-alive" not in flags:
            connection.close()
            connection = None
        return value

    there = {f["filepath"]: f for f in request("GET", "/files")}
    for path, stat in files(src):
        known = there.pop(path, None)
        if known and known["size"] == stat.st_size and abs(seconds(known["mtime"]) - stat.st_mtime) < 0.1:
            continue
        with open(os.path.join(src, path), "rb") as file:
            content = file.read()
        request("PUT", "/files/" + urllib.parse.quote(path, safe=""), content, {"mtime": naive(stat.st_mtime)})
    for path in there:
        request("DELETE", "/files/" + urllib.parse.quote(path, safe=""))


if __name__ == "__main__":
    {"agent": agent, "sync": sync}[sys.argv[1]](*sys.argv[2:])
