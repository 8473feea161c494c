"""The page as a server: its command, its endpoints for programs, and what a request can't make it do."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from page_data import CAT, EXAMPLES, ROOT, calibrated, sent
from PIL import Image
from served_page import PATIENCE, Served, served

from hierclass.page.uploads import Uploads


@pytest.fixture(scope="module")
def page(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The page around the tiny model, which is sure of a class from a score of 0.3 on."""
    classifier = calibrated(tiny_checkpoint, {0.8: 0.1, 0.9: 0.3})
    with served(classifier, tmp_path_factory.mktemp("uploads")) as found:
        yield found


@pytest.fixture(scope="module")
def client(page: Served) -> Any:
    from gradio_client import Client

    return Client(page.address, verbose=False)


def handle(path: Path) -> Any:
    from gradio_client import handle_file

    return handle_file(str(path))


# ---- the command


def run_app(*arguments: str, prelude: str = "pass") -> subprocess.CompletedProcess[str]:
    code = f"import sys; {prelude}; sys.argv = ['app.py', *{list(arguments)!r}]; import app; app.main()"
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE, check=False
    )


def test_a_missing_model_is_one_line(tmp_path: Path) -> None:
    pytest.importorskip("gradio", reason="Gradio is not installed")
    done = run_app("--model", str(tmp_path / "nowhere"))
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("package", ["gradio", pytest.param("plotly", marks=pytest.mark.full)])
def test_a_missing_package_names_the_command_that_installs_it(package: str) -> None:
    done = run_app(prelude=f"sys.modules[{package!r}] = None")
    assert done.returncode == 2
    name = package.replace("gradio", "Gradio")
    assert done.stderr.splitlines() == [f"app.py: the page needs {name}: pip install 'hierclass[demo]'"]


def test_a_name_that_is_none_is_one_line() -> None:
    pytest.importorskip("gradio", reason="Gradio is not installed")
    done = run_app("--allow-host", "https://photos.example.org/")
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert "without https://" in done.stderr


def test_importing_the_page_loads_neither_gradio_nor_torch() -> None:
    code = "import app, sys; print({'gradio', 'torch', 'plotly'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize("name", ["SIGINT", pytest.param("SIGHUP", marks=pytest.mark.full)])
