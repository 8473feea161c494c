"""One pass over the inputs of a run: label them and write parts of the table, whichever engine computes it."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self, TypeAlias

import pyarrow as pa

from hierclass.decisions.exit_policy import Request, StopReason
from hierclass.labelling.pipeline import FeaturePipeline, LabelPipeline
from hierclass.labelling.read_ahead import NumberedInput
from hierclass.labelling.read_input import ReadOptions
from hierclass.labelling.run_folder import RunFolder
from hierclass.labelling.run_parts import Part, Range

if TYPE_CHECKING:
    from hierclass.classifier import Classifier

PART_ROWS = 10_000
PART_BYTES = 16 << 20
PART_SECONDS = 30.0
"""A part is written after N rows, B bytes or S seconds; bounds what a crash can lose, and memory."""


PassProgress: TypeAlias = Generator[tuple[int, int], None, None]
"""Yields (inputs, errors among them) done since the last time; closing it early keeps the rows that are done."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunPass:
    """A pass over the inputs of a run: its number `generation`, the request, and how inputs are read."""

    generation: int
    request: Request
    reading: ReadOptions
    sparse: bool = False
    """Whether the pass is for the inputs of `RunFolder.numbers` only."""
    features: bool = False
    """Whether features are computed instead of answers."""
    keeps_known: bool = False
    """Whether an image that can't be read any more keeps its earlier row."""

    def pipeline(self, classifier: Classifier) -> LabelPipeline:
        """Return the pipeline that labels the inputs of this pass, or computes their features."""
        kind = FeaturePipeline if self.features else LabelPipeline
        return kind(classifier, self.request, self.reading)


class Engine(Protocol):
    """Computes passes."""

    def run(self, folder: RunFolder, what: RunPass, gaps: Sequence[Range]) -> PassProgress:
        """Label the inputs of a pass in the given ranges of their numbers."""
        ...


class LocalEngine:
    """Computes passes in this process."""

    def __init__(self, classifier: Classifier, part_rows: int | None = None) -> None:
        """Answer with a classifier; write a part of the table every `part_rows` rows (None: `PART_ROWS`)."""
        self._classifier, self._part_rows = classifier, part_rows or PART_ROWS

    def run(self, folder: RunFolder, what: RunPass, gaps: Sequence[Range]) -> PassProgress:
        """Label the inputs of a pass, range after range."""
        pipeline = what.pipeline(self._classifier)
        for gap in gaps:
            yield from run_range(folder, pipeline, what, gap, self._part_rows)


def run_range(
    folder: RunFolder, pipeline: LabelPipeline, what: RunPass, wanted: Range, part_rows: int = PART_ROWS
) -> PassProgress:
    """Label the inputs of a pass in one range of numbers with `RunPass.pipeline`, and store their rows."""
    first, end = wanted
    inputs: Iterator[NumberedInput] = itertools.takewhile(
        lambda numbered: numbered[0] < end, folder.inputs(first)
    )
    known = folder.levels(what.generation) if what.sparse else {}
    if what.sparse:
        inputs = _chosen(inputs, [number for number in known if number >= first])
    empty = pipeline.schema(own=True).empty_table()
    with _PartWriter(folder, what.generation, wanted, part_rows, empty) as writer:
        for outcome in pipeline.run(inputs):
            table = pipeline.table(outcome)
            if what.keeps_known:
                table = _improved(table, known)
            writer.add(int(outcome.numbers[-1]) + 1, table)
            yield len(outcome), outcome.num_errors


def _improved(table: pa.Table, known: Mapping[int, int | None]) -> pa.Table:
    """Drop rows of a lower level than the known one of their input, unless they exclude the image.

    Rows with an error stay: they mark what is to be tried again, and replace no row (`RunFolder.read`).
    """
    columns = (table.column(name).to_pylist() for name in ("_index", "chosen_level", "stop_reason"))
    better = [
        level is None or level >= (known[number] or 0) or reason == StopReason.EXCLUDED.word
        for number, level, reason in zip(*columns, strict=True)
    ]
    return table.filter(pa.array(better, pa.bool_()))


class _PartWriter:
    """Collects the rows of a pass and writes them as parts, also when it is interrupted."""

    def __init__(
        self, folder: RunFolder, generation: int, wanted: Range, part_rows: int, empty: pa.Table
    ) -> None:
        """Write parts of a pass for a range of inputs, one every `part_rows` rows; `empty` is one without rows."""
        self._folder, self._generation, self._part_rows = folder, generation, part_rows
        self._begin, self._end = wanted
        self._empty = empty
        self._held: list[tuple[int, pa.Table]] = []
        """Tables, each with the number that it reaches; in one list, since a signal may come at any moment."""
        self._since = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._write(self._end)
        elif not isinstance(error, OSError):  # on a full disk there is no more to be done
            with contextlib.suppress(OSError):
                self._write()

    def add(self, reached: int, table: pa.Table) -> None:
        """Take in rows; all inputs below number `reached` are done."""
        if not self._held:
            self._since = time.monotonic()
        self._held.append((reached, table))
        old = time.monotonic() - self._since > PART_SECONDS
        large = sum(table.nbytes for _, table in self._held) >= PART_BYTES
        if old or large or sum(len(table) for _, table in self._held) >= self._part_rows:
            self._write()

    def _write(self, end: int | None = None) -> None:
        """Write a part up to input number `end` (None: as far as the rows reach)."""
        reached = end if end is not None else self._held[-1][0] if self._held else self._begin
        if reached == self._begin:
            return
        tables = [table for _, table in self._held] or [self._empty]
        self._folder.add_part(Part(self._generation, self._begin, reached), pa.concat_tables(tables))
        self._begin, self._held = reached, []


def _chosen(inputs: Iterable[NumberedInput], numbers: Sequence[int]) -> Iterator[NumberedInput]:
    """The inputs that have one of the given numbers; both rise."""
    wanted = iter(numbers)
    number = next(wanted, None)
    for each in inputs:
        if number is None:
            return
        if each[0] == number:
            yield each
            number = next(wanted, None)
