"""Write the answers of images as keywords into .xmp files beside them; never into the images.

Programs know two names. `photo.jpg.xmp` is that of digiKam and darktable. `photo.xmp` is Adobe's, for RAW files alone:
Lightroom reads no .xmp file of a JPEG. darktable reads it when it imports an image, and digiKam if set to do so.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import shutil
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from hierclass.errors import InputError
from hierclass.files import leftovers, meant_name, read_regular, replacing
from hierclass.images.discovery import display_name
from hierclass.images.kinds import kind_of
from hierclass.labelling.inputs import Input
from hierclass.labelling.xmp_document import EMPTY, MAX_BYTES
from hierclass.labelling.xmp_keywords import has_keywords, with_keywords
from taxonomy.streams import plural

if TYPE_CHECKING:
    import pyarrow as pa

_ENDINGS = (".xmp", ".XMP")
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
_NO_LEAVE = (errno.EACCES, errno.EPERM, errno.EROFS)
_FOLDERS, _TIDIED = 8, 10_000
"""Folders whose names are kept, and of which is known that they are tidy; inputs come folder by folder."""
_MOST_FAILURES = 100_000
"""Files that were not written whose reason is kept."""
_THREADS = 8
"""Files that are written at once: most of the time is spent waiting until one is on the disk."""
_Result: TypeAlias = "tuple[str, Sequence[str], bool | InputError | OSError]"
"""An .xmp file, the path that was to be put into it, and whether it changed, or why it was left as it is."""


class SidecarWriter:
    """Writes keywords of answers beside images, and counts what it wrote and what it left as it is."""

    def __init__(self, *, long_names: bool = False) -> None:
        """Name new files `photo.nef.xmp` even of RAW files, if `long_names`."""
        self.num_failed = 0
        """Number of .xmp files that should have been written and were not."""
        self.failures: list[str] = []
        """What each of them is called, why it was not written, and what to do; of very many the first."""
        self._long_names = long_names
        self._counts = Counter[str]()
        self._endings_in = functools.lru_cache(_FOLDERS)(_endings_by_stem)
        self._tidy = functools.lru_cache(_TIDIED)(_remove_leftovers)

    def write(self, inputs: Sequence[Input], rows: pa.Table) -> None:
        """Write the keywords of some inputs, which have a row each of a table of labels.

        An image with an error is passed over. One without an answer loses the keywords of an earlier call.

        Raises:
            OSError: the disk is full. Other files that can't be written are counted.
        """
        names = ["error", "level", *(name for name in rows.column_names if name.endswith("_label"))]
        wanted = defaultdict[str, list[tuple[str, list[str]]]](list)
        for item, row in zip(inputs, rows.select(names).to_pylist(), strict=True):
            if row["error"] is not None:
                continue
            level = -1 if row["level"] is None else row["level"]
            path = [row[f"tier{tier}_label"] for tier in range(level + 1)]
            # a class may stand on several tiers
            path = [name for tier, name in enumerate(path) if tier == 0 or name != path[tier - 1]]
            self._counts["unanswered"] += not path
            if item.member or item.offset >= 0:
                self._counts["archived"] += bool(path)
            elif not os.path.lexists(item.path):
                self._counts["gone"] += bool(path)
            else:
                self._tidy(os.path.dirname(item.path))  # noqa: PTH120 - names are as they come
                found, new = self._sidecars(item.path)
                for sidecar in found or [new] * bool(path):  # an image may be listed twice
                    wanted[os.path.realpath(sidecar)].append((sidecar, path))
        pool = ThreadPoolExecutor(_THREADS)
        try:
            for each in pool.map(_merge_each, wanted.values()):
                self._count(each)
        finally:
            pool.shutdown(cancel_futures=True)

    def summary(self, again: str = "the same command") -> str:
        """Say in a line what was written, and what was not; `again` writes what is missing."""
        counts = self._counts
        written = f"keywords: {plural(counts['written'], '.xmp file')} written"
        parts = [written + (f", {counts['same']:,} had them" if counts["same"] else "")]
        if counts["removed"]:
            parts.append(f"removed from {plural(counts['removed'], '.xmp file')} of images without an answer")
        if counts["unanswered"]:
            parts.append(f"{plural(counts['unanswered'], 'image')} without an answer")
        if counts["archived"]:
            parts.append(f"{plural(counts['archived'], 'image')} in archives, where there are no .xmp files")
        if counts["gone"]:
            parts.append(f"{plural(counts['gone'], 'image')} gone since")
        if self.num_failed:
            what = f"{plural(self.num_failed, '.xmp file')} not written, see above"
            them = "it" if self.num_failed == 1 else "them"
            parts.append(f"{what}; once that is mended, {again} writes {them}")
        return "; ".join(parts)

    def _count(self, results: Iterable[_Result]) -> None:
        for sidecar, path, result in results:
            if not isinstance(result, bool):
                self._note(sidecar, result)
            elif path:
                self._counts["written" if result else "same"] += 1
            else:
                self._counts["removed"] += result

    def _note(self, sidecar: str, error: InputError | OSError) -> None:
        """Count a file that was not written, and keep the reason."""
        name, reason = display_name(sidecar), getattr(error, "strerror", None) or str(error)
        if isinstance(error, InputError):
            line = f"left as it is: {name} {reason}"
        else:
            how = "; make the file and its folder writable" if error.errno in _NO_LEAVE else ""
            line = f"not written: {name}: {reason}{how}"
        self.num_failed += 1
        if self.num_failed <= _MOST_FAILURES:
            self.failures.append(line)

    def _sidecars(self, photo: str) -> tuple[list[str], str]:
        """The .xmp files of an image that are there, and the name of a new one."""
        stem, ending = os.path.splitext(photo)  # noqa: PTH122 - names are as they come
        is_raw = _is_raw(ending)
        long, short = _existing(photo), _existing(stem) if ending else None
        own = bool(short or is_raw) and self._has_stem_to_itself(photo, is_raw=is_raw)
        found = [each for each in (long, short if own else None) if each]
        return found, f"{stem if is_raw and own and not self._long_names else photo}.xmp"

    def _has_stem_to_itself(self, photo: str, *, is_raw: bool) -> bool:
        """Whether `photo.xmp` is of this image: of a RAW file rather than of a JPEG or a film of the same name."""
        folder, name = os.path.split(photo)
        stem, ending = os.path.splitext(name)  # noqa: PTH122
        endings = self._endings_in(folder).get(stem.lower(), ())
        others = [each for each in endings if each != ending.lower()]
        return bool(endings) and not any(not is_raw or _is_raw(other) for other in others)


def _is_raw(ending: str) -> bool:
    """Whether files of an ending are RAW files that programs don't write into; into DNG they do."""
    kind = kind_of(ending)
    return kind is not None and kind.needs == "raw" and ending.lower() != ".dng"


