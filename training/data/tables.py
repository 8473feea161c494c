"""List the labelled images of a table: paths or bytes with a label each and, if wanted, what each row is for.

A table that ``hierclass label`` wrote holds guesses of a model; its column ``corrected`` holds the labels.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from hierclass.decisions.exit_policy import StopReason
from hierclass.errors import InputError
from hierclass.images.discovery import display_name
from hierclass.labelling.table_writers import unmarked
from training.data.datasets import TEST, TRAIN, VAL, ImageListing, LabelPath, Source, cell
from training.data.table_rows import Row, TableRows

IMAGES = ("path", "image", "filename", "file")
"""Columns that name or hold the image; the first that is there counts."""
LABELS = ("wnid", "label")
"""Columns of the label; the first that is there counts."""
CORRECTED, GUESS, LEVEL, REASON = "corrected", "label", "level", "stop_reason"
ERROR, SPLIT, NAME = "error", "split", "name"
OF_LABELLING = {"chosen_level", "stop_reason"}
"""Columns that ``hierclass label`` alone writes."""
SPLITS = dict.fromkeys(("", *TRAIN), "train") | dict.fromkeys(VAL, "val") | dict.fromkeys(TEST, "test")


@dataclasses.dataclass(frozen=True, slots=True)
class _Entry:
    """A row that counts: its number, image, the image's name, its label, what it is for; ``guessed`` by a model."""

    row: int
    source: Source
    name: str
    way: LabelPath
    split: str
    guessed: bool


def list_table(path: Path, *, part: str = "all", pseudo_labels: bool = False) -> Iterator[ImageListing]:
    """List the images of a table; those with a model's guess apart, which are there to be trained on alone.

    ``part`` "all" leaves the test images out; "val" and "test" list the held-out images alone: those of that split,
    else of the other, else all. ``pseudo_labels`` takes a model's guess where there is no correction. Raises
    `InputError` that names row and column for a missing image, an empty label, an unknown split and an image with two
    labels or splits, and for missing columns.
    """
    table = _LabelTable(path, pseudo_labels=pseudo_labels)
    entries = list(table.entries())
    wanted = _wanted({entry.split for entry in entries}, part)
    left_out = table.left_out + Counter(f"for {e.split}" for e in entries if e.split not in wanted)
    told = [f"{table.where}: left out {_counts(left_out)}"] if left_out else []
    if left_out and not any(entry.split in wanted for entry in entries):
        raise InputError(f"{table.where}: no row is left; left out {_counts(left_out)}")
    for split, guessed in (
        (split, guessed) for guessed in (False, True) for split in ("train", "val", "test")
    ):
        own = [entry for entry in entries if entry.split == split in wanted and entry.guessed == guessed]
        if own:
            yield ImageListing(
                table.where,
                [entry.source for entry in own],
                [entry.name for entry in own],
                [entry.way for entry in own],
                split != "train",
                guessed,
                [entry.row for entry in own],
                table.label_column(guessed),
                told,
            )
            told = []


def _wanted(there: set[str], part: str) -> Sequence[str]:
    """The splits that are listed."""
    if part == "all":
        return "train", "val"
    other = "val" if part == "test" else "test"
    return next(((split,) for split in (part, other) if split in there), ("train",))


def _counts(counts: Counter[str]) -> str:
    return ", ".join(f"{count} {'row' if count == 1 else 'rows'} {why}" for why, count in counts.items())


