"""What the page's server is never asked: requests are sent through the guard to an application that notes them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hierclass.errors import InputError
from hierclass.page import arrivals, guard
from hierclass.page.addresses import AllowedHosts
from hierclass.page.guard import Guard
from hierclass.page.uploads import Uploads

BOUNDARY = "--xyz"
FORM = {"Content-Type": "multipart/form-data; boundary=xyz"}
JSON = {"Content-Type": "application/json"}
ARGUMENTS = {0: [None, None, None], 4: [range(6)], 7: [None], 12: []}
"""Functions of the page: their numbers, and which values their arguments may have."""
Answer = tuple[int, str]


async def read_all(scope: Any, receive: Any, send: Any) -> None:
    """An application that answers 200 and what it read, as a reader of forms does."""
    read, more = b"", True
    while more and scope["method"] == "POST":
        message = await receive()
        read += message["body"]
        more = message["more_body"]
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": read})


@pytest.fixture
def uploads(tmp_path: Path) -> Uploads:
    return Uploads(tmp_path)


@pytest.fixture
def ask(uploads: Uploads) -> Callable[..., Answer]:
    """Send one request through a guard; return the status and text of the answer."""

    def ask(path: str, body: bytes = b"", **how: Any) -> Answer:
        filter_ = how.pop("guard", None) or make_guard(uploads)
        return asyncio.run(request(filter_, path, body, **how))

    return ask


def make_guard(uploads: Uploads, application: Any = read_all, host: str = "127.0.0.1") -> Guard:
    return Guard(application, AllowedHosts(host), uploads, ARGUMENTS)


async def request(
    guard: Guard,
    path: str,
    body: bytes = b"",
    *,
    method: str = "POST",
    headers: dict[str, str] | None = None,
    query: str = "",
    visitor: str = "10.0.0.1",
    stalls: bool = False,
) -> Answer:
    parts = [body[at : at + 1000] for at in range(0, len(body), 1000)] or [b""]
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        if not parts:
            if stalls:
                await asyncio.sleep(60)
            return {"type": "http.disconnect"}
        part = parts.pop(0)
        return {"type": "http.request", "body": part, "more_body": bool(parts) or stalls}

    async def send(message: Any) -> None:
        sent.append(message)

    kind = FORM if "upload" in path else JSON
    pairs = {"Host": "127.0.0.1:7860", **kind, **(headers or {})}.items()
    scope = {
        "type": "http",
        "path": path,
        "query_string": query.encode(),
        "method": method,
        "client": (visitor, 1234),
        "headers": [(name.lower().encode(), value.encode()) for name, value in pairs],
    }
    await guard(scope, receive, send)
    return sent[0]["status"], b"".join(each["body"] for each in sent[1:]).decode()


def form(*files: bytes) -> bytes:
    """A form with files."""
    head = b'--xyz\r\nContent-Disposition: form-data; name="files"; filename="a.jpg"\r\n\r\n'
    return b"".join(head + each + b"\r\n" for each in files) + b"--xyz--\r\n"


# ---- doors


@pytest.mark.parametrize(
    "path",
    [
        "/gradio_api/file=https://example.org/x",
        "/gradio_api/file=http:/example.org/x",
        "/gradio_api/file= HTTP://example.org/x",
        "/gradio_api/file=ht\ntp://example.org/x",
        "/gradio_api/file/https://example.org/x",
        "/gradio_api/proxy=https://x.hf.space/",
        "http://example.org/config",
    ],
)
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_nothing_is_fetched_from_elsewhere_for_a_visitor(ask: Any, path: str, method: str) -> None:
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
        "/gradio_api/call/v2/show",
        "/gradio_api/call/v3/model",
        "/login",
        "/x/gradio_api/upload",
        "/",
    ],
)
@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
def test_doors_that_the_page_does_not_use_are_shut(ask: Any, path: str, method: str) -> None:
    assert ask(path, b"{}", method=method)[0] == 404


@pytest.mark.parametrize(
    "path",
    [
        "/docs",
        "/openapi.json",
        "/monitoring/summary",
        "/pwa_icon",
        "/assets/../x",
        "/assets/",
        "//config",
        "/gradio_api/runs",
        "/gradio_api/token",
        "/gradio_api/user",
        "/gradio_api/custom_component/x/client/y/z",
        "/gradio_api/deep_link",
        "/gradio_api/dev/reload",
        "/gradio_api/file/tmp/x",
        "/gradio_api/file=/etc/passwd",
        "/gradio_api/call/show/1",
        "/gradio_api/call/model/a b",
        "/gradio_api/call/model/",
        "/gradio_api/heartbeat/\0",
    ],
)
def test_pages_that_are_not_needed_are_not_there(ask: Any, path: str) -> None:
    assert ask(path, method="GET")[0] == 404


@pytest.mark.parametrize("path", ["/", "/config"])
def test_a_page_that_a_visitor_stored_is_not_shown(ask: Any, path: str) -> None:
    assert ask(path, method="GET", query="deep_link=../x")[0] == 404


@pytest.mark.parametrize(
    ("path", "query"),
    [
        ("/", "__theme=dark"),
        ("/config", ""),
        ("/assets/index-a.js", ""),
        ("/theme.css", "v=1"),
        ("/gradio_api/info", "serialize=False"),
        ("/gradio_api/openapi.json", ""),
        ("/gradio_api/app_id", ""),
        ("/gradio_api/startup-events", ""),
        ("/gradio_api/heartbeat/abc", ""),
        ("/gradio_api/queue/data", "session_hash=abc"),
        ("/gradio_api/upload_progress", "upload_id=abc"),
        ("/gradio_api/call/label/0123abcd", ""),
        ("/gradio_api/call/v2/label/0123abcd", ""),
    ],
)
def test_what_the_page_and_programs_read_is_open(ask: Any, path: str, query: str) -> None:
    assert ask(path, method="GET", query=query)[0] == 200


@pytest.mark.parametrize(
    "query", ["", "session_hash=", "session_hash=%00", "session_hash=a%20b", "upload_id=x"]
)
def test_a_stream_is_asked_with_its_session(ask: Any, query: str) -> None:
    status, text = ask("/gradio_api/queue/data", method="GET", query=query)
    assert (status, "session_hash" in text) == (422, True)


def test_files_of_visitors_can_be_fetched(ask: Any, uploads: Uploads) -> None:
    assert ask(f"/gradio_api/file={uploads.folder}/cat.jpg", method="GET")[0] == 200
    assert ask(f"/gradio_api/file={uploads.folder}/../cat.jpg", method="GET")[0] == 404


@pytest.mark.parametrize("kind", ["websocket", "lifespan"])
def test_what_is_no_request_of_http_is_closed_or_the_servers_own(uploads: Uploads, kind: str) -> None:
    seen: list[str] = []

    async def application(scope: Any, *_: Any) -> None:
        seen.append(scope["type"])

    async def receive() -> Any:
        return {"type": "websocket.connect"}

    async def send(message: Any) -> None:
        seen.append(message["type"])

    asyncio.run(make_guard(uploads, application)({"type": kind}, receive, send))
    assert seen == {"lifespan": ["lifespan"], "websocket": ["websocket.close"]}[kind]


# ---- who asks


def test_another_name_and_another_website_are_refused_in_a_sentence(ask: Any) -> None:
    for path, method in (
        ("/config", "GET"),
        ("/gradio_api/upload", "POST"),
        ("/gradio_api/queue/join", "POST"),
    ):
        status, text = ask(path, b"{}", method=method, headers={"Host": "evil.example"})
        assert (status, "evil.example" in text, "--allow-host" in text) == (403, True, True)
        status, text = ask(path, b"{}", method=method, headers={"Origin": "http://evil.example"})
        assert (status, "Another website (http://evil.example)" in text) == (403, True)


# ---- questions


@pytest.mark.parametrize(
    ("path", "question"),
    [
        ("call/classify", {"data": [None, 2, None]}),
        ("call/label/", {"data": [[], None, 0.9]}),
        ("call/model", {"data": []}),
        ("call/v2/classify", {"photo": None}),
        ("call/v2/classes/", {"query": "dog"}),
        ("queue/join", {"fn_index": 0, "data": [1, 2, 3], "session_hash": "a-b.c", "trigger_id": 4}),
        ("run/predict", {"fn_index": 7, "data": ["dog"]}),
        ("run/predict", {"fn_index": 4, "data": [5]}),
        ("cancel", {"fn_index": 7, "session_hash": "a", "event_id": "b"}),
        ("reset", {"event_id": "b"}),
    ],
)
def test_a_question_reaches_the_application_whole(ask: Any, path: str, question: Any) -> None:
    body = json.dumps(question) + " " * 3000
    assert ask(f"/gradio_api/{path}", body.encode()) == (200, body)


@pytest.mark.parametrize("body", [b"", b"{", b"[" * 100_000, b"[NaN]", b"\xff", b"1" * 5000])
def test_what_is_no_json_is_refused(ask: Any, body: bytes) -> None:
    assert ask("/gradio_api/queue/join", body)[0] == 400


@pytest.mark.parametrize(
    ("path", "question", "message"),
    [
        ("call/classify", [], "JSON object"),
        ("call/classify", {}, "data of 3 (photo, level, precision)"),
        ("call/classify", {"data": [1]}, "data of 3"),
        ("call/classify", {"data": [1, 2, 10**30]}, "too large"),
        ("call/classify", {"data": [1, 2, float("1e308") * 10]}, ""),
        ("call/classify", {"data": [1, 2, 3], "session_hash": "a b"}, "session_hash"),
        ("call/classify", {"data": [json.loads("[" * 40 + "]" * 40), 2, 3]}, "nested too deeply"),
        ("call/v2/classify", {}, "photo, level, precision"),
        ("call/v2/classify", {"photo": 1, "x": 2}, "photo, level, precision"),
        ("queue/join", {"fn_index": 0, "data": [1, 2, 3]}, "session_hash"),
        ("queue/join", {"fn_index": True, "data": [1, 2, 3], "session_hash": "a"}, "whole number"),
        ("queue/join", {"fn_index": 7, "data": [], "session_hash": "a"}, "data of 1"),
        ("queue/join", {"fn_index": 12, "data": [], "session_hash": "a", "trigger_id": "b"}, "trigger_id"),
        ("run/predict", {"fn_index": 12, "data": [], "batched": True}, "batched"),
        ("run/predict", {"fn_index": 4, "data": [6]}, "no such example"),
        ("run/predict", {"fn_index": 4, "data": [1.0]}, "no such example"),
        ("cancel", {}, "fn_index"),
        ("reset", {"event_id": 3}, "event_id"),
    ],
)
def test_a_question_of_a_wrong_form_is_refused_in_a_sentence(
    ask: Any, path: str, question: Any, message: str
) -> None:
    status, text = ask(f"/gradio_api/{path}", json.dumps(question).encode())
    assert status in (400, 422)
    assert message in text


def test_a_function_that_is_not_there_is_not_found(ask: Any) -> None:
    body = json.dumps({"fn_index": 99, "data": [], "session_hash": "a"}).encode()
    assert ask("/gradio_api/queue/join", body) == (404, "There is no function 99 on this page; reload it.")


@pytest.mark.parametrize(
    "address",
    ["https://example.org/x.jpg", "HTTP://x", " http://x", "h\tttp://x", "file:///etc/passwd", "ftp://x"],
)
def test_an_address_in_place_of_a_file_is_refused(ask: Any, address: str) -> None:
    for data in ([{"path": address, "meta": {}}, 2], [[{"a": [{"path": address}]}]], {"path": address}):
        status, text = ask("/gradio_api/run/predict", json.dumps({"data": data}).encode())
        assert (status, "uploaded" in text) == (400, True)


def test_a_file_that_was_not_uploaded_is_refused(ask: Any, uploads: Uploads) -> None:
    for path in ("/etc/passwd", f"{uploads.folder}/../x", "x.jpg", "a\0b", "y" * 5000):
        status, text = ask("/gradio_api/call/classify", json.dumps({"data": [{"path": path}, 1, 1]}).encode())
        assert (status, "was not uploaded" in text) == (422, True)
    gone = json.dumps({"data": [{"path": str(uploads.folder / "gone.jpg")}, 1, 1]}).encode()
    assert ask("/gradio_api/call/classify", gone)[0] == 200


@pytest.mark.parametrize(
    "more", [{"orig_name": 3}, {"size": "x"}, {"url": []}, {"meta": 1}, {"is_stream": "y"}]
)
def test_what_is_said_of_a_file_has_the_types_that_clients_send(
    ask: Any, uploads: Uploads, more: Any
) -> None:
    usual = {
        "orig_name": "a.jpg",
        "size": 3,
        "url": "http://x/y",
        "mime_type": None,
        "meta": {},
        "is_stream": False,
    }
    for said, status in ((usual, 200), ({**usual, **more}, 422)):
        photo = {"path": f"{uploads.folder}/a.jpg", **said}
        assert ask("/gradio_api/call/classify", json.dumps({"data": [photo, 1, 1]}).encode())[0] == status


def test_a_question_is_json_and_not_too_long(ask: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert ask("/gradio_api/queue/join", b"{}", headers={"Content-Type": "text/plain"})[0] == 415
    monkeypatch.setattr(arrivals, "MAX_QUESTION", 5000)
    assert ask("/gradio_api/queue/join", bytes(6000))[0] == 413


# ---- answers


@pytest.mark.parametrize("begun", [False, True])
def test_an_error_behind_the_guard_is_a_sentence(
    uploads: Uploads, ask: Any, begun: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async def application(scope: Any, receive: Any, send: Any) -> None:
        if begun:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"half", "more_body": True})
        raise KeyError("inside\n")

    answer = ask("/config", method="GET", guard=make_guard(uploads, application))
    assert answer == ((200, "half") if begun else (500, "That could not be answered."))
    (record,) = caplog.records
    assert record.getMessage() == "GET '/config': \"KeyError: 'inside\\\\n'\""


def test_an_unknown_question_has_no_answer(uploads: Uploads, ask: Any) -> None:
    class NotFoundError(Exception):
        status_code = 404

    async def application(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send(
            {"type": "http.response.body", "body": b'event: error\ndata: "404: Not Found"', "more_body": True}
        )
        raise NotFoundError

    filter_ = make_guard(uploads, application)
    assert ask("/gradio_api/call/model/0123", method="GET", guard=filter_)[0] == 404


def test_a_browser_is_told_to_load_nothing_from_elsewhere(uploads: Uploads) -> None:
    started: list[Any] = []

    async def application(scope: Any, receive: Any, send: Any) -> None:
        kind = [(b"content-type", b"text/html; charset=utf-8")]
        await send({"type": "http.response.start", "status": 200, "headers": kind})
        await send({"type": "http.response.body", "body": b""})

    async def send(message: Any) -> None:
        started.append(message)

    async def load(path: str) -> str:
        headers = [(b"host", b"localhost")]
        await make_guard(uploads, application)(
            {"type": "http", "method": "GET", "path": path, "headers": headers},
            None,
            send,  # type: ignore[arg-type]
        )
        return str(dict(started[-2]["headers"])[b"content-security-policy"])

    assert "default-src 'self'" in asyncio.run(load("/"))
    assert "sandbox" in asyncio.run(load(f"/gradio_api/file={uploads.folder}/a.html"))


def test_answers_that_nobody_fetches_are_dropped(uploads: Uploads, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "MAX_UNREAD", 5)

    async def run() -> list[int]:
        queues: dict[str, asyncio.Queue[int]] = {name: asyncio.Queue() for name in ("many", "few")}
        for number in range(4):
            queues["many"].put_nowait(number)
        for number in range(2):
            queues["few"].put_nowait(number)
        filter_ = Guard(read_all, AllowedHosts("127.0.0.1"), uploads, ARGUMENTS, queues)
        await request(filter_, "/gradio_api/call/model", b'{"data": []}')
        return [each.qsize() for each in queues.values()]

    assert asyncio.run(run()) == [0, 2]


# ---- uploads


def test_an_upload_reaches_the_application_whole(ask: Any) -> None:
    body = form(b"x" * 4000, b"y")
    assert ask("/gradio_api/upload", body) == (200, body.decode())
    assert ask("/gradio_api/upload", b"x", headers=JSON)[0] == 415


def test_an_upload_that_is_too_large_is_refused_in_a_sentence(
    ask: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arrivals, "MAX_UPLOAD", 5000)
    assert ask("/gradio_api/upload", bytes(10), headers={"Content-Length": "6000"})[0] == 413
    status, text = ask("/gradio_api/upload/", bytes(6000))  # as chunks, without a length
    assert (status, "too much at once" in text) == (413, True)


def test_too_many_parts_are_refused(ask: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrivals, "MAX_PARTS", 20)
    assert ask("/gradio_api/upload", form(*[b""] * 20))[0] == 200
    status, text = ask("/gradio_api/upload", form(*[b""] * 21))
    assert (status, "too many files" in text) == (413, True)


def test_no_upload_is_taken_where_there_is_no_room(
    ask: Any, uploads: Uploads, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[int] = []

    def check_space(arriving: int) -> None:
        steps.append(arriving)
        if len(steps) > 2:
            raise InputError("no room")

    monkeypatch.setattr(uploads, "check_space", check_space)
    monkeypatch.setattr(arrivals, "_STEP", 2500)
    assert ask("/gradio_api/upload", bytes(10_000)) == (507, "no room.")
    assert steps == [2500, 2500, 2500]  # as it arrives; what arrived lies in the folder
    assert ask("/gradio_api/upload", b"x", headers={"Content-Length": "1"}) == (507, "no room.")


@pytest.mark.parametrize("path", ["upload", "call/model"])
def test_what_stops_arriving_is_given_up(ask: Any, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    monkeypatch.setattr(arrivals, "IDLE_SECONDS", 0.05)
    monkeypatch.setattr(arrivals, "QUESTION_SECONDS", 0.05)
    assert ask(f"/gradio_api/{path}", b"{", stalls=True) == (408, "Nothing came any more; please try again.")


def test_an_upload_that_trickles_is_given_up(ask: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrivals, "SLOWEST", 1e9)
    now = iter(range(0, 10**6, 20))
    monkeypatch.setattr(arrivals.time, "monotonic", lambda: next(now))
    assert ask("/gradio_api/upload", bytes(10_000)) == (408, "The upload is too slow.")


def test_one_visitor_uploads_a_share_of_what_is_kept(
    uploads: Uploads, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arrivals, "MAX_STORED", 10_000)

    async def run() -> list[int]:
        filter_ = make_guard(uploads)
        visitors = ["10.0.0.1", "10.0.0.1", "10.0.0.2", "2001:db8::1", "2001:db8::2"]
        found = []
        for visitor in visitors:
            body, length = bytes(3000), {"Content-Length": "3000"}
            found.append(
                (await request(filter_, "/gradio_api/upload", body, headers=length, visitor=visitor))[0]
            )
        return found

    assert asyncio.run(run()) == [200, 507, 200, 200, 507]


def test_one_visitor_uploads_few_at_once_and_others_go_on(
    uploads: Uploads, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arrivals, "NUM_ARRIVING_OF_ONE", 2)
    monkeypatch.setattr(arrivals, "NUM_WAITING_OF_ONE", 1)
    monkeypatch.setattr(arrivals, "IDLE_SECONDS", 0.3)

    async def run() -> list[int]:
        filter_ = make_guard(uploads)
        stalled = [
            asyncio.create_task(request(filter_, "/gradio_api/upload", b"x", stalls=True)) for _ in range(4)
        ]
        await asyncio.sleep(0.05)
        other = await request(filter_, "/gradio_api/upload", b"x", visitor="10.0.0.2")
        return [other[0], *sorted([(await each)[0] for each in stalled])]

    assert asyncio.run(run()) == [200, 408, 408, 408, 429]


def test_an_upload_that_can_not_be_kept_is_a_sentence(uploads: Uploads, ask: Any) -> None:
    async def application(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        raise OSError(28, "No space left on device")

    status, text = ask("/gradio_api/upload", b"x", guard=make_guard(uploads, application))
    assert (status, "No space left" in text) == (507, True)
