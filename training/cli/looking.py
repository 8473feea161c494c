"""Look at some images of each class with the bundled model, with progress, and a line where that can't be done."""

from __future__ import annotations

import time

from hierclass.errors import HierclassError
from taxonomy.terminal import PlainConsole
from training.data.dataset_summary import IN_ALL, DatasetSummary
from training.data.datasets import Source
from training.look.seen import Looker, Seen, images_of_classes

SMALLEST = 48
"""Images of a shorter side in pixels are not looked at: the model knows photographs."""


def look(found: DatasetSummary, console: PlainConsole) -> Seen | None:
    """Look at the images that a summary drew; None where folders are the tree, or where it can't be done."""
    import hierclass

    images = images_of_classes(found.drawn)
    if not images:
        return None
    why = _why_not(found)
    if not why:
        try:
            return _look(Looker(hierclass.load(device="cpu", threads=1)), images, console)
        except (HierclassError, ImportError) as error:
            why = f"the bundled model can't be used: {error}"
    _say(console, f"not looking at the images ({why}): names alone tell what is meant")
    return None


def _why_not(found: DatasetSummary) -> str:
    """Why images are not worth looking at; empty where they are."""
    if len(found.ways) > IN_ALL:
        return f"more than {IN_ALL} classes"
    if found.side is None:
        return "they can't be read"
    return f"smaller than {SMALLEST} pixels" if found.side < SMALLEST else ""


def _look(looker: Looker, images: dict[str, list[Source]], console: PlainConsole) -> Seen:
    from hierclass.cli.terminal import task_bar

    begun, seen = time.monotonic(), {}
    with task_bar(console) as bar:
        task = bar.add_task("looking at some images", total=sum(map(len, images.values())))
        for name, probabilities, looked_at in looker.look(images):
            seen[name] = probabilities
            bar.advance(task, looked_at)
    count, seconds = sum(map(len, seen.values())), time.monotonic() - begun
    _say(console, f"looked at {count:,} images with the bundled model in {seconds:.0f} s (--no-look: not)")
    return Seen(looker.kinds, seen)


def _say(console: PlainConsole, text: str) -> None:
    console.print(text, soft_wrap=True)