def test_a_page_that_is_stopped_leaves_no_uploads_behind(
    page: Served, tiny_checkpoint: Path, tmp_path: Path, name: str
) -> None:
    port = free_port()
    command = [sys.executable, "app.py", "--model", str(tiny_checkpoint), "--port", str(port)]
    environment = {**os.environ, "TMPDIR": str(tmp_path), "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        assert f"http://127.0.0.1:{port}" in process.stdout.readline()
        upload(f"http://127.0.0.1:{port}", CAT)
        assert len(list(tmp_path.rglob("cat.jpg"))) == 1
        process.send_signal(getattr(signal, name))
        time.sleep(0.05)
        process.send_signal(signal.SIGTERM)  # somebody is impatient
        _, errors = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
    assert list(tmp_path.rglob("*.jpg")) == []
    assert "Traceback" not in errors


@pytest.mark.full
def test_a_port_that_is_taken_is_one_line(page: Served, tiny_checkpoint: Path) -> None:
    taken = page.address.rpartition(":")[2]
    done = run_app("--model", str(tiny_checkpoint), "--port", taken)
    assert done.returncode == 2
    assert (
        done.stderr.splitlines()[-1]
        == f"app.py: can't listen on 127.0.0.1, port {taken}; try another one with --port"
    )


def free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def upload(address: str, path: Path) -> str:
    """Send a file as a browser does; return where it is kept."""
    import httpx

    with path.open("rb") as file:
        reply = httpx.post(
            f"{address}/gradio_api/upload", files={"files": (path.name, file)}, timeout=PATIENCE
        )
    reply.raise_for_status()
    (found,) = reply.json()
    return str(found)


# ---- what programs call


def test_programs_get_one_answer_per_level(client: Any, page: Served) -> None:
    job = client.submit(handle(CAT), 2, api_name="/classify")
    last = job.result(timeout=PATIENCE)
    assert [answer["level"] for answer in job.outputs()] == [0, 1, 2]
    expected = page.classifier.predict(CAT)
    assert last["synset"] == expected.synset
    assert [step["synset"] for step in last["path"]] == [step.synset for step in expected.path]
    assert last["cost"]["macs_added"] > 0
    assert last["stop_reason"] == "asked"


def test_a_program_may_leave_level_and_precision_out(client: Any) -> None:
    assert client.predict(handle(CAT), api_name="/classify")["level"] == 2


def test_a_program_may_ask_for_no_more_than_is_sure(client: Any) -> None:
    last = client.predict(handle(CAT), 2, 0.9, api_name="/classify")
    assert (last["stop_reason"], last["answer"]["synset"]) == ("last", last["path"][0]["synset"])


def test_a_photograph_lying_on_its_side_is_turned_upright(client: Any, tmp_path: Path) -> None:
    upright = Image.open(CAT).convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = tmp_path / "turned.png"
    upright.transpose(Image.Transpose.ROTATE_90).save(turned, exif=exif)
    upright.save(tmp_path / "upright.png")
    answers = [
        client.predict(handle(path), 2, api_name="/classify") for path in (turned, tmp_path / "upright.png")
    ]
    assert answers[0]["path"] == answers[1]["path"]


@pytest.mark.parametrize(
    "content", [b"", b"no photograph", CAT.read_bytes()[:5000]], ids=["empty", "text", "cut"]
)
def test_programs_get_a_sentence_for_a_broken_file(client: Any, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.jpg"
    path.write_bytes(content)
    with pytest.raises(Exception, match="This photograph is") as caught:
        client.predict(handle(path), 2, api_name="/classify")
    assert "Traceback" not in str(caught.value)
    assert "/" not in str(caught.value).replace("JPEG2000", "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((9,), "Level 9 does"),
        (("two",), "'two'"),
        (([1],), "whole number"),
        ((1, 90), "precision is a number above 0, up to 1"),
        ((1, "<b>"), "'<b>'"),  # to a program, text is text
        ((1, 0.99), "up to 90%"),
    ],
)
def test_a_wrong_wish_of_a_program_is_answered_in_a_sentence(
    client: Any, arguments: Any, message: str
) -> None:
    with pytest.raises(Exception, match=r".") as caught:
        client.predict(handle(CAT), *arguments, api_name="/classify")
    assert message in str(caught.value)


def test_programs_label_many_photographs_in_order(client: Any, page: Served, tmp_path: Path) -> None:
    (tmp_path / "bad.jpg").write_bytes(b"no")
    with zipfile.ZipFile(tmp_path / "two.zip", "w") as archive:
        archive.write(CAT, "x/cat.jpg")
        archive.writestr("x/bad.jpg", b"no")
    files = [handle(each) for each in (CAT, tmp_path / "bad.jpg", tmp_path / "two.zip")]
    rows = client.predict(files, 1, api_name="/label")
    assert [row["name"] for row in rows] == ["cat.jpg", "bad.jpg", "two.zip/x/cat.jpg", "two.zip/x/bad.jpg"]
    assert [row["error"] is None for row in rows] == [True, False, True, False]
    expected = page.classifier.predict(CAT, 1)
    assert rows[0]["synset"] == rows[2]["synset"] == expected.synset
    assert rows[0]["steps"][0]["synset"] == expected.path[0].synset
    assert str(page.uploads.folder) not in json.dumps(rows)


def test_programs_are_told_of_the_model_and_its_classes(client: Any, page: Served) -> None:
    about = client.predict(api_name="/model")
    assert [level["num_classes"] for level in about["levels"]] == [2, 5, 12]
    assert about["precisions"] == [0.8, 0.9]
    assert [found["synset"] for found in client.predict("tabby", api_name="/classes")] == ["tabby"]
    with pytest.raises(Exception, match="A search is a text"):
        client.predict(["x"], api_name="/classes")


def test_endpoints_are_described_with_names_and_types(client: Any) -> None:
    about = client.view_api(return_format="dict")["named_endpoints"]
    assert set(about) == {"/classify", "/label", "/model", "/classes"}
    names = [each["parameter_name"] for each in about["/classify"]["parameters"]]
    assert names == ["photo", "level", "precision"]
    types = [each["python_type"]["type"] for each in about["/classify"]["parameters"]]
    assert types == ["filepath", "None | int", "None | float"]
    (answer,) = about["/classify"]["returns"]
    assert "stop_reason: None | str" in answer["python_type"]["type"]
    assert "path: list[dict(" in answer["python_type"]["type"]
    (rows,) = about["/label"]["returns"]
    assert rows["python_type"]["type"].startswith("list[dict(name: str, error: None | str")


# ---- what a request can't do


def ask(page: Served, endpoint: str, data: list[Any], visitor: str = "127.0.0.1") -> str:
    """Put a request into the queue without gradio_client, which would upload what is named; return the reply."""
    address = f"{page.address}/gradio_api/call/{endpoint}"
    body = json.dumps({"data": data}).encode()
    headers = {"Content-Type": "application/json", "X-Forwarded-For": visitor}
    request = urllib.request.Request(address, body, headers)
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE) as reply:
            text: str = reply.read().decode()
    except urllib.error.HTTPError as error:
        text = f"{error.code} {error.read().decode()}"
    return text


