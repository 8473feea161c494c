"""The folder of a labelling run: what was asked, the inputs, and parts of the table that are whole or absent.

run.json          what was asked for, of which model, of which inputs; one entry of `jobs` per pass over them
inputs.parquet    every input, in order
parts/            rows: PASS-FIRST-END.parquet holds those of a pass for the inputs numbered FIRST up to END;
                  PASS-inputs.parquet says which inputs a pass is for that is not for all
labels.…          the table, when every input has its row

Parts are only added. A row of a later pass stands for that of an earlier one.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from hierclass.errors import InputError
from hierclass.files import locked, replacing
from hierclass.images.discovery import display_name
from hierclass.labelling.inputs import Input
from hierclass.labelling.rows import FORMATS, schema

if TYPE_CHECKING:
    import pyarrow as pa

FORMAT = "hierclass-run"
VERSION = 1
LOCK = ".lock"
_GROUP = 10_000
"""Rows that are read and written at once."""
Range: TypeAlias = "tuple[int, int]"
"""Numbers of the first input, and of the one after the last."""
_PART = re.compile(r"(?P<generation>\d{3,})-(?P<first>\d{12})-(?P<end>\d{12})\.parquet")


@dataclass(frozen=True, slots=True, order=True)
class Part:
    """Rows of one pass for the inputs numbered `first` up to but not including `end`; not all need have one."""

    generation: int
    first: int
    end: int

    @property
    def name(self) -> str:
        """Its file's name."""
        return f"{self.generation:03d}-{self.first:012d}-{self.end:012d}.parquet"


