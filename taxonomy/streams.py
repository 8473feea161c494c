"""Standard streams of commands: what may be printed on them, and what to do where one is closed. Imports no rich."""

from __future__ import annotations

import io
import os
import re
import sys
from collections.abc import Sequence
from typing import TextIO

_COMMANDS = re.compile(
    r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)
"""What a terminal takes for a command or a change of the direction of writing; line ends and tabs are none."""

_FILE_NAME = re.compile(r"-[^=]*\.[A-Za-z]\w{1,4}")
"""A word that is rather the name of a file than options."""
LONGEST_MESSAGE = 4000
"""Characters of a message: names that it holds may be megabytes long."""


def visible(text: str) -> str:
    """Return text whose control characters are written as escapes, such as `\\x1b`; line ends and tabs stay."""
    return _COMMANDS.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def plural(count: int, noun: str) -> str:
    """Return a count with its noun: `1 error`, `1,200 errors`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def clipped(text: str) -> str:
    """Return a message of at most `LONGEST_MESSAGE` characters: its beginning, if it has more."""
    return text if len(text) <= LONGEST_MESSAGE else f"{text[:LONGEST_MESSAGE]} …"


def dash_hint(words: Sequence[str]) -> str:
    """Return how to name the first file that begins with - of the words of a refused command; "" if there is none."""
    options = words[: words.index("--")] if "--" in words else words
    for word in options:
        if word.startswith("-") and len(word) > 1 and (os.path.lexists(word) or _FILE_NAME.fullmatch(word)):
            return f"; {word} is taken for options: name a file that begins with - as .{os.sep}{word}, or after --"
    return ""


def is_option(word: str) -> bool:
    """Return whether a word reads as an option and not as the name of a file."""
    return word.startswith("-") and len(word) > 1 and not _FILE_NAME.fullmatch(word)


def prepare_streams() -> None:
    """Let standard output and errors take any text, and reserve the numbers of standard streams that are closed.

    Otherwise the first file that is opened would get such a number, and all that a library prints. Streams that were
    closed stay None in `sys`.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number, this one
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


class VisibleStream(io.BytesIO):
    """A binary stream of UTF-8 text that shows control characters on a terminal in place of sending them."""

    def __init__(self, terminal: TextIO) -> None:
        """Write to a text stream."""
        super().__init__()
        self._terminal = terminal

    def write(self, data: bytes | memoryview, /) -> int:  # type: ignore[override]
        """Write whole lines of text."""
        self._terminal.write(visible(bytes(data).decode("utf-8", "backslashreplace")))
        return memoryview(data).nbytes

    def flush(self) -> None:
        """Hand on what was written."""
        self._terminal.flush()
