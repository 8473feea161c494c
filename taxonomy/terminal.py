"""Print names, definitions and paths, which are not ours: no markup, and control characters are shown, not sent."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.segment import Segment

from taxonomy.streams import visible


class PlainConsole(Console):
    """A console that takes text as it is: no markup, no emoji codes, no highlighting; control characters are shown.

    Styles come from `rich.text.Text`.
    """

    def __init__(self, **how: Any) -> None:
        """Take the arguments of rich's console."""
        super().__init__(**{"markup": False, "emoji": False, "highlight": False, **how})

    def render(self, *args: Any, **kwargs: Any) -> Iterable[Segment]:
        """Yield the segments of a renderable, as rich does."""
        return map(_shown, super().render(*args, **kwargs))


def _shown(segment: Segment) -> Segment:
    return segment if segment.control else segment._replace(text=visible(segment.text))