def _endings_by_stem(folder: str) -> dict[str, list[str]]:
    """The endings that a name has in a folder, all in small letters; none if the folder can't be listed."""
    found = defaultdict[str, list[str]](list)
    with contextlib.suppress(OSError):
        for name in os.listdir(folder or os.curdir):  # noqa: PTH208 - names are as they come
            stem, ending = os.path.splitext(name.lower())  # noqa: PTH122
            if ending != _ENDINGS[0]:
                found[stem].append(ending)
    return dict(found)


def _remove_leftovers(folder: str) -> None:
    """Remove what killed processes left of .xmp files in a folder."""
    with contextlib.suppress(OSError):
        for path in leftovers(Path(folder)):
            if meant_name(path.name).lower().endswith(_ENDINGS[0]):
                path.unlink(missing_ok=True)


def _existing(stem: str) -> str | None:
    return next((stem + ending for ending in _ENDINGS if os.path.lexists(stem + ending)), None)


def _merge_each(wanted: Sequence[tuple[str, Sequence[str]]]) -> list[_Result]:
    """Put keywords into one .xmp file, once for every path; raise OSError if the disk is full."""
    found = list[_Result]()
    for sidecar, path in wanted:
        try:
            found.append((sidecar, path, _merge(Path(sidecar), path)))
        except (InputError, OSError) as error:
            if isinstance(error, OSError) and error.errno in _NO_ROOM:
                raise
            found.append((sidecar, path, error))
    return found


def _merge(sidecar: Path, path: Sequence[str]) -> bool:
    """Put keywords into an .xmp file, whole or not at all; returns whether it changed.

    Raises:
        InputError: it is a link, or no XMP that can be changed.
        OSError: it can't be read or written.
    """
    there, is_link = os.path.lexists(sidecar), sidecar.is_symlink()
    if not path and (is_link or not sidecar.is_file() or sidecar.stat().st_size > MAX_BYTES):
        return False  # nothing was ever put into it
    if is_link:
        raise InputError("is a link, which is not followed; put the file itself in its place")
    data = read_regular(sidecar, MAX_BYTES) if there else b""
    if not path and not has_keywords(data):
        return False
    changed = with_keywords(data if data.strip() else EMPTY, path)
    if changed == data:
        return False
    if there and not os.access(sidecar, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    with replacing(sidecar) as temporary:
        temporary.write_bytes(changed)
        if there:
            with contextlib.suppress(OSError):
                shutil.copymode(sidecar, temporary)
    return True