def call(page: Served, endpoint: str, data: list[Any], visitor: str = "127.0.0.1") -> str:
    """Call an endpoint as `ask` does; return the stream of its events."""
    return events(page, endpoint, ask(page, endpoint, data, visitor))


def events(page: Served, endpoint: str, text: str) -> str:
    """Return the stream of events of a question, from the reply to it."""
    if "event_id" not in text:
        return f"event: error\n{text}"
    address = f"{page.address}/gradio_api/call/{endpoint}/{json.loads(text)['event_id']}"
    with urllib.request.urlopen(address, timeout=PATIENCE) as reply:
        found: str = reply.read().decode()
    return found


@pytest.mark.parametrize(
    "meta", [{"meta": {"_type": "gradio.FileData"}}, {"meta": None}], ids=["checked", "unchecked"]
)
@pytest.mark.parametrize("endpoint", ["classify", "label"])
def test_a_file_of_the_server_can_not_be_named(
    page: Served, tmp_path: Path, endpoint: str, meta: dict[str, Any]
) -> None:
    secret = {**sent(Path(shutil.copy(CAT, tmp_path / "secret.jpg"))), **meta}
    text = call(page, endpoint, [secret if endpoint == "classify" else [secret], 2, None])
    assert "synset" not in text or '"synset": null' in text
    assert "event: error" in text or "is not here any more" in text
    assert str(tmp_path) not in text


def test_an_address_in_place_of_a_file_is_never_fetched(page: Served) -> None:
    asked: list[str] = []

    class Elsewhere(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(CAT.read_bytes())

        def do_HEAD(self) -> None:
            self.do_GET()

    server = HTTPServer(("127.0.0.1", 0), Elsewhere)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}/cat.jpg"
    photo = {"path": address, "url": address, "meta": {"_type": "gradio.FileData"}}
    assert "400" in call(page, "classify", [photo, 2, None])
    with pytest.raises(urllib.error.HTTPError, match="404"):
        urllib.request.urlopen(f"{page.address}/gradio_api/file={address}", timeout=PATIENCE)
    server.shutdown()
    assert asked == []


@pytest.mark.parametrize(
    "path", ["/etc/passwd", str(ROOT / "pyproject.toml"), str(ROOT / "app.py"), "../../etc/passwd"]
)
def test_a_file_of_the_server_can_not_be_fetched(page: Served, path: str) -> None:
    with pytest.raises(urllib.error.HTTPError, match=r"40[34]"):
        urllib.request.urlopen(f"{page.address}/gradio_api/file={path}", timeout=PATIENCE)


@pytest.mark.parametrize("data", [[], [None], ["x", 2], [3, "y", "z"], [{"path": 3}, 1, None], [[], 0, 0.9]])
def test_whatever_a_request_holds_the_page_goes_on(page: Served, client: Any, data: list[Any]) -> None:
    assert "event: error" in call(page, "classify", data)
    assert client.predict(handle(CAT), 0, api_name="/classify")["level"] == 0


