"""Draws docs/predict.svg: what `hierclass predict examples/coffee.jpg` shows at the end. Run it after a new model."""

from __future__ import annotations

import io
import re
from pathlib import Path

from rich.console import Console

import hierclass
from hierclass.cli.terminal import draw_path

ROOT = Path(__file__).parents[1]


def main() -> None:
    """Write the picture."""
    classifier = hierclass.load()
    *_, last = classifier.refine(ROOT / "examples" / "coffee.jpg")
    console = Console(record=True, width=78, file=io.StringIO(), force_terminal=True, highlight=False)
    console.print(draw_path("examples/coffee.jpg", last, classifier.levels, unicode=True))
    picture = console.export_svg(title="hierclass predict examples/coffee.jpg")
    # Rich names web fonts; the picture must not fetch anything.
    picture = re.sub(r"@font-face \{.*?\}", "", picture, flags=re.DOTALL).replace("Fira Code, ", "")
    (ROOT / "docs" / "predict.svg").write_text(picture, encoding="utf-8")


if __name__ == "__main__":
    main()
