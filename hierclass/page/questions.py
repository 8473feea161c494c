"""The form of what programs and the page ask: JSON that Gradio can take, or a sentence on what is wrong with it."""

from __future__ import annotations

import json
import math
import re
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NoReturn, TypeAlias

from hierclass.page.endpoint_types import PARAMETERS
from hierclass.page.messages import RefusalError

Arguments: TypeAlias = Sequence[range | None]
"""The arguments of a function: which whole numbers each may be, or None where it may be anything."""
MAX_DEPTH = 32
"""Lists and objects inside each other, at most; the page's own questions have six."""
MAX_FILES_NAMED = 2000
"""Files that a question names, at most; a request of many photographs may name 500."""
_MAX_NUMBER = 2**63
_OF_FILES: dict[str, Any] = {
    "path": str,
    "orig_name": str,
    "url": str,
    "mime_type": str,
    "size": int | float,
    "is_stream": bool,
    "meta": dict,
}
"""What a question says of a file, and of which type it is; Gradio fails on others."""
_SESSION = re.compile(r"[\w.-]{1,128}", re.ASCII)
_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]+:", re.IGNORECASE)
"""The beginning of a URL; a single letter would be a drive of Windows."""
_IGNORED = re.compile(r"[\x00-\x20]")
"""Characters that readers of URLs skip."""


def check_question(
    path: str, body: bytes, arguments: Mapping[int, Arguments], is_upload: Callable[[str], bool]
) -> None:
    """Check what a POST asks, which may be anything.

    Args:
        path: the address, below /gradio_api/, without a slash at its end.
        body: what was sent.
        arguments: what each function of the page takes, by Gradio's number of the function.
        is_upload: whether a path is that of an upload, or of an example.

    Raises:
        RefusalError: it is nothing that the page or one of its endpoints takes.
    """
    question = _parse(body)
    if not isinstance(question, dict):
        raise RefusalError(422, "A question is a JSON object.")
    _check_values(question, is_upload)
    _check_session(question)
    where, _, name = path.rpartition("/")
    if where == "call/v2":
        _check_names(name, question)
    elif where == "call":
        _check_data(question, len(PARAMETERS[name]), f"/{name}", tuple(PARAMETERS[name]))
    elif path in ("queue/join", "run/predict"):
        number = _whole(question, "fn_index")
        if number not in arguments:
            raise RefusalError(404, f"There is no function {number} on this page; reload it.")
        if path == "queue/join" and question.get("session_hash") is None:
            raise RefusalError(422, "A question for the queue has a text session_hash.")
        _check_data(question, len(arguments[number]), f"function {number}")
        for value, among in zip(question["data"], arguments[number], strict=True):
            if among is not None and (type(value) is not int or value not in among):
                raise RefusalError(422, "There is no such example on this page; reload it.")
        _check_internals(question)
    elif path == "cancel":
        _whole(question, "fn_index")
        _text(question, "session_hash")
        _text(question, "event_id")
    else:
        _text(question, "event_id")


def is_session(text: str) -> bool:
    """Whether a text may name a visitor's session or a question of it."""
    return _SESSION.fullmatch(text) is not None


def _parse(body: bytes) -> Any:
    def refuse(_: str) -> NoReturn:
        raise ValueError

    try:
        return json.loads(body, parse_constant=refuse)
    except (ValueError, RecursionError):
        raise RefusalError(400, "That is no JSON that can be read.") from None


def _check_values(question: Any, is_upload: Callable[[str], bool]) -> None:
    num_files = 0
    for value in _walk(question):
        if isinstance(value, (int, float)) and not (math.isfinite(value) and abs(value) < _MAX_NUMBER):
            raise RefusalError(422, "A number is too large.")
        if not isinstance(value, dict):
            continue
        for name, kind in _OF_FILES.items():
            if not isinstance(value.get(name), kind | None):
                raise RefusalError(422, f"What is said of a file as {name} has a wrong type.")
        if value.get("path") is not None:
            _check_path(value["path"], is_upload)
            num_files += 1
            if num_files > MAX_FILES_NAMED:
                raise RefusalError(422, f"These are too many files; up to {MAX_FILES_NAMED:,} can be named.")


def _check_path(path: str, is_upload: Callable[[str], bool]) -> None:
    if _ADDRESS.match(_IGNORED.sub("", path)):
        raise RefusalError(400, "Files are uploaded; addresses of files are not fetched.")
    if not is_upload(path):
        raise RefusalError(422, "A file was not uploaded to this page; send it to /gradio_api/upload first.")


def _walk(question: Any) -> Iterator[Any]:
    """Yield all values inside of a question that are no lists; refuse those that lie too deep."""
    waiting = [(question, 0)]
    while waiting:
        value, depth = waiting.pop()
        if depth > MAX_DEPTH:
            raise RefusalError(422, "That is nested too deeply.")
        if isinstance(value, list):
            waiting.extend((each, depth + 1) for each in value)
            continue
        yield value
        if isinstance(value, dict):
            waiting.extend((each, depth + 1) for each in value.values())


def _check_session(question: dict[str, Any]) -> None:
    session = question.get("session_hash")
    if session is not None and not (isinstance(session, str) and is_session(session)):
        raise RefusalError(422, "A session_hash is a text of up to 128 letters, digits, dots and dashes.")


def _check_data(
    question: dict[str, Any], count: int, what: str, names: tuple[str, ...] | None = None
) -> None:
    data = question.get("data")
    listed = f" ({', '.join(names)})" if names else ""
    if not isinstance(data, list) or len(data) != count:
        raise RefusalError(
            422,
            f"The arguments of {what} are a list data of {count}{listed}, with null for what is not wanted.",
        )


def _check_names(name: str, question: dict[str, Any]) -> None:
    """Check arguments that are given by name."""
    known = PARAMETERS[name]
    needed = {each for each, kind in known.items() if not _may_be_null(kind)}
    given = set(question)
    if not needed <= given or not given <= set(known):
        raise RefusalError(
            422, f"The arguments of /{name} are {', '.join(known) or 'none'}, given as a JSON object."
        )


def _may_be_null(kind: Any) -> bool:
    return isinstance(kind, types.UnionType) and types.NoneType in typing.get_args(kind)


def _check_internals(question: dict[str, Any]) -> None:
    """Check what Gradio's own clients send beside the arguments."""
    trigger = question.get("trigger_id")
    if trigger is not None and (not isinstance(trigger, int) or isinstance(trigger, bool)):
        raise RefusalError(422, "A trigger_id is a whole number.")
    for key in ("batched", "simple_format", "oauth_token", "event_id"):
        if question.get(key):
            raise RefusalError(422, f"Questions with {key} are not taken here.")


def _whole(question: dict[str, Any], key: str) -> int:
    value = question.get(key)
    if not isinstance(value, int) or isinstance(value, bool):
        raise RefusalError(422, f"A question of this kind has a whole number {key}.")
    return value


def _text(question: dict[str, Any], key: str) -> None:
    value = question.get(key)
    if not isinstance(value, str) or not is_session(value):
        raise RefusalError(422, f"A question of this kind has a short text {key}.")
