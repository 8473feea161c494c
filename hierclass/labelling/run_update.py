"""Updates of runs: what stays, the rows of images that are still the same, and what is labelled.

Rows that stay are carried into a new first pass, numbered as the inputs are now.
"""

from __future__ import annotations

import contextlib
import os
import re
from array import array
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hierclass.errors import InputError
from hierclass.files import written_at
from hierclass.images.discovery import STANDARD_INPUT, PassedOver, display_name
from hierclass.images.kinds import done_installs
from hierclass.labelling.earlier_rows import EarlierIndex, FinishedRows, RowCheck, RunRows
from hierclass.labelling.inputs import PARQUET_ENDINGS, TAR_ENDINGS, Input, Stamp, stamp
from hierclass.labelling.pipeline import LabelPipeline
from hierclass.labelling.run_folder import RunFolder
from hierclass.labelling.run_manifest import LabelJob, Manifest, check_same
from hierclass.labelling.run_parts import Part
from hierclass.labelling.table_files import BEGIN_ANEW, AddedColumns, not_taken_up
from taxonomy.streams import plural

if TYPE_CHECKING:
    import pyarrow as pa

    from hierclass.labelling.run import LabelRun

_CARRIED_ROWS = 100_000
_CARRIED_BYTES = 64 << 20
"""Rows, and bytes of features, that are carried at once."""


class StampCache:
    """Stamps of the files of inputs; asks the disk once per archive, not once per image."""

    def __init__(self) -> None:
        """Begin with none."""
        self._last: tuple[str, Stamp | None] = ("", None)

    def of(self, item: Input) -> Stamp | None:
        """Return the stamp of the file of an input, or of its archive; None if there is none."""
        if item.offset < 0:
            return stamp(item.path)
        if self._last[0] != item.path:
            self._last = item.path, stamp(item.path)
        return self._last[1]


