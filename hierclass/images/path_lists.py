"""Read lists of paths as people write them, and say what a path that leads to no image is, and what to do with it."""

from __future__ import annotations

import csv
import itertools
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from hierclass.errors import InputError

# fmt: off
PATH_COLUMNS = ("path", "file", "filename", "file_name", "filepath", "file_path", "image", "image_path", "img")
# fmt: on
"""Columns of a table that are taken for paths, in this order."""
LONGEST_PATH = 1 << 20
"""Bytes of a line of a list of paths, at most; the longest paths of any system have 32 KB."""
LIST_ENDINGS = (".csv", ".tsv", ".tab", ".txt", ".lst", ".list", ".jsonl", ".ndjson")
PACKED_ENDINGS = (".zip", ".7z", ".rar", ".gz", ".tgz", ".bz2", ".tbz2", ".xz", ".txz", ".zst")
_JSON_ENDINGS = (".jsonl", ".ndjson")
_PACKED = re.compile(rb"PK[\x03\x05]|7z\xbc\xaf|Rar!|\x1f\x8b|BZh|\xfd7zXZ|\x28\xb5\x2f\xfd")
"""How files with these endings begin."""
_UTF16 = (b"\xff\xfe", b"\xfe\xff")
_HEAD = 4096
"""Bytes of a file that tell whether it is text."""
_URL = re.compile(r"(?i)(data:|[a-z][a-z0-9+.-]+:/)")
_FILE_URL = re.compile(r"(?i)file:(//(localhost)?(?=/)|(?=/(?!/)))")
_EDGES = frozenset("~\"' \t\n\r\v\f\u00a0\u3000")
"""How a path may begin or end that means another."""
_QUOTES = "\"'"
_DELIMITERS = ",\t;"
_BINARY = re.compile(rb"[\x00-\x08\x0e-\x1f]")
_PLAIN_PNM = re.compile(rb"P[1-3]\s")
"""How pictures that are written as text begin."""


def read_list(stream: BinaryIO) -> Iterator[str]:
    """Yield the paths of a list: one per line as people write them (`as_meant`), or separated by NUL bytes, exactly.

    A table with a line of headings (CSV, or with tabs or semicolons) gives the first column of `PATH_COLUMNS` in it.

    Raises:
        InputError: it is no such list (raised where that shows).
    """
    head = stream.read(1 << 16)  # longer than any path: a list separated by NUL bytes shows one here
    if head.startswith(_UTF16):
        raise InputError(
            "the list on standard input is UTF-16 text; write it as UTF-8 (in PowerShell: | Out-File -Encoding utf8)"
        )
    if b"\0" in head:
        yield from _split(stream, head, b"\0")
        return
    lines = _split(stream, head.removeprefix(b"\xef\xbb\xbf"), b"\n")
    first = next(lines, "")
    delimiter, column = _table(first)
    if column is None:
        second = next(lines, "") if delimiter else ""
        _check_headings(first, second, delimiter)
        yield from map(as_meant, itertools.chain(filter(None, [first, second]), lines))
        return
    yield from _of_table(lines, delimiter, column)


def _of_table(lines: Iterator[str], delimiter: str, column: int) -> Iterator[str]:
    """Yield the paths in a column of a table, of which the first line was read."""
    size = 0

    def measured() -> Iterator[str]:
        nonlocal size
        for line in lines:
            size += len(line)
            if size > LONGEST_PATH:
                raise csv.Error("a row of a mebibyte")
            yield f"{line}\n"  # which a name in quotes may hold

    table = csv.reader(measured(), delimiter=delimiter, strict=True)
    try:
        for cells in table:
            size = 0
            if len(cells) > column and cells[column].strip():
                yield as_meant(cells[column])
    except csv.Error as error:
        raise InputError(
            f"the table on standard input is damaged near line {table.line_num + 1} ({error}); give its paths alone, "
            "one per line"
        ) from error


def _split(stream: BinaryIO, rest: bytes, separator: bytes) -> Iterator[str]:
    """Yield what is no blank between separators; `rest` was read of the stream before."""
    while True:
        chunk = stream.read(1 << 16)
        *lines, rest = (rest + chunk).split(separator)
        if len(rest) > LONGEST_PATH:
            raise InputError("the list on standard input has a line of a mebibyte, which is no path")
        if not chunk:
            lines.append(rest)
        for line in lines:
            path = line if separator == b"\0" else line.removesuffix(b"\r")
            if path.strip():
                yield os.fsdecode(path)
        if not chunk:
            return


