#!/usr/bin/env python3
"""A Kinesis Video Streams service for tests: GetDataEndpoint and PutMedia over HTTPS, on threads.

It checks what the real one checks, by means that are not ours: the signature with botocore's own code, the Matroska
stream with the small reader below (and each connection's bytes are kept in a file, for mkvinfo and ffprobe), the
documented quotas. Then it acknowledges. What is wrong with a request is written to the log as a "problem"; a test reads
the log (JSON, one object a line).

    putmedia_standin.py --cert C --key K --dir FOLDER --access-key ID --secret S [--token T] [--script JSON]

It prints its two ports: the control plane and first data endpoint, and the data endpoint it can move to. The script is a
list with one entry for each PutMedia connection, in order; after its end all is well:

    {"fault": "ok"}                        nothing
    {"fault": "cut", "bytes": N}           reset after N bytes of body
    {"fault": "refuse", "fragment": N, "id": 4006}   an ERROR for the N-th fragment of the connection, then close
    {"fault": "close", "seconds": S}       the service ends the connection (as after 45 min)
    {"fault": "expired"}                   403 ExpiredTokenException
    {"fault": "status", "status": 503}     that status
    {"fault": "stall", "seconds": S}       neither read nor answered
    {"fault": "mute"}                      read and persisted, but no acknowledgement reaches the client
    {"fault": "move"}                      reset; the endpoint is the other port from now on, this one refuses
"""
import argparse
import hashlib
import json
import os
import socket
import ssl
import struct
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

MASTERS = {0x18538067, 0x1F43B675}  # Segment and Cluster: read inside, whatever their size
UNKNOWN = (1 << 56) - 1
NEEDED = {"host", "x-amz-date", "x-amzn-stream-name", "x-amzn-producer-start-timestamp",
          "x-amzn-fragment-acknowledgment-required", "x-amzn-fragment-timecode-type"}


class Fragment:
    def __init__(self):
        self.timecode, self.frames, self.bytes, self.last, self.tags = None, [], 0, 0, 0


class Matroska:
    """Reads elements as they come; raises ValueError for what is not as agreed."""

    def __init__(self, begins, ends):
        self.data, self.begins, self.ends = bytearray(), begins, ends
        self.fragment, self.tags, self.seen, self.tracks = None, 0, [], 0

    def feed(self, data):
        self.data += data
        while self.step():
            pass

    def number(self, at, keep):
        if at >= len(self.data):
            return None
        first = self.data[at]
        if first == 0:
            raise ValueError("a number longer than eight bytes")
        length = 9 - first.bit_length()
        if at + length > len(self.data):
            return None
        value = first if keep else first & ((1 << (8 - length)) - 1)
        for byte in self.data[at + 1:at + length]:
            value = value << 8 | byte
        return value, at + length

    def step(self):
        head = self.number(0, True)
        size = head and self.number(head[1], False)
        if not size:
            return False
        (ident, _), (size, start) = head, size
        if ident in MASTERS:
            if size != UNKNOWN:
                raise ValueError("element %x has a known size" % ident)
            del self.data[:start]
            if ident == 0x1F43B675:
                self.end()
                self.fragment = Fragment()
                self.fragment.tags, self.tags = self.tags, 0
            else:
                self.seen.append("segment")
            return True
        if size > 60_000_000:
            raise ValueError("element %x is too large" % ident)
        if start + size > len(self.data):
            return False
        self.element(ident, bytes(self.data[start:start + size]))
        del self.data[:start + size]
        return True

    def end(self):
        if self.fragment is not None:
            fragment, self.fragment = self.fragment, None
            if not fragment.frames:
                raise ValueError("a fragment without frames")
            self.ends(fragment)

    def element(self, ident, body):
        if ident == 0x1A45DFA3:
            if self.seen:
                raise ValueError("a second EBML header")
            self.seen.append("ebml")
        elif ident == 0x1549A966:
            if b"\x2a\xd7\xb1\x83\x0f\x42\x40" not in body:
                raise ValueError("the scale is not 1 ms")
        elif ident == 0x1654AE6B:
            if b"V_MPEG4/ISO/AVC" not in body or b"\x63\xa2" not in body:
                raise ValueError("the track is not H.264 with its private data")
            self.tracks += 1
        elif ident == 0x1254C367:
            if b"AWS_KINESISVIDEO_END_OF_FRAGMENT" in body:
                self.end()
            else:
                self.tags += body.count(b"\x67\xc8")
                if self.tags > 10:
                    raise ValueError("more than ten tags")
        elif ident == 0xE7:
            self.fragment.timecode = int.from_bytes(body, "big")
            self.begins(self.fragment)
        elif ident == 0xA3:
            fragment = self.fragment
            if fragment is None or fragment.timecode is None or self.tracks != 1:
                raise ValueError("a block outside a cluster, or before the track")
            (offset,), flags, frame = struct.unpack(">h", body[1:3]), body[3], body[4:]
            if body[0] != 0x81 or flags not in (0, 0x80):
                raise ValueError("a block of another track, or with lacing")
            if not fragment.frames and flags != 0x80:
                raise ValueError("a fragment that does not begin on a key frame")
            if offset < fragment.last or offset > 10_000:
                raise ValueError("a frame's time goes back or beyond 10 s")
            at, kinds = 0, []
            while at < len(frame):
                (length,) = struct.unpack(">I", frame[at:at + 4])
                kinds.append(frame[at + 4] & 31)
                at += 4 + length
            if at != len(frame) or (5 in kinds) != (flags == 0x80):
                raise ValueError("a frame whose NAL units are not framed by their lengths, or a wrong key flag")
            fragment.last = offset
            fragment.bytes += len(frame)
            fragment.frames.append(hashlib.sha256(frame).hexdigest())
        else:
            raise ValueError("element %x is not to be there" % ident)