class UpdatePlan:
    """Which inputs of a new list keep an earlier row."""

    def __init__(
        self, earlier: EarlierIndex, inputs: Iterator[tuple[int, Input]], *, retry_errors: bool
    ) -> None:
        """Compare the earlier rows with inputs as they are now; with `retry_errors` rows with errors do not stay."""
        self.earlier = earlier
        self.carried, self._sizes, self._times = array("q"), array("q"), array("q")
        """For each input the number of its earlier row, or -1; and the stamp that its row has from now on."""
        self.num_new = self.num_changed = self.num_failed = self.num_away = 0
        self._unlisted = list[str]()
        """Archives that can't be listed to their end, and names that are not there."""
        stamps = StampCache()
        for _, item in inputs:
            number, now = earlier.take(item.name), stamps.of(item)
            if item.offset < 0 and (_is_archive(item.path) or (now is None and number < 0)):
                self._unlisted.append(item.name)
            if number < 0:
                self.num_new += 1
            elif now is not None and not earlier.is_same(number, now):
                self.num_changed, number = self.num_changed + 1, -1
            elif earlier.mended[number] or (retry_errors and earlier.failed[number]):
                self.num_failed, number = self.num_failed + 1, -1
            elif now is None:
                self.num_away += not earlier.failed[number]
                now = Stamp(earlier.sizes[number], earlier.times[number])
            self.carried.append(number)
            self._sizes.append(now.size if now else -1)
            self._times.append(now.modified if now else -1)
        self.gone = list(earlier.left())

    @property
    def num_kept(self) -> int:
        """Number of rows that stay."""
        return len(self.carried) - self.num_new - self.num_changed - self.num_failed

    @property
    def changes_nothing(self) -> bool:
        """Whether every earlier row stays where it is, and there are no others."""
        same = len(self.carried) == len(self.earlier) == self.num_kept
        return same and bool((np.frombuffer(self.carried, np.int64) == np.arange(len(self.carried))).all())

    def summary(self) -> str:
        """Return in a line what the update finds."""
        first = f" (the first: {self.gone[0]})" if self.gone else ""
        counts = [f"{self.num_new:,} new", f"{self.num_changed:,} changed", f"{self.num_kept:,} kept"]
        again = [f"{self.num_failed:,} with an error read again"] if self.num_failed else []
        away = [f"{self.num_away:,} of the kept not there any more"] if self.num_away else []
        spare = self.earlier.num_spare
        fewer = [f"{plural(spare, 'repeated row')} dropped"] if spare else []
        return ", ".join([*counts, f"{len(self.gone):,} gone{first}", *fewer, *again, *away])

    def refuse_loss(self, empty: Iterable[str], *, named_anew: bool) -> None:
        """Raise InputError if rows would go whose images may still be there.

        `empty` are names of inputs that lead to no image. `named_anew`: whether the inputs may be named otherwise than
        when the rows were made, as in a list.
        """
        names = {name.rstrip("/") for name in (*empty, *self._unlisted)} if self.gone else set[str]()
        above = (folder for path in self.gone for folder in _above(path) if folder in names)
        for name, count in Counter(above).items():
            if _is_archive(name):
                raise InputError(
                    f"{name} lacks {plural(count, 'image')} with rows, and can't be read to its end or holds none; if "
                    "it was copied in part, copy it again; if they are to go, move it away and leave its name out"
                )
            raise InputError(
                f"there is no image in {name}, of which {count:,} have rows; if its disk is away, mount it; if they "
                "are to go, leave that name out"
            )
        there = [path for path in self.gone if _exists(path)] if named_anew else []
        if there:
            raise InputError(
                f"{len(there):,} images that have rows are there but not among these inputs (the first: {there[0]}); "
                f"name all that the table is to hold; {BEGIN_ANEW}"
            )

    def todo(self) -> list[int]:
        """Return the numbers of the inputs that keep no row."""
        return [number for number, row in enumerate(self.carried) if row < 0]

    def carry(self, target: RunFolder, schema: pa.Schema) -> None:
        """Write the rows that stay as the first pass of a run, with the columns of a schema."""
        wanted, count = np.frombuffer(self.carried, np.int64), len(self.carried)
        at_once = _CARRIED_ROWS
        if schema.get_field_index("features") >= 0:
            at_once = max(1, min(at_once, _CARRIED_BYTES // (4 * schema.field("features").type.list_size)))
        for first in range(0, count, at_once):
            end = min(first + at_once, count)
            target.add_part(Part(0, first, end), self._carried(wanted[first:end], first, schema))

    def _carried(
        self, wanted: np.ndarray[tuple[int], np.dtype[np.int64]], first: int, schema: pa.Schema
    ) -> pa.Table:
        """The rows with the numbers `wanted` (-1: none), for the inputs from number `first` on."""
        import pyarrow as pa
        import pyarrow.compute as pc

        inputs = np.flatnonzero(wanted >= 0)
        numbers = wanted[inputs]
        found = [schema.empty_table()]
        if len(numbers):
            chosen = pa.array(np.unique(numbers))
            for table in self.earlier.rows.tables((int(numbers.min()), int(numbers.max()) + 1)):
                kept = table.filter(pc.is_in(table.column("_index"), value_set=chosen))
                found.append(kept.select(schema.names).cast(schema))
        rows = pa.concat_tables(found)
        places = np.searchsorted(rows.column("_index").to_numpy(), numbers)
        columns = dict(zip(schema.names, rows.take(pa.array(places, pa.int64())).columns, strict=True))
        columns["_index"] = pa.array(inputs + first, pa.int64())
        for name, values in (("_size", self._sizes), ("_modified", self._times)):
            columns[name] = pa.array(np.frombuffer(values, np.int64)[inputs + first], pa.int64())
        return pa.table(columns, schema=schema)


class RunUpdate:
    """An update of a run, or of a finished table: lists the inputs anew, and lets a run begin with rows that stay."""

    def __init__(self, run: LabelRun, job: LabelJob, table: Path | None, *, retry_errors: bool) -> None:
        """Update what a run, which exists or not, has in its folder by a job; `table` has the rows to begin with."""
        self._run, self._job, self._table, self._retry_errors = run, job, table, retry_errors
        self._wanted = job.manifest(run.classifier)
        self._exists = run.folder.exists

    def switch(self) -> None:
        """Replace the run by one of the inputs as they are now, in which those that keep no row are to be labelled.

        Ended early, it leaves all as it was.

        Raises:
            InputError: another request has made the rows, there are no inputs, or rows or added columns would go that
                should not.
        """
        run, folder = self._run, self._run.folder
        if self._exists:
            check_same(folder, self._wanted, update=True)
        if self._table is not None:
            AddedColumns(self._table)  # refused now, not when all is labelled
        try:
            run.listener.listed(0)
            passed_over = PassedOver()
            staged = folder.stage(run.find_inputs(self._job.names, passed_over), run.listener.listed)
            if passed_over:
                run.listener.say(passed_over.text())
            if self._exists:
                run.finish_passes()
            schema, index = self._earlier()
            plan = UpdatePlan(index, staged.inputs(), retry_errors=self._retry_errors)
            stored = folder.manifest() if self._exists else {"inputs": {}, "jobs": []}
            about, now = stored["inputs"], self._wanted["inputs"]
            named_anew = STANDARD_INPUT in self._job.names or about.get("names") != now["names"]
            archives = {each for path in plan.gone for each in _above(path) if _is_archive(each)}
            empty = filter(self._is_empty, (*self._job.names, *archives))
            plan.refuse_loss(map(display_name, empty), named_anew=named_anew)
            run.listener.say(plan.summary())
            if (
                self._table is None
                and all(about.get(name) == now[name] for name in now)
                and plan.changes_nothing
            ):
                folder.write_manifest({**stored, "keep": True})
                return
            plan.carry(staged, schema)
            todo = plan.todo()
            staged.write_numbers(1, dict.fromkeys(todo))
            staged.switch(self._manifest(stored, again=bool(todo)))
        finally:
            folder.tidy()

    def _manifest(self, stored: Manifest, *, again: bool) -> Manifest:
        """The manifest of an updated run; a refinement whose rows it keeps is remembered, no pass of it."""
        refined = [each for each in stored["jobs"] if each["kind"] == "refine"]
        has_tiers = bool(stored["jobs"]) and not self._job.features
        return {
            **self._wanted,
            "jobs": [*self._wanted["jobs"], *([{"kind": "again", "of": 0}] if again else [])],
            "keep": True,
            "refined": [*stored.get("refined", []), *refined],
            "replaced": stored.get("replaced", {}),
            **({"num_tiers": self._run.num_tiers} if has_tiers else {}),
        }

    def _earlier(self) -> tuple[pa.Schema, EarlierIndex]:
        """The schema of the rows to begin with, and these."""
        run, table, taxonomy = self._run, self._table, self._run.classifier.taxonomy
        if table is None:
            schema = run.schema(own=True)
            return schema, EarlierIndex(RunRows(run.folder, len(run.jobs), schema))
        name = display_name(table)
        if self._job.features:
            raise not_taken_up(table, "features are kept by their run, which is not beside it")
        if not self._exists:
            run.listener.say(
                f"{name} has no run beside it: its rows are taken as they are, and files newer than it "
                f"({written_at(table)}) as changed"
            )
            schema = LabelPipeline(run.classifier, self._job.request, run.reading).schema(own=True)
            return schema, EarlierIndex(FinishedRows(table, schema, RowCheck(table, taxonomy, self._job)))
        run.listener.say(f"{name} was changed since its run wrote it: its rows are taken as they are now")
        schema = run.schema(own=True)
        index = EarlierIndex(FinishedRows(table, schema, RowCheck(table, taxonomy)))
        index.note_stamps(RunRows(run.folder, len(run.jobs), schema).tables())
        return schema, index

    def _is_empty(self, name: str) -> bool:
        """Whether a name leads to no image: a disk that is away, say."""
        is_file = os.path.isfile(name)  # noqa: PTH113 - raises nothing for long names
        if name == STANDARD_INPUT or (is_file and not _is_archive(name)):
            return False
        with contextlib.suppress(InputError):
            return not any(item.member or item.path != name for item in self._run.find_inputs([name]))
        return True


def changed_since(
    tables: Iterable[pa.Table],
    inputs: Iterable[tuple[int, Input]],
    *,
    retry_errors: bool,
    say: Callable[[str], object],
) -> dict[int, list[int]]:
    """Return the inputs of a complete run whose files have changed since their rows were made, by the rows' passes.

    Those whose error was that an extra is missing, which is there now, too; with `retry_errors` all with an error.
    `say` gets a line for each kind of change.
    """
    again, gone = defaultdict[int, list[int]](list), 0
    changed = failed = relisted = 0
    stamps, installs = StampCache(), done_installs()
    rows = (row for table in tables for row in table.to_pylist())
    for row, (number, item) in zip(rows, inputs, strict=False):
        assert row["_index"] == number
        before, now = Stamp(row["_size"], row["_modified"]), stamps.of(item)
        if now is None:
            gone += row["error"] is None
        elif now != before and item.offset >= 0:
            relisted += row["error"] is None
            continue
        elif now != before:
            changed += 1
        retried = row["error"] is not None and (
            retry_errors or any(each in row["error"] for each in installs)
        )
        if (now is not None and now != before) or retried:
            failed += now is None or now == before
            again[row["_generation"]].append(number)
    for count, what in (
        (gone, "gone since, rows stay as they were"),
        (
            relisted,
            "in archives that changed since, rows stay as they were (--update labels what changed)",
        ),
        (changed, "changed since, labelled again"),
        (failed, "had an error, read again"),
    ):
        if count:
            say(f"{what}: {plural(count, 'image')}")
    return again


def _is_archive(name: str) -> bool:
    """Whether a name is that of an archive that is there, whose images have rows of their own."""
    return name.lower().endswith(TAR_ENDINGS + PARQUET_ENDINGS) and os.path.isfile(name)  # noqa: PTH113


def _above(path: str) -> Iterator[str]:
    """The folders that a path lies in, and its archive."""
    return (path[: slash.start()] for slash in re.finditer("/", path))


def _exists(path: str) -> bool:
    """Whether a file is there, or the archive that a path leads into."""
    return os.path.lexists(path) or any(os.path.isfile(each) for each in Path(path).parents)  # noqa: PTH113
