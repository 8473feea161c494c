"""A filter for requests in front of Gradio's server: plain ASGI middleware (https://asgi.readthedocs.io).

Gradio has more endpoints than the page uses, answers any website, fetches URLs that a request names in place of a
file, serves what it finds at a URL in its path, and takes requests of any length and form.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeAlias
from urllib.parse import parse_qs

from hierclass.page.addresses import AllowedHosts, Headers, visitor_of
from hierclass.page.arrivals import Arrivals, Message, Receive, UploadBody, read_question
from hierclass.page.endpoint_types import PARAMETERS
from hierclass.page.messages import RefusalError
from hierclass.page.questions import Arguments, check_question, is_session
from hierclass.page.uploads import Uploads

Send: TypeAlias = Callable[[Message], Awaitable[None]]
Application: TypeAlias = Callable[[Message, Receive, Send], Awaitable[None]]

LOG = logging.getLogger(__name__)
MAX_UNREAD = 500
"""Messages that wait for those who asked, at most: an answer has five, of up to half a megabyte."""
_ENDPOINTS = "|".join(PARAMETERS)
_UPLOAD = re.compile(r"/gradio_api/upload/?")
_QUESTION = re.compile(rf"/gradio_api/(queue/join|run/predict|cancel|reset|call/(?:v2/)?(?:{_ENDPOINTS}))/?")
"""The only paths that the page posts to."""
_FILE = "/gradio_api/file="
_ANSWER = re.compile(rf"/gradio_api/call/(?:v2/)?(?:{_ENDPOINTS})/([^/]*)")
_HEARTBEAT = re.compile(r"/gradio_api/heartbeat/([^/]*)")
_OPEN = re.compile(
    r"/|/config/?|/theme\.css|/favicon\.ico|/robots\.txt|/manifest\.json|/(?:assets|static|svelte)/[\w./+-]+"
    r"|/gradio_api/(?:info/?|openapi\.json|app_id/?|startup-events|theme\.css|upload_progress|queue/data|queue/status)",
    re.ASCII,
)
"""Every other path that the page, Gradio's own clients and "Use via API" read."""
_RANGE = re.compile(rb"bytes=([0-9]{1,15}-[0-9]{0,15}|-[0-9]{1,15})")
_NOT_FOUND = b"404: Not Found"
"""In the first event that Gradio streams as the answer to a question that it does not know."""
_OF_PAGE = (
    b"default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; object-src 'none'; "
    b"base-uri 'self'; form-action 'self'"
)
"""What a browser may load for the page: nothing from elsewhere, whatever a model's card or a name says."""
_OF_FILES = b"sandbox; default-src 'none'; img-src 'self' data:; style-src 'unsafe-inline'"
"""The same for a file that a visitor sent, should a browser show it."""


