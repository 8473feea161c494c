"""Progress of `hierclass label`, `hierclass refine` and `hierclass embed` on standard error."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from hierclass.cli.shared import SOME_INPUTS_FAILED, say
from hierclass.images.discovery import display_name

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

_DOING, _DONE = {"label": "labelling", "embed": "embedding"}, {"label": "labelled", "embed": "embedded"}


class RunProgress:
    """Shows the progress of a run on standard error: a `RunListener`."""

    def __init__(self, console: Console, verb: str = "label") -> None:
        """Draw on a console; `verb` is what is done to images."""
        self._console, self._verb = console, verb
        self._bar: Progress | None = None
        self._total: int | None = None
        self._before = self._num_images = self._num_errors = 0
        self._how_far = ""
        self._summaries: list[str] = []

    def __enter__(self) -> RunProgress:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def say(self, line: str) -> None:
        """Print a line."""
        say(line)

    def listed(self, count: int) -> None:
        """Show how many inputs were found so far."""
        self._how_far = " while the images were listed"
        if self._console.is_terminal:
            self._console.print(f"listing the images: {count:,}", end="\r")

    def start(self, total: int | None, done: int) -> None:
        """Begin a bar for `total` images (None: unknown), of which `done` are done."""
        from hierclass.cli.terminal import progress_bar

        self._end()
        self._total, self._before, self._num_images, self._num_errors = total, done, 0, 0
        self.advance(0, 0)
        if done:
            say(f"going on{self._how_far}")
        self._bar = progress_bar(self._console)
        self._bar.add_task(_DOING[self._verb], total=total, completed=done, errors="")
        self._bar.start()

    def advance(self, num_images: int, num_errors: int) -> None:
        """Count images that are done, and errors among them."""
        from taxonomy.streams import plural

        self._num_images += num_images
        self._num_errors += num_errors
        done = self._before + self._num_images
        of = plural(done, "image") if self._total is None else f"{done:,} of {plural(self._total, 'image')}"
        self._how_far = f" after {of}"
        if self._bar is not None:
            errors = f"[red]{plural(self._num_errors, 'error')}" if self._num_errors else ""
            self._bar.update(self._bar.task_ids[0], advance=num_images, errors=errors)

    @contextlib.contextmanager
    def task(self, what: str, total: int | None) -> Iterator[Callable[[int], None]]:
        """Show a bar of something else that is done, such as "writing keywords"; yield what counts how far it is."""
        from hierclass.cli.terminal import task_bar

        self._end()
        self._how_far = f" while {what}"
        with task_bar(self._console) as bar:
            number = bar.add_task(what, total=total)
            yield lambda count: bar.advance(number, count)

    def how_far(self) -> str:
        """Return how many images are done, as the end of a sentence."""
        return self._how_far

    def summarise(self, table: Path | None, num_errors: int, num_unread: int = 0) -> None:
        """Print a summary; exit with a code of its own if images could not be read.

        `num_errors` rows of the table have an error, `num_unread` rows stayed since their image could not be read, or
        got no keywords since these could not be written.
        """
        from taxonomy.streams import plural

        what = "; ".join(self._summaries or [f"no image was left to {self._verb}"])
        errors = f", {plural(num_errors, 'error')} (see the column error)" if num_errors else ""
        say(f"{what}{errors}" + (f" -> {display_name(table)}" if table else ""))
        if num_errors or num_unread:
            raise typer.Exit(SOME_INPUTS_FAILED)

    def _end(self) -> None:
        """Remove the bar and note what was done."""
        from taxonomy.streams import plural

        if self._bar is None:
            return
        seconds = self._bar.tasks[0].elapsed or 0.0
        rate = f", {self._num_images / seconds:,.0f} images/s" if seconds else ""
        done = plural(self._num_images - self._num_errors, "image")
        self._summaries.append(f"{done} {_DONE[self._verb]} in {seconds:.1f} s{rate}")
        self._bar.stop()
        self._bar = None
