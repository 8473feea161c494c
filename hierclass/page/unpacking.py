"""Unpack zip files that are not trusted: within limits, and under names of our own."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from hierclass.errors import ImageError, InputError
from hierclass.images.decoding import MAX_BYTES
from hierclass.images.discovery import PassedOver, ending_of
from hierclass.images.kinds import scanned_endings
from taxonomy.folders import usually_ignored

MAX_DIRECTORY = 4 << 20
"""Bytes of a zip file's list of members, at most; zipfile reads it whole before anything else."""
MAX_NAME = 4096
"""Characters of a member's name, at most; longer paths are allowed by no system that packs photographs."""
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
"""How members may be packed: ordinary programs use these, and what they unpack to is bounded while it is unpacked."""
_CHUNK = 1 << 16
_ENCRYPTED = 0x1
_OTHER_METHOD = "is packed in a way that is not read; pack it as an ordinary zip file (stored or deflated)"


@dataclass(frozen=True, slots=True)
class Photograph:
    """One photograph of many: the user's name for it, and its file, or an error in place of it."""

    name: str
    path: Path | None
    error: str = ""


class ByteBudget:
    """Number of bytes that may still be written."""

    def __init__(self, size: int) -> None:
        """Begin with N = `size` bytes."""
        self.left = size

    def take(self, size: int) -> None:
        """Use bytes up; raise ImageError if not so many are left."""
        if size > self.left:
            raise ImageError("is left out: what is in the zip file is too large unpacked")
        self.left -= size


def unpack(
    file: Path, name: str, folder: Path, space: ByteBudget, most: int, passed_over: PassedOver
) -> Iterator[Photograph]:
    """Yield the photographs in a zip file, written to a folder as 0.jpg, 1.jpg …; count other files.

    A photograph that can't be unpacked has an error; the others are not affected. Names are `zip/member`.

    Args:
        file: the zip file.
        name: the user's name for it.
        folder: an empty folder.
        space: how many bytes may be written; it is used up.
        most: how many photographs it may hold.
        passed_over: counts the other files, but for hidden ones and what desktops leave behind.

    Raises:
        InputError: it is no zip file, or has too many photographs.
    """
    try:
        with file.open("rb", buffering=0) as raw, zipfile.ZipFile(_BoundedFile(raw)) as archive:
            members = list(_photographs(archive.infolist(), passed_over))
            if len(members) > most:
                raise InputError(
                    f"{name} holds {len(members):,} photographs; up to {most:,} are taken at once"
                )
            for number, member in enumerate(members):
                target = folder / f"{number}{PurePosixPath(member.filename).suffix.lower()}"
                called = f"{name}/{member.filename[:MAX_NAME]}"
                try:
                    _write(archive, member, target, space)
                except ImageError as error:
                    target.unlink(missing_ok=True)
                    yield Photograph(called, None, str(error))
                else:
                    yield Photograph(called, target)
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"{name} can't be read: {error.strerror or 'it is damaged'}") from error
    except Exception as error:  # zipfile raises what its parser meets: BadZipFile, ValueError, struct.error …
        raise InputError(
            f"{name} is no whole zip file; pack the photographs again, or drop them as they are"
        ) from error


def _check(member: zipfile.ZipInfo) -> None:
    """Raise ImageError for a photograph that is not unpacked, whatever is in it."""
    if len(member.filename) > MAX_NAME:
        raise ImageError(f"has a name of {len(member.filename):,} characters; give it a shorter one")
    if member.flag_bits & _ENCRYPTED:
        raise ImageError("is locked with a password; pack it without one")
    if member.compress_type not in METHODS:
        raise ImageError(_OTHER_METHOD)
    if member.file_size > MAX_BYTES:
        raise ImageError(
            f"has {member.file_size / (1 << 30):.1f} GiB; files of up to {MAX_BYTES >> 30} GiB are read"
        )


def _write(archive: zipfile.ZipFile, member: zipfile.ZipInfo, target: Path, space: ByteBudget) -> None:
    _check(member)
    with target.open("wb") as out:  # a full disk is no fault of the member
        try:
            stream = archive.open(member)
        except Exception as error:
            raise _damaged(error) from error
        with stream:
            while True:
                try:
                    chunk = stream.read(_CHUNK)
                except Exception as error:  # zlib.error, EOFError, BadZipFile …
                    raise _damaged(error) from error
                if not chunk:
                    return
                space.take(len(chunk))
                out.write(chunk)


def _damaged(error: Exception) -> ImageError:
    if isinstance(error, NotImplementedError):
        return ImageError(_OTHER_METHOD)
    return ImageError("is damaged inside of its zip file")


def _photographs(members: Iterable[zipfile.ZipInfo], passed_over: PassedOver) -> Iterator[zipfile.ZipInfo]:
    endings, ignored = scanned_endings(), usually_ignored()
    for member in members:
        if member.is_dir() or ignored.any_part(member.filename):
            continue
        if ending_of(member.filename) in endings:
            yield member
        else:
            passed_over.add(member.filename)


class _BoundedFile(io.RawIOBase):
    """A file that refuses to read more than `MAX_DIRECTORY` bytes at once, to bound the list of members."""

    def __init__(self, raw: io.FileIO) -> None:
        self._raw = raw

    def read(self, size: int = -1) -> bytes:
        if size > MAX_DIRECTORY:
            raise zipfile.BadZipFile("the list of members is too long")
        return self._raw.read(MAX_DIRECTORY if size < 0 else size) or b""

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._raw.seek(offset, whence)

    def tell(self) -> int:
        return self._raw.tell()

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True
