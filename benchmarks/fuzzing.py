"""Read files that chance has damaged: `python benchmarks/fuzzing.py [--count N] [--seed S] [--kind KIND] [--keep DIR]`.

Small whole files of every kind that is read (pictures; tar, zip and Parquet files; taxonomies and tables of labels; SQL
conditions; model folders with weights and graphs) are changed by chance: bits, bytes, numbers, pieces doubled, moved
and cut, words of JSON. Each is read in a process of its own within limits of time and memory. That must end in an
answer or in one sentence; anything else is a fault: another exception, a crash, too long, too much memory. The same
seed makes the same files.

A table of kinds is printed, with the longest and the largest case; `--json` writes all to a file, `--keep` keeps files
with faults. The exit code is 1 if there was a fault. It forks, so it runs where systems can. Numbers of memory hold
what all cases share: the libraries, some 400 MB with PyTorch.
"""

from __future__ import annotations

import contextlib
import functools
import json
import random
import re
import shutil
import string
import tempfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
import typer
from hostile.forked import ForkedOutcome, run_forked
from hostile.seeds import small_tree, write_archives, write_models, write_pictures, write_tables
from rich.table import Table
from timing import describe_machine

import hierclass
from hierclass.checkpoints.checkpoint import load_checkpoint
from hierclass.errors import HierclassError, ImageError
from hierclass.images.decoding import read_header, read_image, read_preview
from hierclass.images.discovery import PassedOver
from hierclass.labelling.inputs import ParquetRows, list_inputs, source
from hierclass.labelling.rows import schema
from hierclass.labelling.sql_filter import SqlFilter
from hierclass.labelling.table_files import AddedColumns, read_rows
from hierclass.page.unpacking import ByteBudget, unpack
from hierclass.runtime.onnx_runtime import import_onnxruntime
from taxonomy import load_taxonomy
from taxonomy.terminal import PlainConsole
from training.data.samples import read_images

SECONDS = 20.0
MEGABYTES = 2048
_NUMBERS = (
    0,
    1,
    0x7F,
    0x80,
    0xFF,
    0x7FFF,
    0xFFFF,
    0x7FFFFFFF,
    0x80000000,
    0xFFFFFFFF,
    1 << 40,
    (1 << 63) - 1,
)


def read_picture(path: Path) -> str:
    """Read a picture in every way that a picture is read."""
    for read in (read_header, lambda file: read_preview(file, 16)):
        with contextlib.suppress(ImageError):
            read(path)
    read_image(path, min_side=32)
    return "read"


def read_archive(path: Path) -> str:
    """Read all that an archive holds."""
    if path.suffix == ".zip":
        with tempfile.TemporaryDirectory() as folder:
            found = unpack(path, path.name, Path(folder), ByteBudget(1 << 28), 500, PassedOver())
            return _summary(each.error or _said(read_image, each.path) for each in found)
    rows = ParquetRows()

    def all_rows() -> Iterator[str]:
        for item in list_inputs([path]):
            try:
                data = rows.data(item)
                yield _said(read_image, source(item) if data is None else data)
            except ImageError as error:
                yield str(error)

    return _summary(all_rows())


def _said(read: Callable[..., object], *given: object) -> str:
    """Return "read", or why it can't be."""
    try:
        read(*given)
    except HierclassError as error:
        return str(error)
    return "read"


def _summary(said: Iterator[Any]) -> str:
    counts = Counter(map(str, said))
    if set(counts) == {"read"}:
        return "read"
    return "; ".join(f"{count} x {text}" for text, count in counts.most_common(2)) or "holds nothing"


def read_table(path: Path) -> str:
    """Read a taxonomy, a table of labels, or one that `hierclass label --update` takes up."""
    if path.stem == "tree":
        load_taxonomy(path)
    elif path.stem == "answers":
        for rows in read_rows(path, schema(1)):
            AddedColumns(path).add_to(rows)
    else:
        read_images((str(path),), small_tree())
    return "read"


def read_model(path: Path) -> str:
    """Answer a picture by the graphs of a model, and load its network."""
    picture = np.full((40, 40, 3), 128, np.uint8)
    by_graphs = _said(lambda: hierclass.load(path, device="cpu").predict(picture))
    by_torch = _said(lambda: load_checkpoint(path).network(torch.zeros(1, 3, 32, 32)))
    return by_graphs if by_graphs != "read" else by_torch


def read_condition(path: Path) -> str:
    """Select rows by an SQL condition."""
    SqlFilter(path.read_text(encoding="utf-8"), 2)
    return "read"


class FileKind(NamedTuple):
    """A kind of files: what writes whole ones, and what reads one."""

    write: Callable[[Path], list[Path]]
    read: Callable[[Path], str]
    weight: int
    """Its share of the cases."""


