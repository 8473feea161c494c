"""Whether a run survives being killed: `python benchmarks/kills.py [--inputs 5000] [--kills 100] [--json OUT]`.

It makes inputs of its own (small JPEG files, some of them broken, one tar and one Parquet file), labels them once
undisturbed with `hierclass label`, then kills the same command with SIGKILL at random moments and gives it again, until
it is done. The table must then have one row per input, in order, equal to the undisturbed one, and no process that read
for the command may be left. A run that ends before its kill is checked, too, and another one begun. With `--update` the
runs that are killed are updates of one in which the Parquet file is still missing, and a part of the photographs.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import typer
from PIL import Image
from rich.table import Table
from timing import describe_machine, wide_console

PART_ROWS = 100
"""Rows of a part, fewer than hierclass writes by itself, so that a kill meets a run with many."""
PATIENCE = 60
"""Seconds within which processes that read for a killed command have to end."""
PROGRAM = (
    "import sys\nfrom hierclass.cli import main\nfrom hierclass.labelling.reader_pipes import kept_ready\n"
    "with kept_ready(start=True):  # as the command does, before it imports anything else\n"
    f"    import hierclass.labelling.run_pass as run_pass\n    run_pass.PART_ROWS = {PART_ROWS}\n"
    "    sys.exit(main(sys.argv[1:]))\n"
)
EXACT = ("path", "error", "level", "synset", "chosen_level", "stop_reason")
"""Columns that must be equal; scores depend a little on which images are computed together."""
CLOSE = 1e-3


@dataclass(slots=True)
class KillCounts:
    """What became of the kills."""

    kills: int = 0
    """Processes that were killed before their run was done."""
    kills_before_rows: int = 0
    """Those among them that had written no row yet."""
    runs: int = 0
    """Runs that were finished, killed before or not; each was equal to the undisturbed one."""
    most_kills_of_a_run: int = 0
    left_behind: int = 0
    """Processes that went on reading for a killed command."""


def make_inputs(folder: Path, count: int, chance: random.Random) -> list[Path]:
    """Write inputs, a tenth of them in a tar file and a tenth in a Parquet file; return what a command names."""
    photos = folder / "photos"
    photos.mkdir()
    pictures = [picture(chance) for _ in range(count)]
    tenth = max(1, count // 10)
    with tarfile.open(folder / "a.tar", "w") as tar:
        for number, data in enumerate(pictures[:tenth]):
            member = tarfile.TarInfo(f"{number:05}.jpg")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    pq.write_table(pa.table({"image": pictures[tenth : 2 * tenth]}), folder / "b.parquet")
    for number, data in enumerate(pictures[2 * tenth :]):
        (photos / f"{number:05}.jpg").write_bytes(data)
    return [folder / "a.tar", photos, folder / "b.parquet"]


def picture(chance: random.Random) -> bytes:
    """The bytes of a small JPEG; one of twenty is cut off or none at all."""
    kind = chance.random()
    if kind < 0.02:
        return b"no picture"
    values = np.frombuffer(chance.randbytes(6 * 8 * 3), np.uint8).reshape(6, 8, 3)
    stream = io.BytesIO()
    Image.fromarray(values).resize((96, 72)).save(stream, "JPEG", quality=80)
    data = stream.getvalue()
    return data[: len(data) // 2] if kind < 0.05 else data


def start(
    inputs: Sequence[Path], output: Path, model: Path | None, *, update: bool = False
) -> subprocess.Popen[bytes]:
    """Start labelling in a process group of its own."""
    names = [*map(str, inputs), "-o", str(output), "--level", "0", "--batch-size", "16"]
    options = [*(["--model", str(model)] if model else []), *(["--update"] if update else [])]
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, "label", *names, *options],
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def finish(process: subprocess.Popen[bytes]) -> None:
    """Wait for the end of a run, which some inputs have errors in."""
    _, said = process.communicate()
    if process.returncode != 3:
        raise SystemExit(f"labelling ended with {process.returncode}: {said.decode()[-500:]}")


def kill(process: subprocess.Popen[bytes]) -> int:
    """Kill a command; return how many processes that read for it are there after a minute."""
    family: list[psutil.Process] = []
    with contextlib.suppress(psutil.Error):
        family = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    _, left = psutil.wait_procs(family, timeout=PATIENCE)
    return len(left)


def differences(table: pa.Table, whole: pa.Table) -> list[str]:
    """Say in what a table differs from the undisturbed one."""
    if table.num_rows != whole.num_rows:
        return [f"{table.num_rows} rows instead of {whole.num_rows}"]
    found = [name for name in EXACT if table.column(name).to_pylist() != whole.column(name).to_pylist()]
    pairs = zip(table.column("score").to_pylist(), whole.column("score").to_pylist(), strict=True)
    if not all(one == other or math.isclose(one, other, abs_tol=CLOSE) for one, other in pairs):
        found.append("score")
    return found


def label_most(inputs: Sequence[Path], output: Path, model: Path | None) -> None:
    """Label what an update begins with: some of the photographs are not there yet, and the last input is not named."""
    photos, *_ = (each for each in inputs if each.is_dir())
    hidden = photos.with_name("hidden")
    hidden.mkdir()
    later = sorted(photos.iterdir())[::10]
    for file in later:
        file.rename(hidden / file.name)
    finish(start(inputs[:-1], output, model, update=True))
    for file in later:
        (hidden / file.name).rename(file)


def survive(
    inputs: Sequence[Path],
    folder: Path,
    whole: pa.Table,
    *,
    kills: int,
    seconds: float,
    model: Path | None,
    seed: int,
    earlier: Path | None,
) -> KillCounts:
    """Kill runs so often, each at a moment within the `seconds` that an undisturbed one takes, and check them.

    With `earlier`, a table with its run, they are updates of that.
    """
    outcome, chance, number, of_this = KillCounts(), random.Random(seed), 0, 0
    while outcome.kills < kills or of_this:
        output = folder / f"{number}.parquet"
        run = output.with_name(f"{output.name}.run")
        if earlier and not of_this:
            shutil.copy2(earlier, output)
            shutil.copytree(earlier.with_name(f"{earlier.name}.run"), run)
        process = start(inputs, output, model, update=earlier is not None)
        if outcome.kills < kills:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(chance.uniform(0, seconds))
            if process.poll() is None:
                outcome.kills_before_rows += not any(run.glob("parts*/*"))
                outcome.left_behind += kill(process)
                outcome.kills, of_this = outcome.kills + 1, of_this + 1
                if not output.exists() or (run / "run.json").exists():
                    continue
        if process.returncode is None or process.returncode >= 0:  # else it was killed when all was done
            finish(process)
        if wrong := differences(pq.read_table(output), whole):
            raise SystemExit(
                f"after {of_this} kills a run differs from an undisturbed one: {', '.join(wrong)}"
            )
        outcome.runs += 1
        outcome.most_kills_of_a_run = max(outcome.most_kills_of_a_run, of_this)
        number, of_this = number + 1, 0
        output.unlink()
        shutil.rmtree(run, ignore_errors=True)
    return outcome


def main(
    inputs: Annotated[int, typer.Option(min=20, help="Images to label.")] = 5000,
    kills: Annotated[int, typer.Option(min=1, help="Processes to kill.")] = 100,
    seed: Annotated[int, typer.Option(help="Of the images and the moments.")] = 0,
    update: Annotated[bool, typer.Option("--update", help="Kill updates of a run instead.")] = False,
    model: Annotated[Path | None, typer.Option(help="Model folder; the bundled model if left out.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the figures here.")] = None,
) -> None:
    """Kill labelling again and again."""
    console, machine = wide_console(), describe_machine()
    place = Path(tempfile.mkdtemp(prefix="hierclass-kills-"))
    try:
        named = make_inputs(place, inputs, random.Random(seed))
        began = time.perf_counter()
        finish(start(named, place / "whole.parquet", model))
        seconds = time.perf_counter() - began
        whole = pq.read_table(place / "whole.parquet")
        if whole.num_rows != inputs:
            raise SystemExit(f"{whole.num_rows} rows of {inputs} inputs")
        earlier = place / "earlier.parquet" if update else None
        if earlier:
            label_most(named, earlier, model)
            seconds /= 3  # that an update takes, about
        outcome = survive(
            named, place, whole, kills=kills, seconds=seconds, model=model, seed=seed, earlier=earlier
        )
        if earlier:
            shutil.rmtree(earlier.with_name(f"{earlier.name}.run"))
        forgotten = sorted(each.name for each in place.iterdir() if ".run" in each.name)
    finally:
        shutil.rmtree(place, ignore_errors=True)
    errors = whole.num_rows - whole.column("error").null_count
    report: dict[str, Any] = {"machine": machine, "inputs": inputs, "errors": errors, "seed": seed}
    report |= {"seconds": seconds, **asdict(outcome), "forgotten": forgotten}
    table = Table("what", "count", title=f"{inputs:,} inputs, {errors:,} of them broken")
    for what in ("kills", "kills_before_rows", "runs", "most_kills_of_a_run", "left_behind"):
        table.add_row(what.replace("_", " "), f"{report[what]:,}")
    console.print(table)
    console.print(
        f"Every finished run had one row per input, in order, as the undisturbed one, which took {seconds:.1f} s."
    )
    if json_file:
        json_file.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    if outcome.left_behind or forgotten:
        raise SystemExit(
            f"left behind: {outcome.left_behind} processes, {', '.join(forgotten) or 'no folder'}"
        )


if __name__ == "__main__":
    typer.run(main)