def test_nothing_is_kept_of_a_request_of_many_but_its_uploads(
    client: Any, page: Served, tmp_path: Path
) -> None:
    with zipfile.ZipFile(tmp_path / "kept.zip", "w") as archive:
        archive.write(CAT, "inside.jpg")
    client.predict([handle(tmp_path / "kept.zip")], 0, api_name="/label")
    names = [each.name for each in page.uploads.folder.rglob("*") if each.is_file()]
    assert "kept.zip" in names
    assert "0.jpg" not in names


def test_uploads_are_deleted_when_they_are_old(client: Any, page: Served, tmp_path: Path) -> None:
    kept = Path(upload(page.address, Path(shutil.copy(CAT, tmp_path / "old.jpg"))))
    assert kept.is_relative_to(page.uploads.folder)
    soon = Uploads(page.uploads.folder, kept_seconds=-1)
    soon.sweep()
    assert not kept.exists()
    answer = call(page, "classify", [sent(kept), 0, None])
    assert "event: error" in answer
    assert client.predict(handle(CAT), 0, api_name="/classify")["level"] == 0  # the folder is there again


def test_an_upload_that_is_too_large_is_refused_before_it_is_sent(page: Served) -> None:
    from http.client import HTTPConnection

    from hierclass.page.arrivals import MAX_UPLOAD

    connection = HTTPConnection(page.address.removeprefix("http://"), timeout=PATIENCE)
    connection.putrequest("POST", "/gradio_api/upload")
    connection.putheader("Content-Type", "multipart/form-data; boundary=x")
    connection.putheader("Content-Length", str(MAX_UPLOAD + 1))
    connection.endheaders()
    assert connection.getresponse().status == 413


def test_one_visitor_with_many_requests_blocks_nobody_else(page: Served) -> None:
    """The first visitor's answers are held up; they come from 127.0.0.1 as those of a web server in front."""
    from hierclass.page.fair_queue import SHARE_OF_ONE
    from hierclass.page.service import NUM_PHOTOGRAPHS_WAITING

    page.service.resume.clear()
    page.service.never_held = "10.0.0.9"
    photo = sent(Path(upload(page.address, CAT)))
    most = 1 + int(NUM_PHOTOGRAPHS_WAITING * SHARE_OF_ONE)
    try:
        asked = [ask(page, "classify", [photo, 0, None]) for _ in range(most)]
        assert all("event_id" in answer for answer in asked)
        refused = call(page, "classify", [photo, 0, None])
        other = call(page, "classify", [photo, 0, None], visitor="10.0.0.9")
    finally:
        page.service.resume.set()
    assert "requests from your address wait for their turn" in refused
    assert "event: complete" in other
    for answer in asked:
        assert "event: complete" in events(page, "classify", answer)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("call/classify", '{"data": [NaN]}'),
        ("call/classify", '{"data": []}'),
        ("queue/join", '{"fn_index": 99999, "data": [], "session_hash": "x"}'),
        ("run/predict", '{"fn_index": 0}'),
        ("queue/data?session_hash=unknown", None),
        ("call/classify/0123456789", None),
        ("upload", "no form"),
    ],
)
def test_a_request_of_a_wrong_form_gets_a_sentence_and_the_server_says_nothing(
    page: Served, path: str, body: str | None, capfd: pytest.CaptureFixture[str]
) -> None:
    import httpx

    address, headers = f"{page.address}/gradio_api/{path}", {"Content-Type": "application/json"}
    if body is None:
        reply = httpx.get(address, timeout=PATIENCE)
    else:
        reply = httpx.post(address, content=body, headers=headers, timeout=PATIENCE)
    assert 400 <= reply.status_code < 500 or "404: Not Found" in reply.text
    assert "Traceback" not in reply.text
    assert capfd.readouterr().err == ""


def test_the_examples_are_there() -> None:
    assert sorted(path.name for path in EXAMPLES.glob("*.jpg"))