class Guard:
    """ASGI middleware that refuses requests the page never makes, in one sentence of plain text."""

    def __init__(
        self,
        app: Application,
        hosts: AllowedHosts,
        uploads: Uploads,
        arguments: Mapping[int, Arguments],
        unread: Mapping[str, asyncio.Queue[Any]] | None = None,
    ) -> None:
        """Filter requests to `app`.

        Args:
            app: the application behind it, Gradio's.
            hosts: the names under which the page may be asked.
            uploads: the folder of what visitors send.
            arguments: what each function of the page takes, by Gradio's number of the function.
            unread: messages that Gradio keeps until they are fetched, by session.
        """
        self._unread = {} if unread is None else unread
        self._app, self._hosts, self._uploads, self._arguments = app, hosts, uploads, arguments
        self._arrivals = Arrivals(uploads.check_space)

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Refuse a request or hand it on."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] != "http":
            await receive()
            await send({"type": "websocket.close", "code": 1008})  # before it is accepted: 403
        else:
            answer = _Answer(send, str(scope.get("path", "")))
            try:
                await self._admit(scope, receive, answer)
            except RefusalError as refusal:
                await answer.refuse(refusal)
            except Exception as error:  # of a request that was let through
                if not _is_not_found(error):
                    said = f"{type(error).__name__}: {error}"
                    LOG.error("%s %s: %s", scope["method"], ascii(answer.path), ascii(said[:500]))
                    LOG.debug("where it came from", exc_info=error)
                await answer.refuse(RefusalError(500, "That could not be answered."))

    async def _admit(self, scope: Message, receive: Receive, answer: _Answer) -> None:
        path, headers = answer.path, _headers(scope)
        reads = scope["method"] in ("GET", "HEAD", "OPTIONS")
        if reason := self._hosts.refusal(headers, changes=not reads):
            raise RefusalError(403, reason)
        if reads:
            self._check_path(path, scope)
            await self._app(_without_odd_range(scope), receive, answer.send)
        elif scope["method"] == "POST" and _UPLOAD.fullmatch(path):
            await self._upload(scope, headers, receive, answer)
        elif scope["method"] == "POST" and (match := _QUESTION.fullmatch(path)):
            if not any(
                value.lower().startswith("application/json") for value in headers.get("content-type", ())
            ):
                raise RefusalError(415, "Questions are JSON, sent as application/json.")
            await self._ask(match[1], scope, receive, answer)
        else:
            raise RefusalError(404, "This page does not take that.")

    def _check_path(self, path: str, scope: Message) -> None:
        query = parse_qs(scope.get("query_string", b"").decode("latin-1"), keep_blank_values=True)
        if path.startswith(_FILE):
            if not self._uploads.is_ours(path.removeprefix(_FILE)):
                raise RefusalError(404, "There is no such file.")
        elif match := _ANSWER.fullmatch(path) or _HEARTBEAT.fullmatch(path):
            if not is_session(match[1]):
                raise RefusalError(404, "There is no such question.")
        elif not _OPEN.fullmatch(path) or "/." in path or "deep_link" in query:
            raise RefusalError(404, "There is no such page.")
        for end, name in (("/queue/data", "session_hash"), ("/upload_progress", "upload_id")):
            if path.endswith(end) and not any(map(is_session, query.get(name, ()))):
                raise RefusalError(422, f"This is asked with {name}=, as it was given before.")

    async def _upload(self, scope: Message, headers: Headers, receive: Receive, answer: _Answer) -> None:
        visitor = _visitor(scope)
        boundary = _boundary(headers)
        async with self._arrivals.turn(visitor):
            body = UploadBody(self._arrivals, visitor, receive, _length(headers), boundary)
            await body.begin()
            try:
                await self._app(scope, body.receive, answer.unless(lambda: body.refusal is not None))
            except Exception as error:
                body.refusal = body.refusal or _not_kept(error)
            finally:
                body.end()
            if body.refusal is not None:
                raise body.refusal

    async def _ask(self, what: str, scope: Message, receive: Receive, answer: _Answer) -> None:
        body = await read_question(receive)
        if body is None:
            return
        check_question(what, body, self._arguments, self._uploads.is_ours)
        sent = False

        async def again() -> Message:
            nonlocal sent
            if sent:
                return await receive()
            sent = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self._app(scope, again, answer.send)
        self._forget_unread()

    def _forget_unread(self) -> None:
        """Drop messages that nobody fetches, those of the session with most first; Gradio keeps all."""
        sizes = {session: queue.qsize() for session, queue in self._unread.items()}
        while sum(sizes.values()) > MAX_UNREAD:
            session = max(sizes, key=sizes.__getitem__)
            sizes[session] = 0
            while not self._unread[session].empty():
                self._unread[session].get_nowait()