class _LabelTable:
    """A table whose columns are known."""

    def __init__(self, path: Path, *, pseudo_labels: bool) -> None:
        self.rows, self.pseudo_labels = TableRows(path), pseudo_labels
        self.where, self.folder = self.rows.where, path.parent
        self.left_out: Counter[str] = Counter()
        columns = self.rows.columns
        self.of_model = CORRECTED in columns or set(columns) >= OF_LABELLING
        self.image = next((name for name in IMAGES if name in columns), "")
        self.label = GUESS if self.of_model else next((name for name in LABELS if name in columns), "")
        missing = [] if self.image else [_either(IMAGES)]
        missing += [] if self.label in columns or CORRECTED in columns else [_either(LABELS[::-1])]
        if missing:
            there = ", ".join(
                [*(display_name(name)[:40] for name in columns[:12]), *["…"][: len(columns) > 12]]
            )
            raise InputError(
                f"{self.where}: no column {' and no column '.join(missing)}; there are {there or 'none'}"
            )
        if self.of_model and CORRECTED not in columns and not pseudo_labels:
            raise InputError(
                f"{self.where}: these labels are a model's guesses; put the right ones into a column {CORRECTED}, or "
                "train on the guesses with `pseudo_labels`"
            )

    def label_column(self, guessed: bool) -> str:
        """The column of the label."""
        return CORRECTED if self.of_model and not guessed else self.label

    def entries(self) -> Iterator[_Entry]:
        """Yield the rows that count; the others are counted in ``left_out``."""
        known = {
            self.image,
            self.label,
            CORRECTED if self.of_model else "",
            *((ERROR, LEVEL, REASON) if self.of_model else ()),
            SPLIT,
            NAME,
        }
        first: dict[tuple[Path, bool], _Entry] = {}
        for number, row in self.rows.read(
            [name for name in dict.fromkeys(self.rows.columns) if name in known]
        ):
            entry = self._entry(number, row)
            if entry is None:
                continue
            if isinstance(entry.source, Path):
                other = first.setdefault((entry.source, entry.guessed), entry)
                self._refuse_two(other, entry)
                if other is not entry:
                    self.left_out["for an image that is listed above"] += 1
                    continue
            yield entry

    def _refuse_two(self, one: _Entry, other: _Entry) -> None:
        """Raise `InputError` for an image with two labels or in two splits."""
        for column, a, b in (
            (self.label_column(one.guessed), "/".join(one.way), "/".join(other.way)),
            (SPLIT, one.split, other.split),
        ):
            if a != b:
                raise InputError(
                    f"{cell(self.where, other.row, column)}: {other.name} is {display_name(b)} here, and "
                    f"{display_name(a)} in row {one.row}; leave one of them out"
                )

    def _entry(self, number: int, row: Row) -> _Entry | None:
        label, guessed = self._label(row)
        if not label:
            if not self.of_model:
                raise self._wrong(number, self.label, "is empty; give the label")
            return None
        split = SPLITS.get(_text(row.get(SPLIT)).casefold(), "")
        if not split:
            raise self._wrong(number, SPLIT, f"{_text(row[SPLIT])!r} is none of train, val, test")
        if guessed and split != "train":
            self.left_out[f"for {split}, where the label is a guess"] += 1
            return None
        source, name = self._source(number, row)
        return _Entry(number, source, name, label, split, guessed)

    def _label(self, row: Row) -> tuple[LabelPath, bool]:
        """The label, empty where the row does not count, and whether it is a guess."""
        right = _way(self._unmarked(_text(row.get(CORRECTED if self.of_model else self.label))))
        if right or not self.of_model:
            return right, False
        # where there is no answer, the label is what the model was not sure of
        sure = _text(row[LEVEL]) if LEVEL in row else _text(row.get(REASON)) != StopReason.NOT_SURE.word
        guess = _way(self._unmarked(_text(row.get(self.label)))) if sure else ()
        why = "without a correction"
        if self.pseudo_labels:
            why = (
                "with an error" if _text(row.get(ERROR)) else "" if guess else "where the model was not sure"
            )
        if why:
            self.left_out[why] += 1
        return (() if why else guess), True

    def _source(self, number: int, row: Row) -> tuple[Source, str]:
        value, name = row[self.image], _text(row.get(NAME))
        if isinstance(value, dict):  # a struct of `bytes` and, where these are none, `path`
            value = value.get("bytes") or value.get("path")
        if value is None or isinstance(value, bytes):
            return value or b"", name or f"{self.rows.path.name} row {number}"
        text = str(value).strip()
        if not text:
            raise self._wrong(number, self.image, "is empty; give the path of the image")
        bases = [self.folder, *([Path()] if self.of_model else [])]
        for base, named in itertools.product(bases, dict.fromkeys((text, self._unmarked(text)))):
            if os.path.isfile(base / named):  # noqa: PTH113 - Path.is_file raises where a name is too long
                return base / named, display_name(named)
        where = " or ".join(display_name(base.absolute()) for base in bases)
        raise self._wrong(number, self.image, f"{text!r} is no file; relative paths start at {where}")

    def _unmarked(self, text: str) -> str:
        """A text of a labelled table as it was before it was marked for spreadsheets (``--csv-excel``)."""
        return unmarked(text) if self.of_model and self.rows.text else text

    def _wrong(self, number: int, column: str, what: str) -> InputError:
        return InputError(f"{cell(self.where, number, column)}: {what}")


def _either(names: Iterable[str]) -> str:
    first, *others = names
    return f"{first} (or {', '.join(others)})"


def _text(value: object) -> str:
    return "" if value is None else str(value).strip()


@functools.lru_cache(1 << 16)  # equal labels share memory
def _way(text: str) -> LabelPath:
    """A label as a path in the tree."""
    return tuple(part.strip() for part in text.split("/") if part.strip())