class Service:
    def __init__(self, args):
        self.args, self.lock = args, threading.Lock()
        self.script, self.count, self.open = json.loads(args.script), 0, 0
        self.log_file = open(os.path.join(args.dir, "log.jsonl"), "w", buffering=1)
        self.ports, self.moved = [], False
        self.starts = []

    def log(self, **what):
        with self.lock:
            what["at"] = time.time()
            self.log_file.write(json.dumps(what) + "\n")

    def problem(self, text):
        self.log(event="problem", text=text)

    def take(self):
        with self.lock:
            self.count += 1
            return self.count, (self.script.pop(0) if self.script else {"fault": "ok"})


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    service = None

    def log_message(self, *_):
        pass

    def do_POST(self):
        if self.path == "/getDataEndpoint":
            self.endpoint()
        elif self.path == "/putMedia":
            self.close_connection = True
            self.put()
        else:
            self.answer(404, {"message": "no such path"})

    def answer(self, status, value, kind=None):
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        if kind:
            self.send_header("x-amzn-ErrorType", kind + ":http://internal/")
        self.end_headers()
        self.wfile.write(body)

    def authorized(self, body, needed):
        """Signs the request as botocore does and compares."""
        args, value = self.service.args, self.headers.get("authorization", "")
        parts = dict(part.strip().split("=", 1) for part in value.partition(" ")[2].split(",") if "=" in part)
        names = parts.get("SignedHeaders", "").split(";")
        if not needed <= set(names):
            self.service.problem("not signed: %s" % sorted(needed - set(names)))
            return False
        access, _, scope = parts.get("Credential", "").partition("/")
        known = access in (args.access_key, args.access_key + "2")
        token = self.headers.get("x-amz-security-token")
        if not known or scope.split("/")[1:] != [args.region, "kinesisvideo", "aws4_request"]:
            self.service.problem("credential %s/%s" % (access, scope))
            return False
        headers = {name: self.headers[name] for name in names}
        request = AWSRequest("POST", "https://%s%s" % (self.headers["host"], self.path), headers=headers, data=body)
        request.context["timestamp"] = self.headers["x-amz-date"]
        signer = SigV4Auth(Credentials(access, args.secret, token), "kinesisvideo", args.region)
        text = signer.string_to_sign(request, signer.canonical_request(request))
        age = abs(time.time() - time.mktime(time.strptime(self.headers["x-amz-date"], "%Y%m%dT%H%M%SZ")) + time.timezone)
        good = signer.signature(text, request) == parts.get("Signature") and age < 300
        if not good:
            self.service.problem("the signature is wrong, or %d s old" % age)
        return good

    def endpoint(self):
        service = self.service
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        if not self.authorized(body, {"host", "x-amz-date", "content-type"}):
            return self.answer(403, {"message": "no"}, "InvalidSignatureException")
        if json.loads(body) != {"APIName": "PUT_MEDIA", "StreamName": service.args.stream}:
            return self.answer(404, {"message": "no such stream"}, "ResourceNotFoundException")
        port = service.ports[1 if service.moved else 0]
        service.log(event="endpoint", port=port)
        self.answer(200, {"DataEndpoint": "https://localhost:%d" % port})

    def refuse(self, status, value, kind):
        """Answers and reads on until the client has heard: closing at once would reset the connection under the answer."""
        self.answer(status, value, kind)
        self.connection.settimeout(2)
        try:
            while self.rfile.read1(65536):
                pass
        except OSError:
            pass

    def put(self):
        service = self.service
        number, fault = service.take()
        kind = fault["fault"]
        names = ("x-amzn-producer-start-timestamp", "x-amzn-fragment-timecode-type")
        service.log(event="connection", number=number, fault=fault, port=self.server.server_address[1],
                    access=self.headers.get("authorization", "").partition("Credential=")[2].partition("/")[0],
                    **{name: self.headers.get(name) for name in names})
        if kind == "stall":
            time.sleep(fault["seconds"])
            return
        if service.moved and self.server.server_address[1] != service.ports[1]:
            service.problem("asked at the old address after the move")
        if not self.authorized(b"", NEEDED):
            return self.answer(403, {"message": "no"}, "InvalidSignatureException")
        if kind == "expired":
            return self.refuse(403, {"message": "The security token is expired"}, "ExpiredTokenException")
        if kind == "status":
            return self.refuse(fault["status"], {"message": "scripted"}, "ServiceUnavailableException")
        start = self.headers["x-amzn-producer-start-timestamp"]
        if self.headers["x-amzn-stream-name"] != service.args.stream or len(start.partition(".")[2]) != 3:
            service.problem("stream or start are wrong: %s" % start)
        with service.lock:
            service.open += 1
            if service.open > 1:
                service.log_file.write(json.dumps({"event": "problem", "text": "two connections at once"}) + "\n")
        try:
            Connection(self, number, fault, start).run()
        finally:
            with service.lock:
                service.open -= 1