class _Answer:
    """The answer to one request: hands it on, with headers that tell browsers what a page may load."""

    def __init__(self, send: Send, path: str) -> None:
        self.path = path
        self._send = send
        self._start: Message | None = None
        self._started = self._ended = False

    async def send(self, message: Message) -> None:
        """Send a message; the beginning of a stream of answers waits for the first one."""
        if self._ended:
            return
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", ()), *self._policy(message)]
            self._start = message
            if _ANSWER.fullmatch(self.path):
                return
        elif self._start is not None and not self._started and _NOT_FOUND in message.get("body", b""):
            await self.refuse(
                RefusalError(404, "There is no such question; it is answered, or was never asked.")
            )
            return
        if self._start is not None and not self._started:
            self._started = True
            await self._send(self._start)
        if message["type"] != "http.response.start":
            self._ended = not message.get("more_body", False)
            await self._send(message)

    def unless(self, is_refused: Callable[[], bool]) -> Send:
        """Return a `send` that drops what the application says of a request that is refused meanwhile."""

        async def send(message: Message) -> None:
            if not is_refused():
                await self.send(message)

        return send

    async def refuse(self, refusal: RefusalError) -> None:
        """Answer with a sentence; what has begun already ends."""
        if self._ended:
            return
        self._ended = True
        body = str(refusal).encode()
        if not self._started:
            headers = [
                (b"content-type", b"text/plain; charset=utf-8"),
                (b"content-length", str(len(body)).encode()),
                (b"x-content-type-options", b"nosniff"),
            ]
            if refusal.status == 408:
                headers.append((b"connection", b"close"))
            await self._send({"type": "http.response.start", "status": refusal.status, "headers": headers})
        await self._send({"type": "http.response.body", "body": b"" if self._started else body})

    def _policy(self, start: Message) -> list[tuple[bytes, bytes]]:
        headers = [(b"x-content-type-options", b"nosniff")]
        if self.path.startswith(_FILE):
            headers.append((b"content-security-policy", _OF_FILES))
        elif any(
            name.lower() == b"content-type" and value.startswith(b"text/html")
            for name, value in start.get("headers", ())
        ):
            headers.append((b"content-security-policy", _OF_PAGE))
        return headers


def _not_kept(error: Exception) -> RefusalError:
    """What is said where Gradio could not keep an upload."""
    if isinstance(error, OSError):
        return RefusalError(
            507, f"The upload could not be kept ({error.strerror or 'disk error'}); please try again later."
        )
    return RefusalError(
        400, "That could not be read; files are uploaded as multipart/form-data, in fields called files."
    )


def _is_not_found(error: Exception) -> bool:
    """Whether an error only says, in the middle of a stream, that there is nothing to stream."""
    return any(getattr(each, "status_code", None) == 404 for each in (error, error.__cause__))


def _headers(scope: Message) -> Headers:
    found: defaultdict[str, list[str]] = defaultdict(list)
    for name, value in scope.get("headers", ()):
        found[name.decode("latin-1").lower()].append(value.decode("latin-1").strip())
    return found


def _visitor(scope: Message) -> str:
    client = scope.get("client")
    return visitor_of(client[0] if client else None)


def _length(headers: Headers) -> int | None:
    """The length that a request says that it has, in bytes."""
    (value,) = headers.get("content-length") or ("",)
    return int(value) if value.isascii() and value.isdigit() else None


def _boundary(headers: Headers) -> bytes:
    """What stands between the parts of a form."""
    found = re.search(
        r'boundary="?([^";,]{1,200})', next(iter(headers.get("content-type", ())), ""), re.IGNORECASE
    )
    if not found:
        raise RefusalError(415, "Files are uploaded as multipart/form-data, in fields called files.")
    return found[1].encode("latin-1")


def _without_odd_range(scope: Message) -> Message:
    """A request without a range that Gradio can't read, which then gets the whole file."""
    headers = [
        (name, value)
        for name, value in scope.get("headers", ())
        if name.lower() != b"range" or _RANGE.fullmatch(value.strip())
    ]
    return {**scope, "headers": headers}
