"""What arrives: requests' bodies are counted while they come in, so that no visitor takes all room or all time."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter, defaultdict, deque
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from hierclass.errors import HierclassError
from hierclass.page.messages import RefusalError
from hierclass.page.uploads import KEPT_SECONDS, MAX_FILES, MAX_STORED

Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]

MAX_UPLOAD = 600 << 20
"""Bytes of a request that uploads files, at most."""
MAX_PARTS = 1000
"""Files of a request that uploads them, at most; a visitor may label 500 at once."""
MAX_QUESTION = 1 << 20
"""Bytes of any other request, at most; 500 photographs are named in about 150,000."""
QUESTION_SECONDS = 60.0
"""Seconds in which any other request is there, at most."""
IDLE_SECONDS = 30.0
"""Seconds without a byte after which an upload is given up; a phone that changes networks is back in fewer."""
SLOWEST = 2000.0
"""Bytes a second that an upload brings at least, on average; a modem had three times as many."""
NUM_ARRIVING = 16
"""Uploads that are received at the same time; each may hold `MAX_PARTS` files open."""
NUM_ARRIVING_OF_ONE = 4
"""Uploads that are received of one visitor at the same time; further ones wait."""
NUM_WAITING_OF_ONE = 64
"""Uploads of one visitor that wait to be received; further ones are refused."""
WAIT_SECONDS = 60.0
"""Seconds that an upload waits to be received, at most."""
SHARE_OF_ONE = 0.5
"""Share of the room for uploads (`MAX_STORED`, `MAX_FILES`) that one visitor may use."""
_STEP = 16 << 20
"""Bytes for which room is made at a time where a request does not say how long it is."""


class Arrivals:
    """Uploads that are arriving, and how much each visitor uploaded in the last hour."""

    def __init__(self, check_space: Callable[[int], None]) -> None:
        """`check_space` gets the number of bytes that are still to arrive and raises if there is no room."""
        self._check_space = check_space
        self._to_come = 0
        self._arriving, self._waiting = Counter[str](), Counter[str]()
        self._moved = asyncio.Condition()
        self._sent: defaultdict[str, deque[_Minute]] = defaultdict(deque)

    @contextlib.asynccontextmanager
    async def turn(self, visitor: str) -> AsyncIterator[None]:
        """Wait until an upload of a visitor may be received, and hold its place meanwhile.

        Raises:
            RefusalError: too many wait already, or it takes too long.
        """
        if self._waiting[visitor] >= NUM_WAITING_OF_ONE:
            raise RefusalError(429, "Too many uploads at once come from your address; send them one by one.")
        self._waiting[visitor] += 1
        try:
            async with asyncio.timeout(WAIT_SECONDS), self._moved:
                await self._moved.wait_for(lambda: self._has_room(visitor))
                self._arriving[visitor] += 1
        except TimeoutError:
            raise RefusalError(503, "Too many uploads arrive; please try again in a minute.") from None
        finally:
            _count_down(self._waiting, visitor)
        try:
            yield
        finally:
            _count_down(self._arriving, visitor)
            async with self._moved:
                self._moved.notify_all()

    def _has_room(self, visitor: str) -> bool:
        return self._arriving[visitor] < NUM_ARRIVING_OF_ONE and self._arriving.total() < NUM_ARRIVING

    async def reserve(self, visitor: str, size: int) -> None:
        """Make room for bytes that are to come.

        Raises:
            RefusalError: there is none, or the visitor had their share.
        """
        sent = self._sent[visitor]
        while sent and sent[0].number < (time.monotonic() - KEPT_SECONDS) // 60:
            sent.popleft()
        stored, files = size + sum(each.size for each in sent), sum(each.files for each in sent)
        if stored > MAX_STORED * SHARE_OF_ONE or files > MAX_FILES * SHARE_OF_ONE:
            raise RefusalError(
                507, "Your address has sent as much as is kept of one; please try again in an hour."
            )
        self._to_come += size
        try:
            await asyncio.to_thread(self._check_space, self._to_come)
        except HierclassError as error:
            self._to_come -= size
            raise RefusalError(507, f"{error}.") from error
        except BaseException:
            self._to_come -= size
            raise

    def arrived(self, size: int) -> None:
        """Count reserved bytes that have come, or that will not."""
        self._to_come -= size

    def note(self, visitor: str, size: int, files: int) -> None:
        """Note what a visitor has sent, for `SHARE_OF_ONE`."""
        number, sent = int(time.monotonic() // 60), self._sent[visitor]
        if not sent or sent[-1].number != number:
            sent.append(_Minute(number))
        sent[-1].size += size
        sent[-1].files += files
        if len(self._sent) > MAX_FILES:
            self._sent.pop(next(iter(self._sent)))


@dataclass(slots=True)
class _Minute:
    """Bytes and files that a visitor sent in one minute."""

    number: int
    size: int = 0
    files: int = 0


class UploadBody:
    """The body of one upload; `receive` hands its messages on and breaks off what is too much or too slow."""

    def __init__(
        self, arrivals: Arrivals, visitor: str, receive: Receive, length: int | None, boundary: bytes
    ) -> None:
        """Receive for a visitor. `length` is in bytes, None if unknown; `boundary` stands between the parts."""
        self.refusal: RefusalError | None = None
        """Why the body was broken off."""
        self._arrivals, self._visitor, self._receive = arrivals, visitor, receive
        self._length, self._boundary = length, b"--" + boundary
        self._reserved = self._taken = self._parts = 0
        self._tail = b""
        self._began = time.monotonic()

    async def begin(self) -> None:
        """Make room for the body, or for its beginning.

        Raises:
            RefusalError: it is too long, or there is no room.
        """
        if self._length is not None and self._length > MAX_UPLOAD:
            raise _too_much()
        await self._reserve(_STEP if self._length is None else self._length)

    def end(self) -> None:
        """Give back the room that was not used."""
        self._arrivals.arrived(max(0, self._reserved - self._taken))
        self._arrivals.note(self._visitor, self._taken, max(1, self._parts - 1))

    async def receive(self) -> Message:
        """Return the next message.

        Raises:
            MultiPartException: the body is broken off. Readers of forms delete what they have on this one alone.
        """
        from starlette.formparsers import MultiPartException

        try:
            return await self._next()
        except RefusalError as refusal:
            self.refusal = refusal
            raise MultiPartException(str(refusal)) from refusal

    async def _next(self) -> Message:
        try:
            async with asyncio.timeout(IDLE_SECONDS):
                message = await self._receive()
        except TimeoutError:
            raise RefusalError(408, "Nothing came any more; please try again.") from None
        if message["type"] == "http.disconnect":
            raise RefusalError(400, "The upload was broken off.")
        data = message.get("body", b"")
        before, self._taken = self._taken, self._taken + len(data)
        self._arrivals.arrived(max(0, min(self._taken, self._reserved) - before))
        self._count_parts(data)
        if self._taken > MAX_UPLOAD:
            raise _too_much()
        waited = time.monotonic() - self._began
        if waited > IDLE_SECONDS and self._taken < SLOWEST * (waited - IDLE_SECONDS):
            raise RefusalError(408, "The upload is too slow.")
        if message.get("more_body", False) and self._taken >= self._reserved:
            await self._reserve(_STEP)
        return message

    def _count_parts(self, data: bytes) -> None:
        seen = self._tail + data
        self._parts += seen.count(self._boundary)
        self._tail = seen[max(0, len(seen) - len(self._boundary) + 1) :]
        if self._parts > MAX_PARTS + 1:
            raise RefusalError(413, f"These are too many files at once; up to {MAX_PARTS:,} are taken.")

    async def _reserve(self, size: int) -> None:
        await self._arrivals.reserve(self._visitor, size)
        self._reserved = self._taken + size


async def read_question(receive: Receive) -> bytes | None:
    """Return the body of a request that uploads nothing; None if it was broken off.

    Raises:
        RefusalError: it is too long or too slow.
    """
    body = bytearray()
    try:
        async with asyncio.timeout(QUESTION_SECONDS):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    return None
                body += message.get("body", b"")
                if len(body) > MAX_QUESTION:
                    raise RefusalError(413, f"That is too long: up to {MAX_QUESTION >> 20} MB are taken.")
                if not message.get("more_body", False):
                    return bytes(body)
    except TimeoutError:
        raise RefusalError(408, "Nothing came any more; please try again.") from None


def _too_much() -> RefusalError:
    return RefusalError(413, f"That is too much at once: up to {MAX_UPLOAD >> 20} MB are taken.")


def _count_down(counter: Counter[str], key: str) -> None:
    counter[key] -= 1
    if not counter[key]:
        del counter[key]