class Connection:
    def __init__(self, handler, number, fault, start):
        self.handler, self.service, self.number, self.fault = handler, handler.service, number, fault
        self.relative = handler.headers["x-amzn-fragment-timecode-type"] == "RELATIVE"
        seconds, _, ms = start.partition(".")
        self.start_ms = int(seconds) * 1000 + int(ms)
        self.dump = open(os.path.join(self.service.args.dir, "connection-%02d.mkv" % number), "wb")
        self.matroska = Matroska(self.begins, self.ends)
        self.fragments, self.last, self.refused = 0, None, False
        self.due, self.over, self.wake = [], False, threading.Condition()

    # The answer -----------------------------------------------------------------------------------------------------
    def ack(self, event, fragment=None, delay=0.0, **more):
        value = dict(EventType=event, **more)
        if fragment is not None:
            value.update(FragmentTimecode=fragment.timecode, FragmentNumber="9134385%013d" % fragment.timecode)
        with self.wake:
            self.due.append((time.time() + delay, value, fragment))
            self.wake.notify()

    def writer(self):
        while True:
            with self.wake:
                while not self.due and not self.over:
                    self.wake.wait()
                if not self.due:
                    return
                at, value, fragment = self.due.pop(0)
            time.sleep(max(0, at - time.time()))
            if value["EventType"] == "PERSISTED":
                self.service.log(event="persisted", number=self.number, timecode=fragment.timecode, start_ms=self.absolute(fragment),
                                 frames=fragment.frames)
            if self.fault["fault"] == "mute":
                continue
            text = (json.dumps(value) + "\n").encode()
            try:
                self.handler.wfile.write(b"%x\r\n%s\r\n" % (len(text), text))
                self.handler.wfile.flush()
            except OSError:
                return

    # The request ----------------------------------------------------------------------------------------------------
    def absolute(self, fragment):
        return fragment.timecode + (self.start_ms if self.relative else 0)

    def begins(self, fragment):
        service = self.service
        if self.last is not None and fragment.timecode <= self.last:
            service.problem("times go back: %d after %d" % (fragment.timecode, self.last))
        if self.last is None and self.absolute(fragment) != self.start_ms:
            service.problem("the first fragment is not at the start that the request names")
        self.last = fragment.timecode
        now = time.time()
        service.starts = [at for at in service.starts if at > now - 4] + [now]
        if len(service.starts) > 21:
            service.problem("more than five fragments a second")
        self.ack("BUFFERING", fragment)

    def ends(self, fragment):
        service, self.fragments = self.service, self.fragments + 1
        if fragment.last > 10_000 or fragment.bytes > 50_000_000:
            service.problem("a fragment of %d ms and %d bytes" % (fragment.last, fragment.bytes))
        service.log(event="fragment", number=self.number, start_ms=self.absolute(fragment), length_ms=fragment.last,
                    frames=fragment.frames, bytes=fragment.bytes, tags=fragment.tags)
        if self.fault["fault"] == "refuse" and self.fragments == self.fault["fragment"]:
            self.refused = True
            service.log(event="refused", id=self.fault["id"], number=self.number, start_ms=self.absolute(fragment), frames=fragment.frames)
            self.ack("ERROR", fragment, ErrorId=self.fault["id"], ErrorCode="SCRIPTED")
            return
        if self.refused:
            return
        self.ack("RECEIVED", fragment)
        self.ack("PERSISTED", fragment, delay=service.args.persist_ms / 1000)

    def chunks(self):
        reader = self.handler.rfile
        while True:
            line = reader.readline(64)
            if not line:
                return
            size = int(line.strip(), 16)
            data = reader.read(size)
            if len(data) < size or reader.readline(8) != b"\r\n":
                return
            if size == 0:
                self.service.log(event="finished", number=self.number)
                self.matroska.end()
                return
            yield data

    def run(self):
        handler, kind = self.handler, self.fault["fault"]
        handler.send_response(200)
        handler.send_header("transfer-encoding", "chunked")
        handler.end_headers()
        thread = threading.Thread(target=self.writer, daemon=True)
        thread.start()
        got, began, clean = 0, time.time(), True
        if kind == "close":
            handler.connection.settimeout(0.5)
        try:
            for data in self.chunks():
                got += len(data)
                if kind in ("cut", "move") and got > self.fault["bytes"]:
                    clean = False
                    break
                self.dump.write(data)
                self.matroska.feed(data)
                if self.refused or kind == "close" and time.time() > began + self.fault["seconds"]:
                    break
        except ValueError as error:
            self.service.problem("connection %d: %s" % (self.number, error))
        except OSError:
            clean = False
        self.dump.close()
        with self.wake:
            self.over = True
            if not clean:
                self.due.clear()
            self.wake.notify()
        thread.join()
        self.service.log(event="closed", number=self.number, clean=clean, bytes=got)
        if kind == "move":
            self.service.moved = True
        if clean:
            try:
                handler.wfile.write(b"0\r\n\r\n")
                handler.wfile.flush()
            except OSError:
                pass
        else:
            # A reset, not an orderly end.
            handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, context):
        super().__init__(("127.0.0.1", 0), Handler)
        self.context = context

    def finish_request(self, request, address):
        try:
            wrapped = self.context.wrap_socket(request, server_side=True)
        except OSError:
            return
        with wrapped:
            self.RequestHandlerClass(wrapped, address, self)

    def handle_error(self, *_):
        pass


def main():
    parser = argparse.ArgumentParser()
    for name in ("cert", "key", "dir", "access-key", "secret"):
        parser.add_argument("--" + name, required=True)
    parser.add_argument("--region", default="eu-west-1")
    parser.add_argument("--stream", default="gate")
    parser.add_argument("--script", default="[]")
    parser.add_argument("--persist-ms", type=int, default=150)
    args = parser.parse_args()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(args.cert, args.key)
    Handler.service = service = Service(args)
    servers = [Server(context), Server(context)]
    service.ports = [server.server_address[1] for server in servers]
    for server in servers:
        threading.Thread(target=server.serve_forever, daemon=True).start()
    print(*service.ports, flush=True)
    # It ends with the test that started it.
    sys.stdin.read()


if __name__ == "__main__":
    main()
