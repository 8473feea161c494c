"""The folder of a labelling run.

run.json          the manifest: model, inputs, and in `jobs` one entry per pass over the inputs
inputs.parquet    every input, in order (after an update inputs-N.parquet)
parts/            PASS-FIRST-END.parquet: rows of a pass for the inputs numbered FIRST up to END (excluded);
                  PASS-inputs.parquet: the inputs of a pass that is not for all of them
labels.…          the table, once every input has its row (features.parquet, where features were asked for)

Parts are only added, each written whole or not at all. A row of a later pass replaces that of an earlier one.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hierclass.errors import InputError
from hierclass.files import has_content, locked, replacing
from hierclass.images.discovery import display_name
from hierclass.labelling.inputs import Input, Shard
from hierclass.labelling.rows import FORMATS, schema
from hierclass.labelling.run_inputs import GROUP, damaged, read_inputs, write_inputs
from hierclass.labelling.run_parts import Part, PassRows, Range, concat, overlay
from hierclass.labelling.table_files import TableMark, is_marked

if TYPE_CHECKING:
    import pyarrow as pa

FORMAT = "hierclass-run"
VERSION = 1
LOCK = ".lock"
TABLES = (*(f"labels.{format_}" for format_ in FORMATS), "features.parquet")
"""Names that the table in the folder of a run may have."""
_BESIDE = ".run"
"""What follows the name of a table that is one file in the name of its run's folder."""
_LATER = re.compile(r"(inputs|parts)-\d+(\.parquet)?")
"""Names of the inputs and parts of an edition after the first."""