def _write_conditions(folder: Path) -> list[Path]:
    """Write SQL conditions."""
    texts = (
        "tier0_label in ('dog', 'bird') and score < 0.5",
        "path like '%cat%' or not (error is null and level between 1 and 2)",
        "length(replace(path, 'a', 'b')) > 10 and abs(score - tier1_score) < 1e-3",
    )
    for number, text in enumerate(texts):
        (folder / f"{number}.sql").write_text(text, encoding="utf-8")
    return sorted(folder.iterdir())


KINDS = {
    "pictures": FileKind(write_pictures, read_picture, 10),
    "archives": FileKind(write_archives, read_archive, 5),
    "tables": FileKind(write_tables, read_table, 2),
    "conditions": FileKind(_write_conditions, read_condition, 1),
    "models": FileKind(write_models, read_model, 2),
}


def damage(data: bytes, others: list[bytes], chance: random.Random) -> bytes:
    """Change the bytes of a file by chance, once to six times."""
    found = bytearray(data)
    for _ in range(chance.choice((1, 1, 1, 2, 3, 6))):
        if not found:
            break
        at = min(
            int(len(found) * chance.random() ** chance.choice((1, 3))), len(found) - 1
        )  # often near the head
        until = min(len(found), at + chance.choice((1, 2, 4, 8, 64, 4096)))
        match chance.randrange(8):
            case 0:
                found[at] ^= 1 << chance.randrange(8)
            case 1:
                found[at:until] = chance.randbytes(until - at)
            case 2:
                width = chance.choice((1, 2, 4, 8))
                number = chance.choice(_NUMBERS) % (1 << 8 * width)
                found[at : at + width] = number.to_bytes(width, chance.choice(("little", "big")))
            case 3:
                del found[at:until]
            case 4:
                found[at:at] = found[at:until] * chance.choice((1, 2, 50, 1000))
            case 5:
                other = chance.choice(others)
                start = chance.randrange(len(other) or 1)
                found[at:until] = other[start : start + until - at]
            case 6:
                del found[at:]
            case 7:
                found[at:until] = bytes(until - at)
    return bytes(found)


def damage_text(text: str, chance: random.Random) -> str:
    """Change words and numbers of a text by chance, or its bytes."""
    words = re.findall(r'-?\d[\d.]*|"[^"]*"|\w+|\S', text)
    if not words or chance.random() < 0.2:
        return damage(text.encode(), [text.encode()], chance).decode("utf-8", "replace")
    for _ in range(chance.choice((1, 1, 2, 5))):
        old, new = chance.choice(words), chance.choice(words)
        odd = (
            "0",
            "-1",
            "1e400",
            "NaN",
            "9" * 5000,
            "null",
            "[" * 2000,
            '"' + "a" * 99_999 + '"',
            "{}",
            "[]",
            "true",
        )
        signs = "".join(chance.choices(string.printable, k=3))
        new = chance.choice((new, new, chance.choice(odd), signs, f"{chance.choice(_NUMBERS)}", old * 2))
        place = chance.choice([found.start() for found in re.finditer(re.escape(old), text)] or [0])
        text = text[:place] + new + text[place + len(old) :]
        words = re.findall(r'-?\d[\d.]*|"[^"]*"|\w+|\S', text) or [""]
    return text


def make_case(seed: Path, seeds: list[Path], folder: Path, chance: random.Random) -> Path:
    """Write a damaged copy of a seed, a file or a model folder, into a folder."""
    target = folder / seed.name
    if seed.is_dir():
        shutil.copytree(seed, target)
        file = chance.choice(sorted(target.iterdir()))
        others = [file.read_bytes()]
    else:
        shutil.copyfile(seed, target)
        file, others = target, [each.read_bytes() for each in chance.sample(seeds, min(3, len(seeds)))]
    if file.suffix in (".json", ".jsonl", ".csv", ".sql"):
        file.write_text(damage_text(file.read_text(encoding="utf-8"), chance), encoding="utf-8")
    else:
        data = damage(file.read_bytes(), others, chance)
        if file.suffix == ".png" and chance.random() < 0.7:
            data = _with_sums(data)
        file.write_bytes(data)
    return target


def _with_sums(png: bytes) -> bytes:
    """Mend the checksums of a PNG's chunks, so that a decoder reads what was changed."""
    found, at = bytearray(png), 8
    while at + 12 <= len(found):
        length = int.from_bytes(found[at : at + 4], "big")
        if at + 12 + length > len(found):
            break
        found[at + 8 + length : at + 12 + length] = zlib.crc32(found[at + 4 : at + 8 + length]).to_bytes(
            4, "big"
        )
        at += 12 + length
    return bytes(found)


