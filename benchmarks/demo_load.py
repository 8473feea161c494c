"""How the page bears many visitors: `python benchmarks/demo_load.py [--clients 50] [--requests 8] [--json OUT]`.

With `--only-slow` it measures only what two slow pictures cost the others.

It starts `app.py` in a process of its own and lets so many clients ask at once, each one photograph after the other, by
the endpoint /classify that streams an answer per level. Measured from the request on, uploading included: when the
first level's answer is there and when the last one's is; then the same while another visitor has many photographs
labelled, and 100 requests while two others send slow pictures again and again: small files that are allowed and take
seconds to read. Every visitor has an address of their own (X-Forwarded-For, as a web server in front writes it).
Reported are requests, errors (a page that is too busy says so; that is an error here), median and 95th percentile, and
the memory of the server before the first request, at its highest, and after the last. One client alone comes first,
so that the ratio says what the others cost. The visitors run on the same cores as the server; they speak plain HTTP,
for Gradio's own client asks a thousand times a second whether there is news.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import httpx
import psutil
import typer
from hostile.pictures import jpeg_of_scans
from rich.console import Console
from rich.table import Table
from timing import describe_machine

ROOT = Path(__file__).parent.parent
PHOTOGRAPHS = sorted((ROOT / "examples").glob("*.jpg"))
PATIENCE = 120
HEAD_START = 1.0
"""Seconds that others work before the requests that are measured."""


@dataclass(frozen=True)
class Load:
    """What so many clients met."""

    what: str
    clients: int
    requests: int
    errors: int
    first_median: float
    """Seconds until the answer of level 0."""
    first_95: float
    last_median: float
    """Seconds until the answer of the last level."""
    last_95: float
    per_second: float
    """Photographs that all clients together got answered."""


@dataclass(frozen=True)
class Asked:
    """One request: seconds to the first and to the last level's answer, or what went wrong."""

    first: float
    last: float
    error: str = ""


def ask(client: httpx.Client, file: Path, endpoint: str = "classify") -> Asked:
    """Have one photograph classified, or one zip file labelled."""
    began = time.perf_counter()
    try:
        with file.open("rb") as opened:
            sent = client.post("/gradio_api/upload", files={"files": (file.name, opened)})
        (path,) = sent.raise_for_status().json()
        data = {"path": path, "orig_name": file.name, "meta": {"_type": "gradio.FileData"}}
        given = [data if endpoint == "classify" else [data], None, None]
        begun = client.post(f"/gradio_api/call/{endpoint}", json={"data": given}).raise_for_status().json()
        first, event = 0.0, ""
        with client.stream("GET", f"/gradio_api/call/{endpoint}/{begun['event_id']}") as stream:
            for line in stream.iter_lines():
                event = line.removeprefix("event: ") if line.startswith("event: ") else event
                if line.startswith("data: ") and event in ("generating", "complete"):
                    first = first or time.perf_counter() - began
                if line.startswith("data: ") and event == "error":
                    return Asked(0, 0, line[:200])
        return Asked(first, time.perf_counter() - began, "" if event == "complete" else f"ended with {event}")
    except (httpx.HTTPError, ValueError, KeyError) as error:
        return Asked(0, 0, f"{type(error).__name__}: {error}"[:200])


def load(what: str, clients: list[httpx.Client], requests: int, errors: set[str]) -> Load:
    """Let clients ask at once, each `requests` times."""

    def visit(number: int) -> list[Asked]:
        photographs = (PHOTOGRAPHS[(number + each) % len(PHOTOGRAPHS)] for each in range(requests))
        return [ask(clients[number], photograph) for photograph in photographs]

    began = time.perf_counter()
    print(f"{what} …", file=sys.stderr, flush=True)
    with ThreadPoolExecutor(len(clients)) as threads:
        found = [asked for visitor in threads.map(visit, range(len(clients))) for asked in visitor]
    seconds = time.perf_counter() - began
    errors.update(asked.error for asked in found if asked.error)
    good = [asked for asked in found if not asked.error]
    first, last = ([getattr(asked, name) for asked in good] or [float("nan")] for name in ("first", "last"))
    return Load(
        what=what,
        clients=len(clients),
        requests=len(found),
        errors=len(found) - len(good),
        first_median=statistics.median(first),
        first_95=percentile(first, 0.95),
        last_median=statistics.median(last),
        last_95=percentile(last, 0.95),
        per_second=len(good) / seconds,
    )


def percentile(values: list[float], share: float) -> float:
    """The value that so many of the values do not exceed."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def memory(process: psutil.Process) -> float:
    """MiB that the server and its children hold, what they share counted once."""
    family = [process, *process.children(recursive=True)]
    return (
        float(sum(getattr(info, "pss", info.uss) for info in (each.memory_full_info() for each in family)))
        / 2**20
    )


class Watch:
    """Looks at a process's memory every second: a look takes the server a moment."""

    def __init__(self, process: psutil.Process) -> None:
        """Begin to look."""
        self.peak = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look, args=(process,), daemon=True)
        self._thread.start()

    def _look(self, process: psutil.Process) -> None:
        while not self._stop.wait(1):
            self.peak = max(self.peak, memory(process))

    def stop(self) -> None:
        """Look no more."""
        self._stop.set()
        self._thread.join()


