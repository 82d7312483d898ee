#!/usr/bin/env python3
"""A package server written from the original's contract, for tests: Python's http.server and tarfile, none of our code.

    ota_standin.py FOLDER

FOLDER/catalog.json: [{"app", "env", "version", "file" (in FOLDER), "attrs": [...]}], read at every request; the newest
entry of an app and environment counts. FOLDER/port gets the port. Behaves as the original does: the tar.gz says
Content-Encoding: gzip although it is the content itself, `package_details.json` is the last entry, and unknown
parameters are names of apps. FOLDER/requests gets a line per request.
"""
import gzip
import hashlib
import http.server
import io
import json
import os
import sys
import tarfile
import urllib.parse

FOLDER = sys.argv[1]


def load():
    with open(os.path.join(FOLDER, "catalog.json"), encoding="utf-8") as file:
        newest = {}
        for entry in json.load(file):
            newest[(entry["app"].lower(), entry["env"].lower())] = entry
        return list(newest.values())


def select(catalog, query):
    """The apps that the query asks for."""
    query = [(name.lower(), value) for name, value in query]
    named = dict(query)
    if "cpuarch" not in named:
        return 400, "Missing cpuArch query param"
    if named.get("payloadtype", "fullPayload").lower() not in ("fullpayload", "metadataonly"):
        return 400, "Invalid payloadType param"
    wanted = [("os_" + named["cpuarch"].lower(), named.get("os", "prod").lower())]
    found = []
    for name, value in query:
        if name in ("cpuarch", "os", "payloadtype"):
            continue
        if name.startswith("attr"):
            attr = name[4:]
            found += [e for e in catalog if attr in e.get("attrs", []) and e["env"].lower() == value.lower()]
        else:
            wanted.append((name, value.lower()))
    found += [e for e in catalog if (e["app"].lower(), e["env"].lower()) in wanted]
    return (200, found) if found else (404, "No deployment package found")


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def answer(self, status, headers, body):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if status != 304:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if status != 304:
            self.wfile.write(body)

    def error(self, status, why):
        self.answer(status, {"Content-Type": "application/json", "Cache-Control": "no-store"},
                    json.dumps({"error": why}).encode())

    def do_GET(self):
        url = urllib.parse.urlsplit(self.path)
        etags = [tag.strip().strip('"') for tag in self.headers.get("If-None-Match", "").split(",") if tag.strip()]
        with open(os.path.join(FOLDER, "requests"), "a", encoding="utf-8") as file:
            file.write(f"{self.path} {len(etags)}\n")
        if url.path != "/package":
            return self.error(404, "not here")
        query = urllib.parse.parse_qsl(url.query)
        status, found = select(load(), query)
        if status != 200:
            return self.error(status, found)
        details, contents = {}, []
        for entry in found:
            with open(os.path.join(FOLDER, entry["file"]), "rb") as file:
                content = file.read()
            have = hashlib.md5(content).hexdigest() in etags
            name = f'{entry["app"]}_{entry["version"]}'
            details[entry["app"]] = {"latestVersion": entry["version"], "url": f"s3://bucket/{name}",
                                     "status_code": 304 if have else 200}
            if not have:
                contents.append((name, content))
        cache = {"Cache-Control": "max-age=100"}
        if not contents:
            return self.answer(304, cache, b"")
        text = json.dumps(details, indent=4).encode()
        if dict((k.lower(), v.lower()) for k, v in query).get("payloadtype") == "metadataonly":
            return self.answer(200, {**cache, "Content-Type": "application/json"}, text)
        packed = io.BytesIO()
        with gzip.GzipFile(fileobj=packed, mode="wb") as zipped, tarfile.open(fileobj=zipped, mode="w") as tar:
            for name, content in contents + [("package_details.json", text)]:
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
        headers = {**cache, "Content-Type": "application/x-gzip", "Content-Encoding": "gzip",
                   "Content-Disposition": 'attachment; filename="ota-package.tar.gz"'}
        return self.answer(200, headers, packed.getvalue())


def main():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    with open(os.path.join(FOLDER, ".port"), "w", encoding="utf-8") as file:
        file.write(str(server.server_address[1]))
    os.rename(os.path.join(FOLDER, ".port"), os.path.join(FOLDER, "port"))
    server.serve_forever()


if __name__ == "__main__":
    main()
