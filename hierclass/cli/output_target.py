"""Where `hierclass label`, `refine` and `embed` write: the folder of a run and the file of its table."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from hierclass.cli.label_options import parse_format
from hierclass.cli.progress import RunProgress
from hierclass.cli.shared import Stopped
from hierclass.errors import InputError
from hierclass.files import has_content
from hierclass.images.discovery import display_name
from hierclass.labelling.rows import FORMATS
from hierclass.labelling.run_folder import TABLES, RunFolder
from hierclass.labelling.table_files import (
    refuse_changed,
    refuse_finished,
    refuse_to_lose,
    writer_of,
)
from hierclass.labelling.table_writers import PLAIN, CsvForm, check_target, csv_form_of, format_of

if TYPE_CHECKING:
    from hierclass.classifier import Classifier
    from hierclass.labelling.read_input import ReadOptions
    from hierclass.labelling.run import LabelRun
    from hierclass.labelling.run_pass import Engine


@dataclass(frozen=True, slots=True)
class OutputTarget:
    """The folder of a run, and the file of its table."""

    folder: Path
    table: Path
    is_file: bool
    """Whether only the table is wanted: the folder is removed when that is complete, unless updates keep it."""
    verb: str = "label"
    """The command: "label" (and refine), or "embed"."""
    csv_form: CsvForm = PLAIN
    """How the table is written, if it is CSV."""

    @classmethod
    def in_folder(cls, folder: Path, format_: str | None) -> OutputTarget:
        """Return the target for a folder; format None: that of the table in it, else Parquet."""
        there = [each for each in FORMATS if (folder / f"labels.{each}").exists()]
        chosen = parse_format(format_) or [*there, "parquet"][0]
        return cls(folder, folder / f"labels.{chosen}", is_file=False)

    @classmethod
    def parse(cls, output: str, format_: str | None, verb: str = "label") -> OutputTarget:
        """Return the target that --output names, after checking that it can be written; `verb` is the command.

        Raises:
            InputError: it is neither the file of a table that can be written nor the folder of a run.
        """
        path = Path(output)
        if output.endswith(("/", os.sep)) or os.path.isdir(path):  # noqa: PTH112 - raises nothing for long names
            RunFolder(path).check()
            if verb == "embed":
                return cls(path, path / "features.parquet", is_file=False, verb=verb)
            return cls.in_folder(path, format_)
        if format_ is not None:
            raise InputError(
                f"--format {format_} belongs to a folder; the ending of {output} says its format"
            )
        if format_of(path) != "parquet" and verb == "embed":
            raise InputError(
                f"features are written as .parquet, or into a folder (with / at its end), not as {path.suffix}"
            )
        if RunFolder(path.parent).exists:
            raise InputError(
                f"{display_name(path.parent)} holds a run, which has a table of its own; give the folder "
                f"({display_name(path.parent)}/), or write elsewhere"
            )
        table = check_target(path)
        return cls(RunFolder.beside(table).path, table, is_file=True, verb=verb)

    def in_csv_form(self, form: CsvForm | None, format_: str | None, *, update: bool = False) -> OutputTarget:
        """Return the target with the form of its CSV table; None: plain, or as it is.

        It stays as it is with `update`, and in a folder without --format.

        Raises:
            InputError: the table is no CSV.
        """
        if form is None:
            kept = (update or not self.is_file) and format_ is None and self.table.suffix == ".csv"
            return replace(self, csv_form=csv_form_of(self.table)) if kept else self
        if self.table.suffix.lower() != ".csv":
            raise InputError(
                f"--csv-excel is for CSV, not for {display_name(self.table.name)}; "
                + ("name a .csv file" if self.is_file else "add --format csv")
            )
        return replace(self, csv_form=form)

    @contextmanager
    def run(
        self,
        classifier: Classifier,
        reading: ReadOptions,
        engine: Engine | None,
        *,
        overwrite: bool = False,
        update: bool = False,
    ) -> Iterator[tuple[LabelRun, RunProgress]]:
        """Lock the folder and yield the run; raise Stopped with one line if a signal or a full disk ends it early.

        Raises:
            InputError: as `check_lost`, for what happened since that was asked; or another command holds the folder.
        """
        from hierclass.labelling.run import LabelRun
        from taxonomy.terminal import PlainConsole

        folder = RunFolder(self.folder)
        progress = RunProgress(PlainConsole(stderr=True), self.verb)
        goes_on = f"the same command{' without --overwrite' if overwrite else ''} goes on from there"
        try:
            with folder.lock(), progress:
                self.check_lost(overwrite=overwrite, update=update)
                yield LabelRun(folder, classifier, reading, progress, engine), progress
        except Stopped as stop:
            raise Stopped(stop.code, f"stopped{progress.how_far()}; {goes_on}") from None
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
            where = f" ({display_name(error.filename)})" if error.filename and not full else ""
            what = f"{error.strerror or error}{where}; {'make room' if full else 'mend that'}, then {goes_on}"
            raise Stopped(1, f"writing failed{progress.how_far()}: {what}") from error

    def check_lost(self, *, overwrite: bool, update: bool = False) -> None:
        """Raise InputError if writing the table would replace one that the run did not write, or a finished one.

        An `update` may replace a table of ours that is one file, whose rows and added columns it keeps.
        """
        run = RunFolder(self.folder)
        tables = [self.table] if self.is_file else [self.folder / name for name in TABLES]
        for table in filter(has_content, [] if overwrite else tables):
            known = run.knows(table) if run.exists else None
            if self.is_file and update:
                if not known and writer_of(table) != self.verb:
                    refuse_finished(table, self.verb, can_update=False)
            elif known is False:
                refuse_changed(table)
            elif self.is_file and not run.exists:
                self._tidy()
                refuse_finished(table, self.verb, can_update=self.verb == "label")
            elif known is None:
                refuse_to_lose(table)
            elif self.is_file and run.is_kept and run.wrote(table) and run.is_complete():
                refuse_finished(table, self.verb, can_update=True)

    def earlier(self, *, update: bool, overwrite: bool) -> Path | None:
        """Return the finished table whose rows an update begins with; None: the run has them, or all is begun anew."""
        if overwrite or not update:
            return None
        run = RunFolder(self.folder)
        alone = (
            self.is_file and has_content(self.table) and (not run.exists or run.knows(self.table) is False)
        )
        return self.table if alone else None

    def same_command(self, *, overwrite: bool, update: bool, shard: bool) -> str:
        """Return what to give, once the table is whole, to have the keywords written that are missing."""
        if self.is_file and not update and not shard:
            return "the same command with --update" + (" in place of --overwrite" if overwrite else "")
        if self.is_file and shard:
            return "the same command" + ("" if overwrite else " with --overwrite")
        return "the same command" + (" without --overwrite" if overwrite else "")

    def check_inputs(self, names: Sequence[str]) -> None:
        """Raise InputError if the table would replace a file that is to be labelled."""
        if any(os.path.realpath(name) == str(self.table) for name in names):
            raise InputError(f"the output {display_name(self.table)} is one of the inputs; name another file")

    def _tidy(self) -> None:
        """Remove what a kill left of the run of a finished table."""
        if self.folder.exists():
            with contextlib.suppress(InputError), RunFolder(self.folder).lock():
                pass

    def finish(self, run: LabelRun) -> int:
        """Write the table; remove the run if only the table is wanted. Returns the number of rows with an error."""
        num_errors = run.assemble(self.table, self.csv_form)
        if self.is_file:
            if not run.folder.is_kept:
                run.folder.clear()  # without a run, its lock removes the folder
            return num_errors
        others = [self.folder / name for name in TABLES if name != self.table.name]
        for outdated in filter(has_content, others):  # of another format
            try:
                refuse_to_lose(outdated)
                outdated.unlink()
            except InputError:
                run.listener.say(f"{display_name(outdated)} is no table of this run; it stays as it is")
        return num_errors


def survive_closed_pipes() -> None:
    """Ignore SIGPIPE: when the table goes to a file, nobody has to read the messages."""
    if hasattr(signal, "SIGPIPE") and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)
