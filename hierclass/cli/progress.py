"""Progress of `hierclass label` and `hierclass refine` on standard error."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from hierclass.cli.shared import SOME_INPUTS_FAILED, say
from hierclass.images.discovery import display_name

if TYPE_CHECKING:
    from rich.console import Console

    from hierclass.cli.terminal import ProgressBar


class RunProgress:
    """Shows the progress of a run on standard error: a `RunListener`."""

    def __init__(self, console: Console) -> None:
        """Draw on a console."""
        self._console = console
        self._bar: ProgressBar | None = None
        self._passes: list[ProgressBar] = []
        self._listing = False

    def __enter__(self) -> RunProgress:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def say(self, line: str) -> None:
        """Print a line."""
        say(line)

    def listed(self, count: int) -> None:
        """Show how many inputs were found so far."""
        self._listing = True
        if self._console.is_terminal:
            self._console.print(f"listing the images: {count:,}", end="\r")

    def start(self, total: int | None, done: int) -> None:
        """Begin a bar for `total` images (None: unknown), of which `done` are done."""
        from hierclass.cli.terminal import ProgressBar

        self._end()
        self._bar = ProgressBar(total, self._console, visible=self._console.is_terminal, done=done)
        self._passes.append(self._bar)
        if done:
            say(f"going on{self._bar.how_far()}")
        self._bar.__enter__()

    def advance(self, num_images: int, num_errors: int) -> None:
        """Advance the bar."""
        assert self._bar is not None
        self._bar.advance(num_images, num_errors)

    def how_far(self) -> str:
        """Return how many images are done, as the end of a sentence."""
        if self._passes:
            return self._passes[-1].how_far()
        return " while the images were listed" if self._listing else ""

    def summarise(self, table: Path | None, num_errors: int, num_unread: int = 0) -> None:
        """Print a summary; exit with a code of its own if images could not be read.

        `num_errors` rows of the table have an error, `num_unread` rows stayed since their image could not be read.
        """
        from hierclass.cli.terminal import plural

        what = [bar.summary() for bar in self._passes] or ["nothing was left to do"]
        errors = f", {plural(num_errors, 'error')} (see the column error)" if num_errors else ""
        say(f"{'; '.join(what)}{errors}" + (f" -> {display_name(table)}" if table else ""))
        if num_errors or num_unread:
            raise typer.Exit(SOME_INPUTS_FAILED)

    def _end(self) -> None:
        if self._bar is not None:
            self._bar.__exit__(None, None, None)
        self._bar = None
