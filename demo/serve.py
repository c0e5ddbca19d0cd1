#!/usr/bin/env python3
"""Serves one directory on loopback with range requests: serve.py DIRECTORY STATE

Writes its port to STATE/port, and the bytes of files that it has sent so far to STATE/sent after each answer.
"""

import http.server
import os
import re
import sys
import threading

directory, state = sys.argv[1:]
lock = threading.Lock()
sent_bytes = 0


def write(name, value):
    path = os.path.join(state, name)
    with open(path + ".new", "w") as file:
        file.write(f"{value}\n")
    os.rename(path + ".new", path)


def count(length):
    global sent_bytes
    with lock:
        sent_bytes += length
        write("sent", sent_bytes)


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        path = os.path.join(directory, os.path.basename(self.path))
        try:
            file = open(path, "rb")
        except OSError:
            self.send_error(404)
            return
        with file:
            self.answer(file, os.fstat(file.fileno()))

    def answer(self, file, status):
        size = status.st_size
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        start = int(asked[1]) if asked else 0
        end = min(int(asked[2]) + 1, size) if asked and asked[2] else size
        if asked and start >= end:
            self.send_error(416)
            return
        self.send_response(206 if asked else 200)
        self.send_header("ETag", f'"{status.st_ino}-{status.st_mtime_ns}-{size}"')
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(end - start))
        if asked:
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{size}")
        self.end_headers()
        file.seek(start)
        body = file.read(end - start)
        count(len(body))
        self.wfile.write(body)

    def log_message(self, *_):
        pass


write("sent", 0)
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
write("port", server.server_port)
server.serve_forever()