def _table(first: str) -> tuple[str, int | None]:
    """Return the delimiter of a table and the number of its column of paths; None for a list of paths.

    The delimiter is "" where the first line can be no heading.

    Raises:
        InputError: it is a table whose first line does not name its columns, or lines of JSON.
    """
    if not first or os.path.lexists(as_meant(first)):
        return "", None
    if first.lstrip().startswith("{"):
        raise InputError(
            "the list on standard input is JSON; give its paths alone: jq -r .path FILE | hierclass label -"
        )
    delimiter = max(_DELIMITERS, key=first.count)
    try:
        cells = next(csv.reader([first], delimiter=delimiter), [])
    except csv.Error:  # longer than any heading
        return "", None
    names = [cell.strip().lower() for cell in cells]
    columns = [names.index(name) for name in PATH_COLUMNS if name in names]
    if columns:
        return delimiter, columns[0]
    if len(cells) > 1 and any(cell.strip() and os.path.lexists(as_meant(cell)) for cell in cells):
        raise InputError(
            "the list on standard input is a table whose first line names no columns; write a line such as path,label "
            "over it, or give the column of paths alone: cut -d, -f1 FILE | hierclass label -"
        )
    return delimiter if len(cells) > 1 and all(map(_is_heading, cells)) else "", None


def _check_headings(first: str, second: str, delimiter: str) -> None:
    """Raise InputError if two lines, whose first may be headings, begin a table: no path, with a cell for each."""
    if not second or os.path.lexists(as_meant(second)):
        return
    try:
        names, cells = csv.reader([first, second], delimiter=delimiter)
    except csv.Error:
        return
    if len(names) == len(cells):
        shown = ", ".join([name.strip()[:40] for name in names[:12]] + ["…"] * (len(names) > 12))
        raise InputError(
            f"the list on standard input is a table with the columns {shown}; name that of paths one of "
            f"{', '.join(PATH_COLUMNS[:-1])} or {PATH_COLUMNS[-1]}"
        )


def _is_heading(cell: str) -> bool:
    """Whether a cell may be the name of a column: a text without the dot or the slash that paths have."""
    return bool(cell.strip()) and not set(cell) & {".", "/", os.sep}


def as_meant(path: str) -> str:
    """Return the path that is meant by one with blanks or quotes around it, `~/` or a file URL; itself if it exists."""
    odd = path[:1] in _EDGES or path[-1:] in _EDGES or path[:5].lower() == "file:"
    if not odd or os.path.lexists(path):
        return path
    inner = whole = path.strip()
    if len(inner) > 1 and inner[0] == inner[-1] and inner[0] in _QUOTES:
        inner = inner[1:-1]
    # Where a folder is named as "C:\\photos\\", the shell of Windows leaves the last quote.
    for each in (whole, inner, whole.strip(_QUOTES)):
        if os.path.lexists(found := _expanded(each)):
            return found
    return _expanded(inner)


def _expanded(path: str) -> str:
    if not _FILE_URL.match(path):
        return os.path.expanduser(path)  # noqa: PTH111 - raises nothing where there is no home
    from urllib.request import url2pathname

    return url2pathname(_FILE_URL.sub("", path, count=1))


def is_url(path: str) -> bool:
    """Return whether what was given as a path looks like a URL."""
    return _URL.match(path) is not None


def why_missing(path: str) -> str:
    """Say of a path that leads to no file what may be wrong with it: `no such file`, and what to do."""
    if is_url(path):
        return "is a URL; nothing is fetched: download it and name the file"
    if "*" in path or "?" in path:
        return "no such file; a pattern is expanded by the shell, where it fits a file and is not in quotes"
    if os.sep == "/" and "\\" in path:
        return "no such file; folders are separated by / here, not by \\"
    return "no such file"


def why_no_image(path: str) -> str:
    """Say what a file is that by its ending and its first bytes is a list, a table or packed; "" for any other."""
    ending = os.path.splitext(path)[1].lower()  # noqa: PTH122 - asked of a million names
    if ending in PACKED_ENDINGS and _PACKED.match(_head(path)):
        return "is packed; unpack it first"
    if ending in LIST_ENDINGS and _is_text(_head(path)):
        return "is a list or a table, not an image"
    return ""


def how_to_label(path: str) -> str:
    """Return what to type to label what a list or a table names; "" for another file."""
    ending = os.path.splitext(path)[1].lower()  # noqa: PTH122
    if ending not in LIST_ENDINGS:
        return ""
    import shlex

    file = shlex.quote(path) if os.sep == "/" else f'"{path}"'
    if ending in _JSON_ENDINGS:
        return f"jq -r .path {file} | hierclass label -"
    return f"hierclass label - < {file}" if os.sep == "/" else f"type {file} | hierclass label -"


def _head(path: str) -> bytes:
    from hierclass.files import open_regular

    try:
        with open_regular(Path(path)) as file:
            return file.read(_HEAD)
    except (OSError, ValueError):
        return b""


def _is_text(head: bytes) -> bool:
    if head.startswith(_UTF16):
        return True
    return bool(head) and not _BINARY.search(head) and not _PLAIN_PNM.match(head)