class RunFolder:
    """A labelling run on disk. Whoever writes holds `lock`."""

    def __init__(self, path: Path) -> None:
        """Name the folder; nothing is read or made yet."""
        self.path = path
        self._manifest = path / "run.json"
        self._inputs = path / "inputs.parquet"
        self._parts = path / "parts"

    @property
    def exists(self) -> bool:
        """Whether a run was begun here; before its inputs are listed it was not."""
        return self._manifest.exists()

    def check(self) -> None:
        """Raise InputError if this is a folder of something else: nothing in it is touched then."""
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
        known = (
            {LOCK, "parts", self._inputs.name, *(f"labels.{format_}" for format_ in FORMATS)} if ours else ()
        )
        others = sorted(name for name in names if name not in known and not (ours and name.endswith(".tmp")))
        if others:
            raise InputError(
                f"{display_name(self.path)} holds {others[0]}, which is no part of a run; name a new or empty folder"
            )

    def _is_ours(self, names: Set[str]) -> bool:
        """Whether a run is in a folder of these files, or one was broken off before it had begun."""
        if LOCK in names:
            return True
        try:
            found = json.loads(self._manifest.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return False
        return isinstance(found, dict) and found.get("format") == FORMAT

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Keep other runs out while this one lasts; a process that dies leaves no lock behind.

        Raises:
            InputError: another process writes here, or the folder can't be made.
        """
        self.check()
        with contextlib.ExitStack() as stack:
            try:
                self.path.mkdir(parents=True, exist_ok=True)
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

    # -- what was asked

    def begin(self, manifest: dict[str, Any], inputs: Iterable[Input], listed: Callable[[int], None]) -> None:
        """Begin a run: list the inputs, which `listed` hears the growing number of, then store what was asked."""
        new = self.path / ".inputs.new.tmp"
        count, digest = self._write_inputs(new, inputs, listed)  # until then, what was there before stays
        self.clear(but=new)
        self._parts.mkdir(exist_ok=True)
        new.replace(self._inputs)
        about = {**manifest["inputs"], "count": count, "digest": digest}
        self.write_manifest({"format": FORMAT, "version": VERSION, **manifest, "inputs": about})

    def clear(self, *, but: Path | None = None) -> None:
        """Remove what a run left here, and nothing else; its table stays."""
        # The manifest first: what is left of a clearing that is broken off is no run.
        self._manifest.unlink(missing_ok=True)
        self._inputs.unlink(missing_ok=True)
        shutil.rmtree(self._parts, ignore_errors=True)
        for temporary in self.path.glob(".*.tmp"):
            if temporary != but:
                temporary.unlink(missing_ok=True)

    def tidy(self) -> None:
        """Remove what a kill left half-written."""
        for temporary in (*self.path.glob(".*.tmp"), *self._parts.glob(".*.tmp")):
            temporary.unlink(missing_ok=True)

    def _discard(self) -> None:
        """Remove a run that was not begun."""
        self.clear()
        if any(self.path.glob("labels.*")):
            return
        (self.path / LOCK).unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self.path.rmdir()

    def write_manifest(self, manifest: dict[str, Any]) -> None:
        """Store what was asked."""
        with replacing(self._manifest) as file:
            file.write_text(json.dumps(manifest, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

    def manifest(self) -> dict[str, Any]:
        """Return what was asked.

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
        except (IndexError, KeyError, TypeError, ValueError) as error:
            what = f"it lacks {error}" if isinstance(error, (IndexError, KeyError)) else error
            raise InputError(
                f"{display_name(self._manifest)} can't be read: {what}; --overwrite starts the run anew"
            ) from error
        for needed in (self._inputs, self._parts):
            if not needed.exists():
                raise InputError(f"{display_name(needed)} is gone; --overwrite starts the run anew")
        return dict(found)

    # -- inputs

    @staticmethod
    def _write_inputs(path: Path, inputs: Iterable[Input], listed: Callable[[int], None]) -> tuple[int, str]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        kinds = pa.schema(
            [("path", pa.binary()), ("member", pa.string())]
            + [(name, pa.int64()) for name in ("offset", "length", "size", "modified")]
        )
        found = Fingerprint()
        with replacing(path) as file, pq.ParquetWriter(file, kinds, compression="zstd") as writer:
            for group in _groups(found.of(inputs), _GROUP):
                paths = [os.fsencode(item.path) for item in group]
                members = [display_name(item.member) for item in group]
                rest = zip(*(item[2:] for item in group), strict=True)
                writer.write_table(pa.table([paths, members, *map(list, rest)], schema=kinds))
                listed(found.count)
        return found.count, found.digest

    def inputs(self, first: int = 0) -> Iterator[tuple[int, Input]]:
        """Yield the inputs from number `first` on, each with its number."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            with pq.ParquetFile(self._inputs) as file:
                for group in range(first // _GROUP, file.metadata.num_row_groups):
                    columns = (column.to_pylist() for column in file.read_row_group(group).columns)
                    for number, (path, *rest) in enumerate(zip(*columns, strict=True), start=group * _GROUP):
                        if number >= first:
                            yield number, Input(os.fsdecode(path), *rest)
        except (pa.ArrowException, OSError) as error:
            raise _damaged(self._inputs, error) from error

    def write_numbers(self, generation: int, levels: Mapping[int, int | None]) -> None:
        """Store which inputs a pass is for, and the level that has answered each so far; the numbers rise."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        columns = {
            "_index": pa.array(list(levels), pa.int64()),
            "chosen_level": pa.array(list(levels.values()), pa.int8()),
        }
        with replacing(self._numbers_file(generation)) as file:
            pq.write_table(pa.table(columns), file)

    def numbers(self, generation: int) -> list[int]:
        """Return which inputs a pass is for; the numbers rise."""
        return list(self.levels(generation))

    def levels(self, generation: int) -> dict[int, int | None]:
        """Return which inputs a pass is for, and the level that had answered each; None: none had."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            table = pq.read_table(self._numbers_file(generation))
        except (pa.ArrowException, OSError) as error:
            raise _damaged(self._numbers_file(generation), error) from error
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
            pq.write_table(table, file, compression="zstd", row_group_size=_GROUP)

    def parts(self, generation: int) -> list[Part]:
        """Return the parts of a pass, in the order of the inputs."""
        matches = map(_PART.fullmatch, (file.name for file in self._parts.iterdir()))
        found = (Part(*map(int, match.groups())) for match in matches if match)
        return sorted(part for part in found if part.generation == generation)

    def gaps(self, generation: int, wanted: Range) -> list[Range]:
        """Return the ranges of inputs, within the one that is wanted, for which a pass has no part."""
        begin, end = wanted
        found = []
        for part in self.parts(generation):
            if begin < min(part.first, end):
                found.append((begin, min(part.first, end)))
            begin = max(begin, part.end)
        return [*found, (begin, end)] if begin < end else found

    def read(self, generations: Sequence[int], num_tiers: int) -> Iterator[pa.Table]:
        """Yield the rows that the given passes leave, in the order of the inputs, some thousands at a time.

        The first of the passes has a row for every input. Column `_generation` says which pass a row is of. Where one
        that refines could not read an image, the row before it stands.
        """
        kinds = [job["kind"] for job in self.manifest()["jobs"]]
        base, *later = (
            _PassRows(self._parts, self.parts(each), num_tiers, errors=kinds[each] != "refine")
            for each in generations
        )
        for table in base:
            if not len(table):
                continue
            last = table.column("_index")[-1].as_py()
            for overlay in later:
                table = _overlaid(table, overlay.up_to(last))
            yield table

    def failed(self, generation: int) -> list[int]:
        """Return the inputs that a pass has rows with an error of; the numbers rise."""
        import pyarrow.compute as pc

        rows = _PassRows(self._parts, self.parts(generation), 1)
        found: list[int] = []
        for table in rows:
            found += table.filter(pc.is_valid(table.column("error"))).column("_index").to_pylist()
        return found


class Fingerprint:
    """Number and digest of inputs, by which another list is told."""

    def __init__(self) -> None:
        """Begin with none."""
        self.count = 0
        self._digest = hashlib.sha256()

    def of(self, inputs: Iterable[Input]) -> Iterator[Input]:
        """Pass inputs on, and count them."""
        for item in inputs:
            self.count += 1
            self._digest.update(os.fsencode(f"{item.path}\0{item.member}\0"))
            yield item

    @property
    def digest(self) -> str:
        """A SHA-256 sum of the inputs so far."""
        return self._digest.hexdigest()


class _PassRows:
    """The rows of one pass, read as they are asked for; they are in the order of the inputs."""

    def __init__(self, folder: Path, parts: Sequence[Part], num_tiers: int, *, errors: bool = True) -> None:
        """Read the parts of a pass; without `errors`, rows that have one are left out."""
        self._tables = self._read(folder, parts, schema(num_tiers, own=True))
        if not errors:
            self._tables = map(_without_errors, self._tables)
        self._held: pa.Table | None = None

    def __iter__(self) -> Iterator[pa.Table]:
        return self._tables

    @staticmethod
    def _read(folder: Path, parts: Sequence[Part], wanted: pa.Schema) -> Iterator[pa.Table]:
        import pyarrow as pa
        import pyarrow.compute as pc
        import pyarrow.parquet as pq

        reached = 0  # parts overlap where a cluster began a range anew
        for part in parts:
            try:
                with pq.ParquetFile(folder / part.name) as file:
                    for group in range(file.metadata.num_row_groups):
                        table = file.read_row_group(group)
                        missing = [
                            pa.nulls(len(table), field.type)
                            for field in wanted
                            if field.name not in table.column_names
                        ]
                        names = [field.name for field in wanted if field.name not in table.column_names]
                        for name, column in zip(names, missing, strict=True):
                            table = table.append_column(name, column)
                        generation = pa.array([part.generation] * len(table), pa.int64())
                        table = table.select(wanted.names).append_column("_generation", generation)
                        yield table.filter(pc.field("_index") >= reached) if part.first < reached else table
                reached = max(reached, part.end)
            except (pa.ArrowException, OSError) as error:
                raise InputError(
                    f"{display_name(folder / part.name)} is damaged ({str(error)[:80]}); delete it and run the same "
                    "command again"
                ) from error

    def up_to(self, last: int) -> list[pa.Table]:
        """Return the rows that were not returned before, up to input number `last`."""
        import pyarrow.compute as pc

        found: list[pa.Table] = []
        while True:
            table = self._held if self._held is not None else next(self._tables, None)
            self._held = None
            if table is None:
                return found
            inside = table.filter(pc.field("_index") <= last)
            if len(inside):
                found.append(inside)
            if len(inside) < len(table):
                self._held = table.slice(len(inside))
                return found


def _damaged(file: Path, error: Exception) -> InputError:
    return InputError(f"{display_name(file)} is damaged ({str(error)[:80]}); --overwrite starts the run anew")


def _without_errors(table: pa.Table) -> pa.Table:
    import pyarrow.compute as pc

    return table.filter(pc.is_null(table.column("error")))


def _overlaid(table: pa.Table, later: Sequence[pa.Table]) -> pa.Table:
    """Rows of `table`, those that `later` has too taken from there."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if not later:
        return table
    new = pa.concat_tables(later)
    kept = table.filter(
        pc.invert(pc.is_in(table.column("_index"), value_set=new.column("_index").combine_chunks()))
    )
    return pa.concat_tables([kept, new]).sort_by("_index")


def _groups(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    group: list[Any] = []
    for item in items:
        group.append(item)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group
