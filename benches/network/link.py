"""A web server behind a slow link: files of a directory, in ranges, with a delay and a rate that all connections share.

    python3 link.py DIRECTORY --latency-ms 10 --mbit 1000
    python3 link.py --to 127.0.0.1:5000 --latency-ms 10 --mbit 1000     # the link alone, to another server

prints one line of JSON with its ports, and serves until its standard input ends. On the second port it is controlled:
`GET /stats`, `/reset` (the counters to zero), `/cut` (all connections closed and new ones refused) and `/mend`.

What it imitates: each way takes the latency, so that an answer begins two of them after its request, and a connection
takes two more. Bytes of all answers share one rate, whatever connection they are on. What it leaves out: the slow start
of TCP, losses, and the time of a real server's disk.
"""

import argparse
import asyncio
import email.utils
import json
import os
import re
import socket
import sys
import urllib.parse
from pathlib import Path

PIECE_BYTES = 128 << 10
SLACK_SECONDS = 0.003  # what the clock of the event loop cannot tell apart
LATE_SECONDS = 0.02  # what a wait that took too long may catch up with
RANGE = re.compile(r"bytes=(\d+)-(\d*)$")


class Link:
    """One wire: what is sent takes its time after all that was sent before."""

    def __init__(self, latency_seconds, mbit):
        self.latency_seconds = latency_seconds
        self.bytes_per_second = mbit * 1e6 / 8
        self.free_at = 0.0

    async def carry(self, count):
        """Returns when `count` more bytes may be sent."""
        if not self.bytes_per_second:
            return
        now = asyncio.get_running_loop().time()
        self.free_at = max(self.free_at, now - LATE_SECONDS) + count / self.bytes_per_second
        if self.free_at - now > SLACK_SECONDS:
            await asyncio.sleep(self.free_at - now)