def beside(others: list[httpx.Client], file: Path, endpoint: str, work: Callable[[], Load]) -> Load:
    """Do work while others have a file classified or labelled again and again, each one after the other."""
    stop = threading.Event()

    def go_on(client: httpx.Client) -> None:
        while not stop.is_set():
            ask(client, file, endpoint)

    threads = [threading.Thread(target=go_on, args=(client,), daemon=True) for client in others]
    for thread in threads:
        thread.start()
    time.sleep(HEAD_START)
    try:
        return work()
    finally:
        stop.set()
        for thread in threads:
            thread.join(PATIENCE)


def write_pile(folder: Path) -> Path:
    """Write a zip file of 100 photographs."""
    with zipfile.ZipFile(folder / "pile.zip", "w") as archive:
        for number in range(100):
            archive.write(PHOTOGRAPHS[number % len(PHOTOGRAPHS)], f"{number}.jpg")
    return folder / "pile.zip"


def write_slow(folder: Path) -> Path:
    """Write a picture of 9 KB that takes seconds to read and is allowed."""
    (folder / "slow.jpg").write_bytes(jpeg_of_scans(490, (2500, 2000)))
    return folder / "slow.jpg"


class Visitors:
    """Clients of a page, each with an address of its own."""

    def __init__(self, address: str) -> None:
        """Ask the page at an address."""
        self._address, self._count = address, 0

    def __call__(self, count: int) -> list[httpx.Client]:
        """Return N = `count` new visitors."""
        self._count += count
        numbers = range(self._count - count, self._count)
        headers = [{"X-Forwarded-For": f"10.0.{number >> 8}.{number & 255}"} for number in numbers]
        return [httpx.Client(base_url=self._address, timeout=PATIENCE, headers=each) for each in headers]


def measure_many(visitors: Visitors, clients: int, requests: int, pile: Path, errors: set[str]) -> list[Load]:
    """Measure one visitor, many, and many beside one who has 100 photographs labelled."""
    many = visitors(clients)
    return [
        load("one visitor", many[:1], requests, errors),
        load("all at once", many, requests, errors),
        beside(
            visitors(1),
            pile,
            "label",
            lambda: load("all, beside 100 photographs", many, max(1, requests // 4), errors),
        ),
    ]


def measure_slow(visitors: Visitors, slow: Path, errors: set[str]) -> list[Load]:
    """Measure 100 requests of 20 visitors, and the same beside two who send slow pictures."""
    few = visitors(20)
    return [
        load("100 requests", few, 5, errors),
        beside(visitors(2), slow, "classify", lambda: load("100, beside two slow pictures", few, 5, errors)),
    ]


def start(port: int, model: Path | None) -> tuple[subprocess.Popen[str], str]:
    """Start the page; return its process and address."""
    command = [sys.executable, str(ROOT / "app.py"), "--port", str(port)]
    command += ["--model", str(model)] if model else []
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if "http://" in line:
            return process, next(word for word in line.split() if word.startswith("http://"))
    raise SystemExit("the page did not start")


def draw(rows: list[Load]) -> Table:
    """Show what was measured."""
    table = Table(title="The page under load")
    for name in (
        "what",
        "clients",
        "requests",
        "errors",
        "level 0: median",
        "95%",
        "last level: median",
        "95%",
        "a second",
    ):
        table.add_column(name, justify="left" if name == "what" else "right")
    for row in rows:
        times = (f"{value:.2f} s" for value in (row.first_median, row.first_95, row.last_median, row.last_95))
        counts = (f"{row.clients}", f"{row.requests}", f"{row.errors}")
        table.add_row(row.what, *counts, *times, f"{row.per_second:.1f}")
    return table


def main(
    clients: Annotated[int, typer.Option(min=1, help="Visitors at once.")] = 50,
    requests: Annotated[int, typer.Option(min=1, help="Photographs of each, one after the other.")] = 8,
    model: Annotated[Path | None, typer.Option(help="Model folder; the bundled model if left out.")] = None,
    port: Annotated[int, typer.Option(min=1, max=65535)] = 7871,
    only_slow: Annotated[bool, typer.Option("--only-slow", help="Only beside slow pictures.")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the figures here.")] = None,
) -> None:
    """Measure the page under load."""
    console, errors = Console(width=110), set[str]()
    machine = describe_machine("cpu")
    process, address = start(port, model)
    try:
        server, visitors = psutil.Process(process.pid), Visitors(address)
        ask(visitors(1)[0], PHOTOGRAPHS[0])
        before, watch = memory(server), Watch(server)
        with tempfile.TemporaryDirectory() as place:
            pile, slow = write_pile(Path(place)), write_slow(Path(place))
            rows = [] if only_slow else measure_many(visitors, clients, requests, pile, errors)
            rows += measure_slow(visitors, slow, errors)
        time.sleep(3)
        watch.stop()
        after = memory(server)
    finally:
        process.terminate()
        process.wait(PATIENCE)
    console.print(draw(rows))
    console.print(
        f"Memory of the server: {before:,.0f} MiB before, {watch.peak:,.0f} at most, {after:,.0f} after."
    )
    for error in sorted(errors):
        console.print(f"error: {error}")
    if json_file:
        found: dict[str, Any] = {"machine": machine, "loads": [asdict(row) for row in rows]}
        found["memory_mib"] = {"before": before, "peak": watch.peak, "after": after}
        found["errors"] = sorted(errors)
        json_file.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.path.insert(0, os.fspath(Path(__file__).parent))
    typer.run(main)
