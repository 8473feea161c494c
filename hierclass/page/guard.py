"""A filter for requests in front of Gradio's server: plain ASGI middleware (https://asgi.readthedocs.io).

Gradio has more endpoints than the page uses, fetches URLs that a request names in place of a file, serves what it
finds at a URL in its path, and takes requests of any length.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, TypeAlias

from hierclass.errors import HierclassError
from hierclass.page.endpoint_types import PARAMETERS

Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
Application: TypeAlias = Callable[[Message, Receive, Send], Awaitable[None]]

MAX_UPLOAD = 600 << 20
"""Bytes of a request that uploads files, at most."""
MAX_QUESTION = 1 << 20
"""Bytes of any other request, at most."""

_UPLOAD = re.compile(r"/gradio_api/upload/?")
_QUESTION = re.compile(rf"/gradio_api/(queue/join|run/predict|cancel|reset|call/({'|'.join(PARAMETERS)}))/?")
"""The only paths that the page posts to."""
_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]+:", re.IGNORECASE)
"""The beginning of a URL; a single letter would be a drive of Windows."""
_SHUT = re.compile(r"/(?:proxy=|deep_link|file[=/][a-z][a-z0-9+.-]+:)", re.IGNORECASE)
_IGNORED = re.compile(r"[\x00-\x20]")
"""Characters that readers of URLs skip."""


class Guard:
    """ASGI middleware that refuses requests the page never makes, in one sentence of plain text."""

    def __init__(self, app: Application, check_space: Callable[[int], None]) -> None:
        """Filter requests to `app`.

        `check_space` gets the number of bytes that are being uploaded and raises HierclassError if there is no room.
        """
        self._app, self._check_space = app, check_space
        self._arriving = 0

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Refuse a request or hand it on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path = str(scope.get("path", ""))
        if scope["method"] in ("GET", "HEAD", "OPTIONS"):
            if _SHUT.search(_IGNORED.sub("", path)):
                await _refuse(send, 404, "There is no such file.")
            else:
                await self._app(scope, receive, send)
        elif scope["method"] == "POST" and _UPLOAD.fullmatch(path):
            await self._upload(scope, receive, send)
        elif scope["method"] == "POST" and _QUESTION.fullmatch(path):
            await self._question(scope, receive, send)
        else:
            await _refuse(send, 404, "This page does not take that.")

    async def _upload(self, scope: Message, receive: Receive, send: Send) -> None:
        length = _length(scope)
        if length > MAX_UPLOAD:
            await _refuse(send, 413, f"That is too much at once: up to {MAX_UPLOAD >> 20} MB are taken.")
            return
        self._arriving += length
        try:
            await asyncio.to_thread(self._check_space, self._arriving)
            await self._app(scope, _counted(receive), send)
        except HierclassError as error:
            await _refuse(send, 507, f"{error}.")
        finally:
            self._arriving -= length

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


def _counted(receive: Receive) -> Receive:
    """Count the bytes of an upload; disconnect if there are more than `MAX_UPLOAD`."""
    taken = 0

    async def counted() -> Message:
        nonlocal taken
        message = await receive()
        taken += len(message.get("body", b""))
        return message if taken <= MAX_UPLOAD else {"type": "http.disconnect"}

    return counted


def _length(scope: Message) -> int:
    for name, value in scope.get("headers", ()):
        if name.lower() == b"content-length" and value.isdigit():
            return int(value)
    return 0


def _names_address(body: bytes) -> bool:
    """Whether JSON has an object whose `path` is a URL, which Gradio would fetch."""
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