class Server:
    """The files below a directory, and what all servers share: connections, counters, control."""

    def __init__(self, directory, link):
        self.directory = directory
        self.link = link
        self.connections = set()
        self.listener = None
        self.log = []
        self.reset()

    def reset(self):
        self.counts = {"connections": 0, "requests": 0, "bytes": 0, "refused": 0, "most_at_once": 0}
        self.at_once = 0
        self.log = []

    async def listen(self, port=0):
        self.listener = socket.create_server(("127.0.0.1", port), backlog=512, reuse_port=False)
        self.listener.setblocking(False)
        self.accepting = asyncio.ensure_future(self.accept())
        return self.listener.getsockname()[1]

    async def accept(self):
        loop = asyncio.get_running_loop()
        while True:
            connection, _ = await loop.sock_accept(self.listener)
            connection.setblocking(False)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.counts["connections"] += 1
            task = asyncio.ensure_future(self.converse(connection))
            self.connections.add(task)
            task.add_done_callback(self.connections.discard)

    def cut(self):
        """Nothing is answered any more."""
        self.port = self.listener.getsockname()[1]
        self.accepting.cancel()
        self.listener.close()
        for task in list(self.connections):
            task.cancel()

    async def converse(self, connection):
        loop = asyncio.get_running_loop()
        try:
            await asyncio.sleep(2 * self.link.latency_seconds)
            received = b""
            while True:
                while b"\r\n\r\n" not in received:
                    more = await loop.sock_recv(connection, 65536)
                    if not more:
                        return
                    received += more
                head, _, received = received.partition(b"\r\n\r\n")
                self.counts["requests"] += 1
                self.at_once += 1
                self.counts["most_at_once"] = max(self.counts["most_at_once"], self.at_once)
                try:
                    await asyncio.sleep(2 * self.link.latency_seconds)
                    await self.answer(connection, head.decode("latin1"))
                finally:
                    self.at_once -= 1
        except (ConnectionError, asyncio.CancelledError):
            pass
        finally:
            connection.close()

    async def answer(self, connection, head):
        loop = asyncio.get_running_loop()
        line, *fields = head.split("\r\n")
        method, target, _ = line.split(" ")
        fields = {name.lower(): value.strip() for name, _, value in (field.partition(":") for field in fields)}
        path = (self.directory / urllib.parse.unquote(target.partition("?")[0]).lstrip("/")).resolve()
        if self.directory not in path.parents or not path.is_file():
            await loop.sock_sendall(connection, b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
            return
        with path.open("rb") as file:
            data = os.fstat(file.fileno())
            asked = RANGE.match(fields.get("range", ""))
            start = int(asked[1]) if asked else 0
            end = min(int(asked[2]) + 1 if asked and asked[2] else data.st_size, data.st_size)
            lines = [
                f"HTTP/1.1 {'206 Partial Content' if asked else '200 OK'}",
                f'ETag: "{data.st_mtime_ns:x}-{data.st_size:x}"',
                f"Last-Modified: {email.utils.formatdate(data.st_mtime, usegmt=True)}",
                f"Content-Length: {end - start}",
                "Accept-Ranges: bytes",
                *([f"Content-Range: bytes {start}-{end - 1}/{data.st_size}"] if asked else []),
            ]
            self.log.append((round(loop.time(), 4), start, end - start if method == "GET" else 0))
            await loop.sock_sendall(connection, ("\r\n".join(lines) + "\r\n\r\n").encode())
            if method == "GET":
                await self.send(connection, file.fileno(), start, end)

    async def send(self, connection, file, start, end):
        loop = asyncio.get_running_loop()
        while start < end:
            count = min(PIECE_BYTES, end - start)
            await self.link.carry(count)
            until = start + count
            while start < until:
                try:
                    sent = os.sendfile(connection.fileno(), file, start, until - start)
                except BlockingIOError:
                    writable = loop.create_future()
                    loop.add_writer(connection.fileno(), lambda: writable.done() or writable.set_result(None))
                    try:
                        await writable
                    finally:
                        loop.remove_writer(connection.fileno())
                    continue
                if sent == 0:
                    return
                start += sent
                self.counts["bytes"] += sent

    async def control(self, reader, writer):
        request = (await reader.readuntil(b"\r\n\r\n")).split(b" ")[1].decode()
        if request == "/reset":
            self.reset()
        elif request == "/cut":
            self.cut()
        elif request == "/mend":
            await self.listen(self.port)
        said = json.dumps({**self.counts, "log": self.log} if request == "/log" else self.counts).encode()
        writer.write(b"HTTP/1.0 200 OK\r\nContent-Length: %d\r\n\r\n" % len(said) + said)
        await writer.drain()
        writer.close()


class Relay(Server):
    """Another server, to which all is passed on."""

    def __init__(self, host, port, link):
        super().__init__(None, link)
        self.upstream = (host, port)

    async def converse(self, connection):
        loop = asyncio.get_running_loop()
        pumps = []
        try:
            await asyncio.sleep(2 * self.link.latency_seconds)
            other = socket.create_connection(self.upstream)
            other.setblocking(False)
            other.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with other:
                pumps = [asyncio.ensure_future(self.pump(*ends)) for ends in ((connection, other, True), (other, connection, False))]
                await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        except (ConnectionError, asyncio.CancelledError):
            pass
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
            connection.close()

    async def pump(self, source, target, is_up):
        """Passes on what comes, each piece once the latency is over. What is under way at a time is bounded."""
        loop = asyncio.get_running_loop()
        pieces = asyncio.Queue(maxsize=64)

        async def deliver():
            while piece := await pieces.get():
                due, data = piece
                if due - loop.time() > SLACK_SECONDS:
                    await asyncio.sleep(due - loop.time())
                await loop.sock_sendall(target, data)

        delivery = asyncio.ensure_future(deliver())
        try:
            while data := await loop.sock_recv(source, PIECE_BYTES):
                if is_up:
                    for _ in range(data.count(b" HTTP/1.1\r\n")):
                        self.counts["requests"] += 1
                        self.log.append((round(loop.time(), 4), data.partition(b"\r\n\r\n")[0].decode("latin1"), 0))
                else:
                    await self.link.carry(len(data))
                    self.counts["bytes"] += len(data)
                await pieces.put((loop.time() + self.link.latency_seconds, data))
            await pieces.put(None)
            await delivery
        finally:
            delivery.cancel()


async def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("directory", type=Path, nargs="?")
    parser.add_argument("--to", help="HOST:PORT of a server that is reached by the link, in place of a directory")
    parser.add_argument("--latency-ms", type=float, default=10, help="each way (%(default)s)")
    parser.add_argument("--mbit", type=float, default=1000, help="a second, of all connections; 0: no bound (%(default)s)")
    args = parser.parse_args()
    link = Link(args.latency_ms / 1000, args.mbit)
    if args.to:
        host, _, port = args.to.rpartition(":")
        server = Relay(host, int(port), link)
    elif args.directory:
        server = Server(args.directory.resolve(), link)
    else:
        parser.error("name a directory, or a server by --to")
    port = await server.listen()
    control = await asyncio.start_server(server.control, "127.0.0.1", 0)
    print(json.dumps({"port": port, "control": control.sockets[0].getsockname()[1]}), flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    os._exit(0)


if __name__ == "__main__":
    asyncio.run(main())
