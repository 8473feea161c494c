"""Labelling runs: begin or continue one, refine rows, label changed files again, put the table together.

A run of features is one whose first pass computes features in place of answers.
"""

from __future__ import annotations

import bisect
import contextlib
import dataclasses
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from hierclass.decisions.exit_policy import Request
from hierclass.errors import InputError
from hierclass.files import has_content, remove_temporaries
from hierclass.images.discovery import STANDARD_INPUT, PassedOver, display_name
from hierclass.labelling.inputs import Input, list_inputs
from hierclass.labelling.pipeline import LabelPipeline, count_tiers
from hierclass.labelling.read_input import ReadOptions
from hierclass.labelling.rows import is_guess, schema
from hierclass.labelling.run_folder import RunFolder
from hierclass.labelling.run_inputs import Fingerprint
from hierclass.labelling.run_manifest import (
    LabelJob,
    Manifest,
    check_model,
    check_place,
    check_same,
    describe_model,
    request_from_json,
    request_to_json,
)
from hierclass.labelling.run_parts import Range
from hierclass.labelling.run_pass import Engine, LocalEngine, RunPass
from hierclass.labelling.run_update import RunUpdate, changed_since
from hierclass.labelling.sql_filter import SqlFilter
from hierclass.labelling.table_files import AddedColumns
from hierclass.labelling.table_writers import PLAIN, CsvForm, write_table
from taxonomy.streams import plural

if TYPE_CHECKING:
    import pyarrow as pa

    from hierclass.classifier import Classifier


class RunListener(Protocol):
    """Is told of the progress of a run."""

    def say(self, line: str) -> None:
        """Take a line for the user."""

    def listed(self, count: int) -> None:
        """Take the number of inputs that were found so far."""

    def start(self, total: int, done: int) -> None:
        """Begin a pass over `total` inputs, of which `done` are done."""

    def advance(self, num_images: int, num_errors: int) -> None:
        """Take the number of inputs done since the last call, and of errors among them."""


