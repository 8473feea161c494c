"""What the page's server is never asked: requests are sent through the guard to an application that notes them."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from hierclass.errors import InputError
from hierclass.page import guard
from hierclass.page.guard import Guard


def ask(
    path: str,
    body: bytes = b"",
    *,
    method: str = "POST",
    headers: dict[str, str] | None = None,
    full: bool = False,
) -> tuple[int, str]:
    """The status and text of an answer; the application behind the guard answers 200 and what it read."""
    parts = [body[at : at + 1000] for at in range(0, len(body), 1000)] or [b""]
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        part = parts.pop(0)
        return {"type": "http.request", "body": part, "more_body": bool(parts)}

    async def send(message: Any) -> None:
        sent.append(message)

    async def application(scope: Any, receive: Any, send: Any) -> None:
        read, more = b"", True
        while more and scope["method"] == "POST":
            message = await receive()
            if message["type"] == "http.disconnect":
                read += b" broken off"
                break
            read += message["body"]
            more = message["more_body"]
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": read})

    def check_space(arriving: int) -> None:
        if full:
            raise InputError("no room")

    pairs = [(name.encode(), value.encode()) for name, value in (headers or {}).items()]
    scope = {"type": "http", "path": path, "method": method, "headers": pairs}
    asyncio.run(Guard(application, check_space)(scope, receive, send))
    return sent[0]["status"], sent[1]["body"].decode()


@pytest.mark.parametrize(
    "path",
    [
        "/gradio_api/file=https://example.org/x",
        "/gradio_api/file=http:/example.org/x",
        "/gradio_api/file= HTTP://example.org/x",
        "/gradio_api/file=ht\ntp://example.org/x",
        "/gradio_api/file/https://example.org/x",
        "/gradio_api/proxy=https://x.hf.space/",
    ],
)
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_nothing_is_fetched_from_elsewhere_for_a_visitor(path: str, method: str) -> None:
    assert ask(path, method=method)[0] == 404


@pytest.mark.parametrize(
    "path",
    [
        "/gradio_api/run/upload",
        "/gradio_api/api/upload/",
        "/gradio_api/run/classify",
        "/gradio_api/process_recording",
        "/gradio_api/component_server",
        "/gradio_api/stream/1",
        "/gradio_api/call/a/b",
        "/gradio_api/call/show",
        "/login",
        "/x/gradio_api/upload",
        "/",
    ],
)
@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
def test_doors_that_the_page_does_not_use_are_shut(path: str, method: str) -> None:
    assert ask(path, b"{}", method=method)[0] == 404


@pytest.mark.parametrize(
    "path", ["queue/join", "run/predict", "call/classify", "call/label/", "cancel", "reset", "upload"]
)
def test_doors_that_the_page_uses_are_open(path: str) -> None:
    assert ask(f"/gradio_api/{path}", b"{}")[0] == 200


@pytest.mark.parametrize(
    "path",
    ["/", "/gradio_api/file=/tmp/x/cat.jpg", "/gradio_api/file=C:\\x\\cat.jpg", "/config", "/assets/a.js"],
)
def test_what_the_page_needs_passes(path: str) -> None:
    assert ask(path, method="GET")[0] == 200


@pytest.mark.parametrize(
    "address",
    ["https://example.org/x.jpg", "HTTP://x", " http://x", "h\tttp://x", "file:///etc/passwd", "ftp://x"],
)
def test_an_address_in_place_of_a_file_is_refused(address: str) -> None:
    for data in ([{"path": address, "meta": {}}, 2], [[{"a": [{"path": address}]}]], {"path": address}):
        status, text = ask("/gradio_api/run/predict", json.dumps({"data": data}).encode())
        assert status == 400
        assert "uploaded" in text


@pytest.mark.parametrize(
    "value",
    [
        {"data": [{"path": "/tmp/x/a.jpg", "url": "http://127.0.0.1/gradio_api/file=/tmp/x/a.jpg"}]},
        {"data": []},
    ],
)
def test_a_question_reaches_the_application_whole(value: Any) -> None:
    body = json.dumps({**value, "filling": "x" * 5000}).encode()
    assert ask("/gradio_api/queue/join", body) == (200, body.decode())


@pytest.mark.parametrize("body", [b"", b"{", b"[" * 100_000])
def test_what_is_no_json_is_left_to_the_application(body: bytes) -> None:
    assert ask("/gradio_api/queue/join", body)[0] == 200


def test_a_question_that_is_too_long_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "MAX_QUESTION", 5000)
    assert ask("/gradio_api/queue/join", bytes(6000))[0] == 413


def test_an_upload_that_is_too_large_is_refused_or_broken_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "MAX_UPLOAD", 5000)
    assert ask("/gradio_api/upload", bytes(4000)) == (200, "\0" * 4000)
    assert ask("/gradio_api/upload", bytes(10), headers={"Content-Length": "6000"})[0] == 413
    assert ask("/gradio_api/upload/", bytes(6000))[1].endswith(" broken off")


def test_no_upload_is_taken_where_there_is_no_room() -> None:
    assert ask("/gradio_api/upload", b"x", full=True) == (507, "no room.")


def test_what_is_no_request_passes() -> None:
    seen: list[str] = []

    async def application(scope: Any, *_: Any) -> None:
        seen.append(scope["type"])

    asyncio.run(Guard(application, lambda arriving: None)({"type": "lifespan"}, None, None))  # type: ignore[arg-type]
    assert seen == ["lifespan"]