class Case(NamedTuple):
    """A damaged file that was read."""

    kind: str
    name: str
    number: int
    outcome: ForkedOutcome

    def to_dict(self) -> dict[str, Any]:
        """Return the case as JSON values."""
        values = {name: getattr(self.outcome, name) for name in ForkedOutcome.__slots__}
        return {"kind": self.kind, "name": self.name, "number": self.number, **values}


def _write_seeds(kind: str, folder: Path) -> str:
    return f"{len(KINDS[kind].write(folder))} files"


def run_cases(
    count: int, seed: int, kinds: list[str], keep: Path | None, seconds: float, megabytes: int
) -> Iterator[Case]:
    """Make and read N = `count` damaged files; yield each case."""
    with tempfile.TemporaryDirectory() as place:
        seeds = {}
        for name in kinds:
            (Path(place) / name).mkdir()
            write = functools.partial(_write_seeds, name, Path(place) / name)
            wrote = run_forked(write, seconds=300, megabytes=1 << 14)
            if wrote.fault:
                raise RuntimeError(f"the whole files can't be written: {wrote.fault} {wrote.said}")
            seeds[name] = sorted((Path(place) / name).iterdir())
        weights = [KINDS[name].weight for name in kinds]
        for number in range(count):
            chance = random.Random(f"{seed} {number}")
            name = chance.choices(kinds, weights)[0]
            whole = chance.choice(seeds[name])
            with tempfile.TemporaryDirectory(dir=place) as folder:
                made = make_case(whole, seeds[name], Path(folder), chance)
                read = functools.partial(KINDS[name].read, made)
                outcome = run_forked(read, seconds=seconds, megabytes=megabytes)
                if outcome.fault and keep is not None:
                    keep.mkdir(parents=True, exist_ok=True)
                    made.rename(keep / f"{number}-{made.name}")
            yield Case(name, whole.name, number, outcome)


def draw(cases: list[Case]) -> Table:
    """Draw a row per kind."""
    table = Table()
    for title in ("kind", "files", "read", "refused", "faults", "longest", "most memory"):
        table.add_column(title, justify="left" if title == "kind" else "right")
    for kind in dict.fromkeys(case.kind for case in cases):
        ours = [case for case in cases if case.kind == kind]
        faults = sum(bool(case.outcome.fault) for case in ours)
        whole = sum(case.outcome.said == "read" for case in ours)
        longest = max(ours, key=lambda case: case.outcome.seconds)
        largest = max(ours, key=lambda case: case.outcome.megabytes)
        table.add_row(
            kind,
            str(len(ours)),
            str(whole),
            str(len(ours) - whole - faults),
            str(faults),
            f"{longest.outcome.seconds:.2f} s ({longest.name})",
            f"{largest.outcome.megabytes:,.0f} MB ({largest.name})",
        )
    return table


def main(
    count: Annotated[int, typer.Option(min=1, help="Number of damaged files.")] = 2000,
    seed: Annotated[int, typer.Option(help="Which files chance makes.")] = 0,
    kind: Annotated[list[str] | None, typer.Option(help="Of these kinds only; again for more.")] = None,
    keep: Annotated[Path | None, typer.Option(help="Keep files with faults in this folder.")] = None,
    seconds: Annotated[float, typer.Option(help="Seconds that a file may take.")] = SECONDS,
    megabytes: Annotated[int, typer.Option(help="Memory that a file may take.")] = MEGABYTES,
    json_: Annotated[Path | None, typer.Option("--json", help="Write the results to this file.")] = None,
) -> None:
    """Read files that chance has damaged, and tell what was not bounded."""
    if unknown := set(kind or ()) - KINDS.keys():
        raise typer.BadParameter(f"there is no kind {min(unknown)}; there are {', '.join(KINDS)}")
    torch.set_num_threads(1)
    import_onnxruntime()  # once, for every fork
    console, cases = PlainConsole(width=130), list[Case]()
    with contextlib.suppress(KeyboardInterrupt):
        for case in run_cases(count, seed, kind or list(KINDS), keep, seconds, megabytes):
            cases.append(case)
            if case.outcome.fault:
                said = case.outcome.said[-400:]
                console.print(
                    f"{case.kind} {case.name}, number {case.number}: {case.outcome.fault}\n{said}",
                    markup=False,
                )
            elif console.is_terminal and len(cases) % 20 == 0:
                console.print(f"{len(cases):,} of {count:,}", end="\r")
    console.print(draw(cases))
    faults = sum(bool(case.outcome.fault) for case in cases)
    console.print(
        f"{len(cases):,} damaged files, {faults} faults; at most {seconds:g} s and {megabytes:,} MB each were allowed"
    )
    if json_ is not None:
        what = {"machine": describe_machine(), "seed": seed, "count": len(cases), "faults": faults}
        json_.write_text(json.dumps({**what, "cases": [case.to_dict() for case in cases]}, indent=1) + "\n")
    if faults:
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
