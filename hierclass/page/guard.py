"""What a request to the page may ask: a filter in front of Gradio's server, for its doors that this page needs shut.

Gradio fetches addresses that a request names in place of a file, hands out what it finds at an address in its path,
and takes requests of any length. Plain ASGI (https://asgi.readthedocs.io), so that it needs neither of them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, TypeAlias

from hierclass.errors import HierclassError

Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
Application: TypeAlias = Callable[[Message, Receive, Send], Awaitable[None]]

MAX_UPLOAD = 600 << 20
"""Bytes of one request that uploads files."""
MAX_QUESTION = 1 << 20
"""Bytes of any other request."""

_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]+:", re.IGNORECASE)
"""How an address begins; one letter is a drive of Windows."""
_FETCHING = re.compile(r"/(?:proxy=|file[=/][a-z][a-z0-9+.-]+:)", re.IGNORECASE)
_IGNORED = re.compile(r"[\x00-\x20]")
"""What readers of addresses skip."""


class Guard:
    """ASGI middleware: refuses what this page never asks of its server, in one sentence of plain text."""

    def __init__(self, app: Application, check_space: Callable[[], None]) -> None:
        """Stand before an application; `check_space` raises HierclassError where no upload is taken just now."""
        self._app, self._check_space = app, check_space

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer one request, or hand it on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path = str(scope.get("path", ""))
        if _FETCHING.search(_IGNORED.sub("", path)):
            await _refuse(send, 404, "There is no such file.")
        elif scope["method"] in ("GET", "HEAD", "OPTIONS"):
            await self._app(scope, receive, send)
        elif path.rstrip("/").endswith("/upload"):
            await self._upload(scope, receive, send)
        else:
            await self._question(scope, receive, send)

    async def _upload(self, scope: Message, receive: Receive, send: Send) -> None:
        limit = f"That is too much at once: up to {MAX_UPLOAD >> 20} MB are taken."
        try:
            self._check_space()
        except HierclassError as error:
            await _refuse(send, 507, f"{error}.")
            return
        if _length(scope) > MAX_UPLOAD:
            await _refuse(send, 413, limit)
            return
        taken = 0

        async def counted() -> Message:
            nonlocal taken
            message = await receive()
            taken += len(message.get("body", b""))
            if taken > MAX_UPLOAD:  # longer than it said: as if the sender had gone
                return {"type": "http.disconnect"}
            return message

        await self._app(scope, counted, send)

    async def _question(self, scope: Message, receive: Receive, send: Send) -> None:
        body, more = b"", True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message.get("body", b"")
            more = message.get("more_body", False)
            if len(body) > MAX_QUESTION:
                await _refuse(send, 413, f"That is too long: up to {MAX_QUESTION >> 20} MB are taken.")
                return
        if _names_address(body):
            await _refuse(send, 400, "Files are uploaded; addresses of files are not fetched.")
            return
        sent = False

        async def again() -> Message:
            nonlocal sent
            if sent:
                return await receive()
            sent = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self._app(scope, again, send)


def _length(scope: Message) -> int:
    for name, value in scope.get("headers", ()):
        if name.lower() == b"content-length" and value.isdigit():
            return int(value)
    return 0


def _names_address(body: bytes) -> bool:
    """Whether JSON has an object whose `path` is an address, which Gradio would fetch."""
    try:
        waiting = [json.loads(body)]
    except (ValueError, RecursionError):
        return False  # no JSON that Gradio could read
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            path = value.get("path")
            if isinstance(path, str) and _ADDRESS.match(_IGNORED.sub("", path)):
                return True
            waiting.extend(value.values())
        elif isinstance(value, list):
            waiting.extend(value)
    return False


async def _refuse(send: Send, status: int, text: str) -> None:
    body = text.encode()
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
