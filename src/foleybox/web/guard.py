"""What stands between the network and the application: who may ask, how much, and for how long.

`Guard` is ASGI middleware; `Connection` is uvicorn's HTTP protocol, with a limit of connections and of the time in which a
request must arrive.
"""

import asyncio
import json
from collections.abc import Collection
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from foleybox.web.site import POLICY

MOST_BODY = 1 << 20  # bytes of a JSON body
MOST_UPLOAD = 32 << 20  # bytes of an uploaded file
MOST_UPLOADS = 4  # larger than MOST_BODY at a time
MOST_CONNECTIONS = 512
REQUEST_SECONDS = 10.0  # in which the head of a request must arrive
BODY_SECONDS = 60.0  # in which its body must arrive
UPLOADS = ("/v1/events",)  # paths that take a file

HEADERS = {
    "content-security-policy": f"{POLICY}; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=(self)",
}


class Guard:
    """Refuses requests of other hosts and origins and bodies that are too large; adds the security headers.

    A page of another site can make a browser send requests here; then the Host header (DNS rebinding), Origin or
    Sec-Fetch-Site shows it. There is no CORS: no other site can read an answer.
    """

    def __init__(self, app: ASGIApp, hosts: Collection[str]) -> None:
        self.app, self.hosts = app, frozenset(host.lower() for host in hosts)
        self.uploads = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":  # no web sockets
            return
        headers = list(scope["headers"])
        refusal = self._refusal(scope, headers)
        if refusal:
            await _answer(_with_headers(send), *refusal)
        elif scope["method"] in ("GET", "HEAD"):
            await self.app(scope, receive, _with_headers(send))
        else:
            await self._with_body(scope, receive, _with_headers(send))

    def _refusal(self, scope: Scope, headers: list[tuple[bytes, bytes]]) -> tuple[int, str] | None:
        """Return the status and the sentence with which a request is refused, None if it is not."""
        found: dict[bytes, list[str]] = {}
        for name, value in headers:
            found.setdefault(name.lower(), []).append(value.decode("latin-1").lower())
        hosts, origins = found.get(b"host", []), found.get(b"origin", [])
        if len(hosts) != 1 or hosts[0] not in self.hosts:
            return 421, "this server does not answer for that Host: use the address that `foleybox serve` printed"
        if any(origin.removeprefix("http://") not in self.hosts or "://" not in origin for origin in origins):
            return 403, "requests of pages of other sites are refused"
        if found.get(b"sec-fetch-site", ["none"])[0] == "cross-site" and found.get(b"sec-fetch-mode") != ["navigate"]:
            return 403, "requests of pages of other sites are refused"
        length = found.get(b"content-length", ["0"])[0]
        if scope["method"] in ("GET", "HEAD") and (length != "0" or b"transfer-encoding" in found):
            return 400, "a GET request with a body: expected none"
        if length.isdecimal() and len(length) < 19 and int(length) > _most(scope):
            return 413, f"a body of {int(length):,} bytes: expected {_most(scope):,} at most"
        return None

    async def _with_body(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Read the body within its limits, then call the application with it. Few may be large at a time."""
        large = False
        body = bytearray()
        try:
            async with asyncio.timeout(BODY_SECONDS):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return
                    body += message.get("body", b"")
                    if len(body) > _most(scope):
                        await _answer(send, 413, f"a body of more than {_most(scope):,} bytes: expected fewer")
                        return
                    if len(body) > MOST_BODY and not large:
                        if self.uploads >= MOST_UPLOADS:
                            await _answer(
                                send, 429, "too many uploads at a time: try again in 5 s", {"retry-after": "5"}
                            )
                            return
                        large = True
                        self.uploads += 1
                    if not message.get("more_body"):
                        break
            messages: list[Message] = [{"type": "http.request", "body": bytes(body), "more_body": False}]

            async def replay() -> Message:
                return messages.pop() if messages else await receive()

            await self.app(scope, replay, send)
        except TimeoutError:
            await _answer(send, 408, f"the body did not arrive within {BODY_SECONDS:g} s")
        finally:
            self.uploads -= large


def _most(scope: Scope) -> int:
    return MOST_UPLOAD if scope["path"] in UPLOADS else MOST_BODY


def _with_headers(send: Send) -> Send:
    async def wrapped(message: Message) -> None:
        if message["type"] == "http.response.start":
            extra = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
            message = {**message, "headers": [*message.get("headers", []), *extra]}
        await send(message)

    return wrapped


async def _answer(send: Send, status: int, sentence: str, headers: dict[str, str] | None = None) -> None:
    content = json.dumps({"error": sentence}).encode()
    fields = {
        "content-type": "application/json",
        "content-length": str(len(content)),
        "connection": "close",
        **(headers or {}),
    }
    encoded = [(name.encode(), value.encode()) for name, value in fields.items()]
    await send({"type": "http.response.start", "status": status, "headers": encoded})
    await send({"type": "http.response.body", "body": content})


class Connection(H11Protocol):
    """uvicorn's protocol; it also closes connections beyond MOST_CONNECTIONS and those whose request does not arrive."""

    _timer: asyncio.TimerHandle | None = None
    _since: float | None = None  # when the request that has not arrived yet began, or the connection was made

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        if len(self.connections) > MOST_CONNECTIONS:
            transport.close()
            return
        self._since = self.loop.time()
        self._timer = self.loop.call_later(REQUEST_SECONDS, self._check)

    def data_received(self, data: bytes) -> None:
        if self._since is None and self._idle:
            self._since = self.loop.time()
        super().data_received(data)
        if not self._idle:
            self._since = None

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer:
            self._timer.cancel()
        super().connection_lost(exc)

    @property
    def _idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _check(self) -> None:
        """Close the connection if a request began and has not arrived; uvicorn closes those that are idle between two."""
        if self._idle and self._since is not None and self.loop.time() - self._since >= REQUEST_SECONDS:
            self.transport.close()
        else:
            self._timer = self.loop.call_later(REQUEST_SECONDS / 4, self._check)
