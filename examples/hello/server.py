"""A small web service that is honest about which version of it answered.

GET  /               a greeting
GET  /up             200 while healthy, 503 with the reason while not
POST /echo           length and SHA-256 of the body that was sent
GET  /chunked?n=5    n chunks, one at a time
GET  /slow?s=2       an answer that takes so many seconds
GET  /key            the SHA-256 of the secret HELLO_KEY, never the secret

Every answer names the version in the header X-Version. Idle connections are kept open: closing them is the client's or the
proxy's decision, and a service that closes them first makes a proxy fail requests now and then. On SIGTERM it finishes what
is under way and exits.
"""

import asyncio
import hashlib
import os
import signal
import sys
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

PORT = int(os.environ.get("PORT", "8080"))
VERSION = os.environ.get("HELLO_VERSION") or Path(__file__).with_name("version.txt").read_text().strip()
GREETING = os.environ.get("GREETING", "hello")
UNHEALTHY_IF = os.environ.get("UNHEALTHY_IF", "")

MAX_BODY = 16 * 1024 * 1024
GRACE = 5.0
REASONS = {200: "OK", 400: "Bad Request", 404: "Not Found", 405: "Method Not Allowed", 413: "Content Too Large",
           503: "Service Unavailable"}


def say(text):
    print(f"hello {VERSION}: {text}", flush=True)


def parse_head(head):
    """Method, path, query and headers of a request, or ValueError."""
    first, *lines = head.decode("latin-1").split("\r\n")
    method, target, protocol = first.split(" ")
    if not protocol.startswith("HTTP/1."):
        raise ValueError(protocol)
    headers = {}
    for line in lines:
        if line:
            name, _, value = line.partition(":")
            headers[name.strip().lower()] = value.strip()
    url = urlsplit(target)
    query = {name: values[-1] for name, values in parse_qs(url.query).items()}
    return method, url.path, query, headers, protocol


async def read_body(reader, headers):
    """The body of a request: counted by its length or by its chunks."""
    if headers.get("transfer-encoding", "").lower() == "chunked":
        parts, total = [], 0
        while True:
            size = int((await reader.readuntil(b"\r\n")).split(b";")[0], 16)
            data = await reader.readexactly(size + 2)
            if size == 0:
                return b"".join(parts)
            total += size
            if total > MAX_BODY:
                raise ValueError("body too large")
            parts.append(data[:-2])
    length = int(headers.get("content-length", "0"))
    if length > MAX_BODY:
        raise ValueError("body too large")
    return await reader.readexactly(length)


def head_of(status, headers):
    lines = [f"HTTP/1.1 {status} {REASONS[status]}", f"X-Version: {VERSION}"]
    lines += [f"{name}: {value}" for name, value in headers]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


def answer(status, text, headers=()):
    body = text.encode()
    fixed = [("Content-Type", "text/plain; charset=utf-8"), ("Content-Length", str(len(body)))]
    return head_of(status, [*fixed, *headers]) + body


def number(query, name, default, most):
    return max(0.0, min(float(query.get(name, default)), most))


def health():
    if UNHEALTHY_IF and Path(UNHEALTHY_IF).exists():
        say(f"unhealthy: {UNHEALTHY_IF} exists")
        return answer(503, f"unhealthy: {UNHEALTHY_IF} exists\n")
    return answer(200, "up\n")


async def chunked(writer, count):
    writer.write(head_of(200, [("Content-Type", "text/plain"), ("Transfer-Encoding", "chunked")]))
    for index in range(count):
        data = f"{VERSION} chunk {index} of {count}\n".encode()
        writer.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        await writer.drain()
        await asyncio.sleep(0)
    writer.write(b"0\r\n\r\n")


async def respond(method, path, query, body, writer):
    if path == "/echo":
        if method != "POST":
            writer.write(answer(405, "POST is due here\n", [("Allow", "POST")]))
        else:
            writer.write(answer(200, f"{len(body)} {hashlib.sha256(body).hexdigest()}\n"))
    elif method not in ("GET", "HEAD"):
        writer.write(answer(405, "GET is due here\n", [("Allow", "GET")]))
    elif path == "/":
        writer.write(answer(200, f"{GREETING} from {VERSION}\n"))
    elif path == "/up":
        writer.write(health())
    elif path == "/chunked":
        await chunked(writer, int(number(query, "n", "5", 1000)))
    elif path == "/slow":
        seconds = number(query, "s", "1", 60)
        await asyncio.sleep(seconds)
        writer.write(answer(200, f"{VERSION} took {seconds:g} s\n"))
    elif path == "/key":
        writer.write(answer(200, hashlib.sha256(os.environ.get("HELLO_KEY", "").encode()).hexdigest() + "\n"))
    else:
        writer.write(answer(404, "nothing here\n"))


class Service:
    """The connections, which are idle or have a request under way, and the way to end them."""

    def __init__(self):
        self.connections = {}
        self.stopping = False

    async def serve(self, reader, writer):
        task = asyncio.current_task()
        self.connections[task] = False
        try:
            await self.converse(reader, writer, task)
        except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            del self.connections[task]
            writer.close()

    async def converse(self, reader, writer, task):
        while not self.stopping:
            head = await reader.readuntil(b"\r\n\r\n")
            self.connections[task] = True
            try:
                method, path, query, headers, protocol = parse_head(head[:-4])
                if headers.get("expect", "").lower() == "100-continue":
                    writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
                body = await read_body(reader, headers)
            except ValueError as error:
                writer.write(answer(400, f"{error}\n", [("Connection", "close")]))
                await writer.drain()
                return
            await respond(method, path, query, body, writer)
            await writer.drain()
            self.connections[task] = False
            if headers.get("connection", "").lower() == "close" or protocol == "HTTP/1.0":
                return

    async def end(self, server):
        self.stopping = True
        server.close()
        for task, busy in list(self.connections.items()):
            if not busy:
                task.cancel()
        busy = [task for task in self.connections if self.connections[task]]
        if busy:
            say(f"finishing {len(busy)} requests")
            await asyncio.wait(busy, timeout=GRACE)


async def main():
    service = Service()
    server = await asyncio.start_server(service.serve, "0.0.0.0", PORT, backlog=1024)
    stop = asyncio.Event()
    for kind in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(kind, stop.set)
    say(f"listening on port {PORT}")
    await stop.wait()
    await service.end(server)
    say("bye")


def check():
    """What the build asks before it makes an image of this: does it still understand a request?"""
    method, path, query, headers, protocol = parse_head(b"GET /slow?s=2 HTTP/1.1\r\nHost: a\r\nX-B:  c")
    assert (method, path, query, protocol) == ("GET", "/slow", {"s": "2"}, "HTTP/1.1")
    assert headers == {"host": "a", "x-b": "c"}
    assert answer(200, "x").endswith(b"\r\n\r\nx")
    assert b"X-Version: " + VERSION.encode() in head_of(404, [])
    assert VERSION, "version.txt is empty"


if __name__ == "__main__":
    if sys.argv[1:] == ["--check"]:
        check()
        print(f"hello {VERSION}: checked")
    else:
        asyncio.run(main())