class LabelRun:
    """A labelling run in a folder that the caller has locked."""

    def __init__(
        self,
        folder: RunFolder,
        classifier: Classifier,
        reading: ReadOptions,
        listener: RunListener,
        engine: Engine | None = None,
    ) -> None:
        """Label with a classifier, on an engine that has the same one (None: in this process)."""
        self.folder, self.classifier, self.reading, self.listener = folder, classifier, reading, listener
        self.engine = engine or LocalEngine(classifier)
        self.num_unread = 0
        """Number of images of this call that could not be read again: their rows stayed."""

    def label(
        self,
        job: LabelJob,
        *,
        overwrite: bool = False,
        retry_errors: bool = False,
        update: bool = False,
        earlier: Path | None = None,
    ) -> None:
        """Begin a run, or continue it and label files again that have changed since their rows were made.

        With `update` the inputs are listed anew: images that are new or changed are labelled, the rows of others stay
        (those of a finished table, `earlier`, if that is given), and those of images that are gone go. With `overwrite`
        as well the run begins anew, and is kept for later updates.

        Raises:
            LevelError: the model has no such level.
            InputError: another run is in the folder, there is nothing to label, or the request does not fit the model.
            OSError: writing failed; what was written before is kept, and the same call continues.
        """
        self._check(job.request)
        wanted = job.manifest(self.classifier)
        again = self.folder.exists and not overwrite
        if update and not overwrite and (self.folder.exists or earlier is not None):
            RunUpdate(self, job, earlier, retry_errors=retry_errors).switch()
            self.finish_passes()
            return
        if retry_errors and not self.folder.exists:
            raise InputError(
                f"--retry-errors: there is no run in {display_name(self.folder.path)}; a table that is one file "
                "forgets its run when it is whole, a folder as output (-o run/) keeps it"
            )
        passed_over = PassedOver()
        inputs = self.find_inputs(job.names, passed_over)
        if again:
            check_same(self.folder, wanted)
            self._compare(inputs, is_list=STANDARD_INPUT in job.names)
            self.folder.tidy()
        else:
            self.listener.listed(0)
            self.folder.begin({**wanted, "keep": update}, inputs, self.listener.listed)
        if passed_over:
            self.listener.say(passed_over.text())
        self.finish_passes()
        if again:
            self._look_again(retry_errors=retry_errors)

    def refine(self, where: str, request: Request) -> None:
        """Label the rows that meet an SQL condition again.

        Rows stay if their image is gone or a higher level than the requested one has answered it. A request without
        classes takes those that the run was begun with, one without a prior its prior. The request of the last call,
        given again, is finished; images that could not be read are tried again.

        Raises:
            LevelError: the model has no such level.
            InputError: the run is not complete, the condition is wrong, or the request does not fit the model.
        """
        manifest = self.folder.manifest()
        if manifest["jobs"][0]["kind"] == "embed":
            raise InputError(
                f"the run in {display_name(self.folder.path)} holds features, which can't be refined"
            )
        check_model(self.folder, describe_model(self.classifier))
        check_place(self.folder)
        begun = request_from_json(manifest["jobs"][0])
        if not request.selects:
            request = dataclasses.replace(request, only=begun.only, exclude=begun.exclude)
        request = dataclasses.replace(request, prior=request.prior or begun.prior)
        self._check(request)
        job = {
            "kind": "refine",
            "where": where,
            "previews": self.reading.previews,
            **request_to_json(request),
        }
        refined = [n for n, each in enumerate(manifest["jobs"]) if each["kind"] == "refine"]
        if refined and request_to_json(Request()) | manifest["jobs"][refined[-1]] == job:
            self._repeat(refined[-1])
            return
        self._require_complete(manifest)
        self.folder.tidy()
        condition, levels, finer = SqlFilter(where, self.num_tiers), dict[int, int | None](), 0
        again = job in manifest.get("refined", ())
        for table in self._rows():
            chosen = list(condition.numbers(table))
            found = self._not_above(table, chosen, request, again=again)
            levels |= found
            finer += len(chosen) - len(found)
        if finer:
            what = "by the last level" if request.level == "auto" else "at a higher level"
            what += " or so before" if again else ""
            self.listener.say(f"answered {what}, rows stay as they were: {plural(finer, 'image')}")
        self._add_pass(job, levels)

    def find_inputs(self, names: Iterable[str], passed_over: PassedOver | None = None) -> Iterator[Input]:
        """List the inputs that names lead to, and count in `passed_over` the other files."""
        reading = self.reading
        return list_inputs(
            names, image_column=reading.image_column, ignore=reading.ignore, passed_over=passed_over
        )

    def assemble(self, path: Path, csv_form: CsvForm = PLAIN) -> int:
        """Write the table as `path`, a CSV table in a form; returns the number of rows with an error.

        Raises:
            InputError: the file is neither this run's nor one that was there when the run began.
        """
        errors = 0
        taken_up = self.folder.is_kept and has_content(path) and not self.folder.replaces(path)
        added = AddedColumns(path) if taken_up else None

        def counted() -> Iterator[pa.Table]:
            nonlocal errors
            for table in self._rows():
                errors += len(table) - table.column("error").null_count
                yield added.add_to(table) if added else table

        import pyarrow as pa

        remove_temporaries(path.parent, path.name)
        write_table(
            path,
            counted(),
            pa.schema([*self.schema(), *added.fields]) if added else self.schema(),
            csv_form,
            check=lambda written: self.folder.remember(path, written),
        )
        return errors

    def rows(self) -> Iterator[tuple[list[Input], pa.Table]]:
        """Yield inputs and their newest rows, in order, some thousands at a time."""
        inputs = self.folder.inputs(self.folder.bounds[0])
        for table in self._rows():
            numbers = table.column("_index").to_pylist()
            yield [next(item for at, item in inputs if at == number) for number in numbers], table

    # -- state

    @property
    def jobs(self) -> list[Manifest]:
        """The passes over the inputs so far."""
        found: list[Manifest] = self.folder.manifest()["jobs"]
        return found

    @property
    def num_tiers(self) -> int:
        """Number of tiers of the table: those of the finest level that was requested."""
        requests = [request_from_json(job) for job in self.jobs if job["kind"] != "again"]
        carried = int(self.folder.manifest().get("num_tiers", 0))
        return max(carried, *(count_tiers(request, self.classifier) for request in requests))

    @property
    def num_inputs(self) -> int:
        """Number of inputs of the run."""
        first, end = self.folder.bounds
        return end - first

    def _rows(self) -> Iterator[pa.Table]:
        """The newest row of every input."""
        return self.folder.read(range(len(self.jobs)), self.schema(own=True))

    def schema(self, *, own: bool = False) -> pa.Schema:
        """The schema of the table; with `own`, of the parts."""
        if self.jobs[0]["kind"] == "embed":
            return self._pass(0).pipeline(self.classifier).schema(own=own)
        return schema(self.num_tiers, own=own)

    def _not_above(
        self, table: pa.Table, numbers: Sequence[int], request: Request, *, again: bool
    ) -> dict[int, int | None]:
        """Leave out inputs that a higher level has answered than the request's (with "auto": the last level).

        With `again`, since the same was asked before an update, those that the request's level has answered, too.

        Returns the others: number → the level that has answered it so far. What the last level was not sure of has
        no answer yet for "auto", which may be sure of it at another precision.
        """
        if request.level == "auto":
            highest = self.classifier.taxonomy.num_tiers - 2
        else:
            highest = self.classifier.check_level(request.level) - again
        names = ("_index", "chosen_level", "level", "stop_reason")
        rows = zip(*(table.column(name).to_pylist() for name in names), strict=True)
        wanted = set(numbers)
        levels = {
            number: None if request.level == "auto" and is_guess(tier, reason) else level
            for number, level, tier, reason in rows
            if number in wanted
        }
        return {number: level for number, level in levels.items() if level is None or level <= highest}

    def _check(self, request: Request) -> None:
        """Refuse a request that does not fit the model; tell the listener if no image can get an answer."""
        policy = LabelPipeline(self.classifier, request, self.reading).policy
        if not policy.can_answer:
            self.listener.say(
                f"no class of level {policy.last} is so fine as {', '.join(request.only)}: answers stay empty, but "
                "what is surely something else is found; a higher level, or auto, answers"
            )

    def _require_complete(self, manifest: Manifest) -> None:
        if not self.folder.is_complete():
            raise InputError(
                f"the run in {display_name(self.folder.path)} is not complete; first repeat the command that began it"
            )

    def _compare(self, inputs: Iterator[Input], *, is_list: bool) -> None:
        """Tell the listener if folders hold other inputs than when the run began; refuse another list."""
        now, began = Fingerprint(), self.folder.manifest()["inputs"]
        with contextlib.suppress(InputError):  # there are none
            for _ in now.of(inputs):
                pass
        if (now.count, now.digest) == (began["count"], began["digest"]):
            return
        if is_list:
            raise InputError(
                f"the run in {display_name(self.folder.path)} was begun with another list of images "
                f"({began['count']:,}, now {now.count:,}); give the same, name another folder, or add --update "
                "or --overwrite"
            )
        self.listener.say(
            f"the inputs are not what they were: {plural(now.count, 'image')} now, {began['count']:,} when the run "
            "began; it keeps its list; --update labels what is new, --overwrite begins anew"
        )

    # -- passes

    def finish_passes(self) -> None:
        """Label the inputs that have no row of their passes yet."""
        for generation in range(len(self.jobs)):
            if not self.folder.is_complete(generation):
                self._run_pass(generation)

    def _repeat(self, generation: int) -> None:
        """Finish a pass that refines; if it was finished, try again what it could not read."""
        finished = self.folder.is_complete(generation)
        self.finish_passes()
        if finished and (failed := self.folder.failed(generation)):
            known = self.folder.levels(generation)
            self._add_pass(self.jobs[generation], {number: known[number] for number in failed})

    def _add_pass(self, job: Manifest, levels: Mapping[int, int | None]) -> None:
        """Add a pass over inputs (number → the level that has answered it so far) and run it."""
        manifest = self.folder.manifest()
        generation = len(manifest["jobs"])
        self.folder.write_numbers(generation, levels)
        self.folder.write_manifest({**manifest, "jobs": [*manifest["jobs"], job]})
        self._run_pass(generation)

    def _run_pass(self, generation: int) -> None:
        """Label the inputs of a pass that have no row of it yet."""
        what = self._pass(generation)
        gaps = self.folder.gaps(generation, self.folder.bounds)
        total, left = (_size(self.folder, what, ranges) for ranges in ([self.folder.bounds], gaps))
        self.listener.start(total, total - left)
        num_errors = 0
        with contextlib.closing(self.engine.run(self.folder, what, gaps)) as progress:
            for done, errors in progress:
                num_errors += errors
                self.listener.advance(done, errors)
        if what.keeps_known and num_errors:
            self.num_unread += num_errors
            self.listener.say(
                f"could not be read again, rows stay as they were: {plural(num_errors, 'image')}; the same command "
                "tries again"
            )

    def _pass(self, generation: int) -> RunPass:
        job = self.jobs[generation]
        source = self.jobs[job["of"]] if job["kind"] == "again" else job
        return RunPass(
            generation=generation,
            request=request_from_json(source),
            reading=dataclasses.replace(self.reading, previews=source["previews"]),
            sparse=job["kind"] in ("again", "refine"),
            features=source["kind"] == "embed",
            keeps_known=job["kind"] == "refine",
        )

    def _look_again(self, *, retry_errors: bool) -> None:
        """Label files again that have changed since their rows were made, and those with errors if asked for."""
        tables = self.folder.read(range(len(self.jobs)), schema(0, own=True))
        inputs = self.folder.inputs(self.folder.bounds[0])
        again = defaultdict[int, list[int]](list)
        found = changed_since(tables, inputs, retry_errors=retry_errors, say=self.listener.say)
        for generation, numbers in found.items():
            again[self._root(generation)] += numbers
        for generation, numbers in sorted(again.items()):
            self._add_pass({"kind": "again", "of": generation}, dict.fromkeys(sorted(numbers)))

    def _root(self, generation: int) -> int:
        """The pass whose request a pass repeats, or the pass itself."""
        job = self.jobs[generation]
        return int(job["of"]) if job["kind"] == "again" else generation


def _size(folder: RunFolder, what: RunPass, ranges: Sequence[Range]) -> int:
    """Number of inputs of a pass in the given ranges of numbers."""
    if not what.sparse:
        return sum(end - first for first, end in ranges)
    numbers = folder.numbers(what.generation)
    return sum(bisect.bisect_left(numbers, end) - bisect.bisect_left(numbers, first) for first, end in ranges)