class RunFolder:
    """A labelling run on disk. Hold `lock` to write."""

    def __init__(self, path: Path, edition: int | None = None) -> None:
        """Name the folder; nothing is read or created yet. `edition` None: the one that the manifest names."""
        self.path = path
        self._edition = edition
        self._manifest = path / "run.json"

    @property
    def edition(self) -> int:
        """How often an update replaced the list of inputs, and with it what their numbers in the parts mean."""
        if self._edition is not None:
            return self._edition
        return found if isinstance(found := self._raw_manifest().get("edition"), int) else 0

    @property
    def _inputs(self) -> Path:
        return self.path / f"inputs{f'-{self.edition}' if self.edition else ''}.parquet"

    @property
    def _parts(self) -> Path:
        return self.path / f"parts{f'-{self.edition}' if self.edition else ''}"

    @property
    def exists(self) -> bool:
        """Whether a run was begun here; it is when its inputs are listed."""
        return self._manifest.exists()

    @classmethod
    def beside(cls, table: Path) -> RunFolder:
        """Return the folder of the run whose table is one file."""
        return cls(table.with_name(f"{table.name}{_BESIDE}"))

    def tables(self) -> list[Path]:
        """Return the tables that there are: in the folder, and the file that it is beside."""
        tables = [self.path / name for name in TABLES]
        if self.path.name.endswith(_BESIDE):
            tables.append(self.path.with_name(self.path.name.removesuffix(_BESIDE)))
        return list(filter(has_content, tables))

    def check(self) -> None:
        """Raise InputError if the folder holds something else than a run; touch nothing."""
        try:
            if not self.path.exists():
                return
            if not self.path.is_dir():
                raise InputError(f"{display_name(self.path)} is a file; name a folder for the run")
            names = {file.name for file in self.path.iterdir()}
            ours = self._is_ours(names)
        except OSError as error:
            raise InputError(f"cannot use {display_name(self.path)}: {error.strerror}") from error
        if ours and self.exists:
            return
        rest = sorted(names - ({LOCK, "parts", "inputs.parquet", *TABLES} if ours else set[str]()))
        others = [name for name in rest if not (ours and (name.endswith(".tmp") or _LATER.fullmatch(name)))]
        if others:
            raise InputError(
                f"{display_name(self.path)} holds {others[0]}, which is no part of a run; name a new or empty folder"
            )

    def _is_ours(self, names: Set[str]) -> bool:
        """Whether a folder with these files is of a run, or of one that ended before its inputs were listed."""
        if LOCK in names:
            return True
        return self._raw_manifest().get("format") == FORMAT

    def _raw_manifest(self) -> dict[str, Any]:
        """The manifest as it is; empty where there is none that can be read."""
        try:
            found = json.loads(self._manifest.read_text(encoding="utf-8"))
        except (OSError, RecursionError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Create the folder and lock it; the system frees the lock when the process ends.

        Raises:
            InputError: another process holds the lock, or the folder can't be created.
        """
        self.check()
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(
                    locked(self.path / LOCK, f"another run writes to {display_name(self.path)}")
                )
            except OSError as error:
                raise InputError(f"cannot write {display_name(self.path)}: {error.strerror}") from error
            try:
                yield
            finally:
                if not self.exists:
                    self._discard()

    # -- manifest

    def begin(self, manifest: dict[str, Any], inputs: Iterable[Input], listed: Callable[[int], None]) -> None:
        """Begin a run: list the inputs, calling `listed` with their growing number, then store the manifest.

        The tables that are there may be replaced by that of the run.
        """
        new = self.path / ".inputs.new.tmp"
        listing = write_inputs(new, inputs, listed)  # until then, what was there before stays
        self.clear(but=new)
        self._parts.mkdir(exist_ok=True)
        new.replace(self._inputs)
        self._begin(manifest, *listing)

    def stage(self, inputs: Iterable[Input], listed: Callable[[int], None]) -> StagedEdition:
        """List inputs anew beside what is there, which stays until the `StagedEdition.switch`; otherwise `tidy`."""
        staged = StagedEdition(self.path, self.edition + 1)
        self.tidy()
        staged._parts.mkdir(parents=True)
        staged.listing = write_inputs(staged._inputs, inputs, listed)
        return staged

    def _begin(self, manifest: dict[str, Any], count: int, digest: str) -> None:
        """Store the manifest of a run that begins."""
        about = {**manifest["inputs"], "count": count, "digest": digest}
        tables = {table.name: [TableMark.of(table, digest=False)] for table in self.tables()}
        kept = {"format": FORMAT, "version": VERSION, "edition": self.edition, "replaced": tables}
        self.write_manifest({**kept, **manifest, "inputs": about, "tables": tables})

    def clear(self, *, but: Path | None = None) -> None:
        """Remove the files of a run, and nothing else; its table stays."""
        # The manifest first: without it the rest is no run, even if clearing is interrupted.
        self._manifest.unlink(missing_ok=True)
        (self.path / "inputs.parquet").unlink(missing_ok=True)
        shutil.rmtree(self.path / "parts", ignore_errors=True)
        self._remove_editions()
        for temporary in self.path.glob(".*.tmp"):
            if temporary != but:
                temporary.unlink(missing_ok=True)

    def tidy(self) -> None:
        """Remove the temporary files of a run that was killed, and editions that its manifest does not name."""
        self._remove_editions(but=self.edition)
        for temporary in (*self.path.glob(".*.tmp"), *self._parts.glob(".*.tmp")):
            temporary.unlink(missing_ok=True)

    def _remove_editions(self, but: int = 0) -> None:
        """Remove the inputs and parts of all editions after the first, and with `but` of all others than that."""
        kept, first = RunFolder(self.path, but), ("inputs.parquet", "parts")
        for file in list(self.path.iterdir()):
            ours = _LATER.fullmatch(file.name) or (but and file.name in first)
            if ours and file.name not in (kept._inputs.name, kept._parts.name):
                shutil.rmtree(file, ignore_errors=True) if file.is_dir() else file.unlink(missing_ok=True)

    def _discard(self) -> None:
        """Remove a run that was not begun."""
        self.clear()
        if any((self.path / table).exists() for table in TABLES):
            return
        (self.path / LOCK).unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self.path.rmdir()

    def write_manifest(self, manifest: dict[str, Any]) -> None:
        """Store the manifest, whole or not at all."""
        with replacing(self._manifest) as file:
            file.write_text(json.dumps(manifest, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

    def manifest(self) -> dict[str, Any]:
        """Return the manifest.

        Raises:
            InputError: there is no run, or one that this version can't read.
        """
        try:
            found = json.loads(self._manifest.read_text(encoding="utf-8"))
            if found["format"] != FORMAT:
                raise InputError(f"{display_name(self._manifest)} is not of a run; name the folder of one")
            if found["version"] != VERSION:
                raise ValueError(
                    f"it is of format {found['version']}, this version of hierclass reads {VERSION}"
                )
            _ = found["model"]["digest"], found["inputs"]["count"], found["jobs"][0]["kind"]
        except InputError:
            raise
        except (FileNotFoundError, NotADirectoryError):
            raise InputError(
                f"there is no run in {display_name(self.path)}; name the folder of one (hierclass label … -o RUN/)"
            ) from None
        except OSError as error:
            raise InputError(f"{display_name(self._manifest)} can't be read: {error.strerror}") from error
        except (IndexError, KeyError, RecursionError, TypeError, ValueError) as error:
            what = f"it lacks {error}" if isinstance(error, (IndexError, KeyError)) else error
            raise InputError(
                f"{display_name(self._manifest)} can't be read: {what}; --overwrite starts the run anew"
            ) from error
        for needed in (self._inputs, self._parts):
            if not needed.exists():
                raise InputError(f"{display_name(needed)} is gone; --overwrite starts the run anew")
        return dict(found)

    def knows(self, table: Path) -> bool | None:
        """Return whether a table is as this run wrote it, or as when the run began; None: an earlier version's run."""
        return is_marked(table, self._marks(table)) if "tables" in self.manifest() else None

    def replaces(self, table: Path) -> bool:
        """Return whether a table is as when the run began anew, which keeps nothing of it."""
        return is_marked(table, self._marks(table, "replaced"))

    def wrote(self, table: Path) -> bool:
        """Return whether a table is as this run wrote it last."""
        last = self._marks(table)[-1:]
        return bool(last and last[0].digest) and is_marked(table, last)

    @property
    def is_kept(self) -> bool:
        """Whether the run is of use after its table is written, for the next update."""
        return bool(self.manifest().get("keep"))

    def remember(self, table: Path, written: Path) -> None:
        """Note what the file that is about to replace a table is like.

        Raises:
            InputError: what it would replace came, or was changed, while the run was at work.
        """
        there = has_content(table)
        if there and self.knows(table) is False:
            raise InputError(
                f"{display_name(table)} came or was changed while this run was at work; move it away and give the same "
                "command again, which writes the table"
            )
        before = [TableMark.of(table, digest=False)] if there else []
        marks = [*before, TableMark.of(written, digest=True)]
        manifest = self.manifest()
        self.write_manifest({**manifest, "tables": {**manifest.get("tables", {}), table.name: marks}})

    def _marks(self, table: Path, which: str = "tables") -> list[TableMark]:
        return [TableMark(*mark) for mark in self.manifest().get(which, {}).get(table.name, ())]

    # -- inputs

    def inputs(self, first: int = 0) -> Iterator[tuple[int, Input]]:
        """Yield the inputs from number `first` on, each with its number."""
        return read_inputs(self._inputs, first)

    def write_numbers(self, generation: int, levels: Mapping[int, int | None]) -> None:
        """Store the inputs of a pass: rising number → the level that has answered it so far (None: none has)."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        columns = {
            "_index": pa.array(list(levels), pa.int64()),
            "chosen_level": pa.array(list(levels.values()), pa.int8()),
        }
        with replacing(self._numbers_file(generation)) as file:
            pq.write_table(pa.table(columns), file)

    def numbers(self, generation: int) -> list[int]:
        """Return the rising numbers of the inputs of a pass."""
        return list(self.levels(generation))

    def levels(self, generation: int) -> dict[int, int | None]:
        """Return the inputs of a pass: rising number → the level that had answered it before (None: none had)."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            table = pq.read_table(self._numbers_file(generation))
        except (pa.ArrowException, OSError) as error:
            raise damaged(self._numbers_file(generation), error) from error
        numbers = table.column("_index").to_pylist()
        if "chosen_level" not in table.column_names:  # stored by an earlier version
            return dict.fromkeys(numbers)
        return dict(zip(numbers, table.column("chosen_level").to_pylist(), strict=True))

    def _numbers_file(self, generation: int) -> Path:
        return self._parts / f"{generation:03d}-inputs.parquet"

    # -- parts

    def add_part(self, part: Part, table: pa.Table) -> None:
        """Store the rows of a part, whole or not at all."""
        import pyarrow.parquet as pq

        with replacing(self._parts / part.name) as file:
            pq.write_table(table, file, compression="zstd", row_group_size=GROUP)

    def parts(self, generation: int) -> list[Part]:
        """Return the parts of a pass, in the order of the inputs."""
        found = (Part.parse(file.name) for file in self._parts.iterdir())
        return sorted(part for part in found if part is not None and part.generation == generation)

    def gaps(self, generation: int, wanted: Range) -> list[Range]:
        """Return the ranges of inputs, within `wanted`, for which a pass has no part."""
        begin, end = wanted
        found = []
        for part in self.parts(generation):
            if begin < min(part.first, end):
                found.append((begin, min(part.first, end)))
            begin = max(begin, part.end)
        return [*found, (begin, end)] if begin < end else found

    @property
    def bounds(self) -> Range:
        """Numbers of the first input of the run, and of the one after its last."""
        about = self.manifest()["inputs"]
        count = int(about["count"])
        return Shard.parse(about["shard"]).range(count) if about["shard"] else (0, count)

    def is_complete(self, generation: int | None = None) -> bool:
        """Return whether a pass has a part for every input; None: whether all passes have."""
        passes = range(len(self.manifest()["jobs"])) if generation is None else (generation,)
        return not any(self.gaps(each, self.bounds) for each in passes)

    def read(
        self, generations: Sequence[int], wanted: pa.Schema, within: Range | None = None
    ) -> Iterator[pa.Table]:
        """Yield the newest rows of the given passes, in the order of their inputs, some thousands at a time.

        The columns are those of the schema `wanted`, and `_generation`, the pass of a row. `within`: of these numbers
        alone. Rows with an error of a pass that refines are left out: the earlier row stays.
        """
        jobs, (begin, end) = self.manifest()["jobs"], within or self.bounds
        passes = [
            PassRows(
                self._parts,
                [part for part in self.parts(each) if part.first < end and part.end > begin],
                wanted,
                errors=jobs[each]["kind"] != "refine",
            )
            for each in generations
        ]
        for rows in passes if begin else ():
            rows.up_to(begin - 1)
        for first in range(begin, end, GROUP):
            last = min(first + GROUP, end) - 1
            table, *later = ([*rows.up_to(last)] for rows in passes)
            newest = concat(table, wanted)
            for rows_of_pass in later:
                newest = overlay(newest, rows_of_pass)
            if len(newest):
                yield newest

    def failed(self, generation: int) -> list[int]:
        """Return the rising numbers of the inputs for which a pass has a row with an error."""
        import pyarrow.compute as pc

        rows = PassRows(self._parts, self.parts(generation), schema(0, own=True))
        found: list[int] = []
        for table in rows:
            found += table.filter(pc.is_valid(table.column("error"))).column("_index").to_pylist()
        return found


class StagedEdition(RunFolder):
    """What an update prepares beside a run, or where there is none: inputs anew, and parts by their numbers."""

    listing: tuple[int, str]
    """Number and digest of the inputs."""

    def switch(self, manifest: dict[str, Any]) -> None:
        """Let this be the run, with a manifest; of the former one only its tables stay."""
        self._begin(manifest, *self.listing)
