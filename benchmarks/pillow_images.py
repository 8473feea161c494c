"""Read a folder of pictures by hierclass and by Pillow, such as Pillow's own test images, and compare.

    python benchmarks/pillow_images.py Pillow/Tests/images --json pillow_images.json

Every file is read or refused in one line; what both read has the same pixels; what Pillow reads and hierclass does not
is of a kind that docs/kinds.md lists as not read, or has its reason printed.
"""

from __future__ import annotations

import json
import warnings
from collections import Counter, defaultdict
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import PIL
import typer
from PIL import Image, ImageFile, ImageOps
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from hierclass.errors import ImageError
from hierclass.images.decoding import read_image
from hierclass.images.kinds import KINDS

_OF_FORMAT = {name: kind for kind in KINDS for name in kind.formats}


class Compared(NamedTuple):
    """What hierclass and Pillow make of a file."""

    format: str
    """As Pillow names it; empty if Pillow does not open it."""
    said: str
    """hierclass's error; empty if it read the file."""
    pillow: str
    """Pillow's error; empty if it read the file."""
    same: bool
    """Whether both read it and no pixel differs by more than 2 of 255."""

    @property
    def listed(self) -> bool:
        """Whether the table of kinds lists it as not read."""
        kind = _OF_FORMAT.get(self.format)
        return kind is not None and not kind.read


def expected(image: Image.Image) -> Image.Image:
    """Return a picture of Pillow as hierclass promises it: RGB, upright, transparent pixels on white."""
    image.load()
    format_ = image.format
    if image.mode[0] in "IF":  # 16 bits, or the range of what there is
        grey = np.asarray(image).astype(np.float64)
        black, white = grey.min(), grey.max()
        ceilings = {"I": (255, 65535), "F": (1, 255, 65535)}.get(image.mode, (65535,))
        if black >= 0 and white <= 65535:
            black, white = 0, min(ceiling for ceiling in ceilings if ceiling >= white)
        image = Image.fromarray(((grey - black) / (white - black) * 255).round().astype(np.uint8))
    upright = ImageOps.exif_transpose(image)
    if (
        upright.mode == "RGBA"
        and upright.getchannel("A").getextrema() == (0, 0)
        and format_ in ("BMP", "DDS", "ICO", "TGA")
    ):
        upright = upright.convert("RGB")  # opacity that is 0 everywhere counts as none
    if not upright.has_transparency_data:
        return upright.convert("RGB")
    rgba = upright.convert("RGBA")
    white = Image.new("RGB", rgba.size, "white")
    white.paste(rgba, mask=rgba.getchannel("A"))
    return white


def compare(file: Path) -> Compared:
    """Read a file by both."""
    said = pillow = format_ = ""
    ours = theirs = None
    try:
        ours = read_image(file)
    except ImageError as error:
        said = str(error)
    try:
        with Image.open(file) as image:
            format_ = image.format or ""
            theirs = expected(image)
    except Exception as error:  # what Pillow's parsers raise
        pillow = f"{type(error).__name__}: {error}".split("\n")[0].replace(str(file), file.name)
    same = False
    if ours is not None and theirs is not None and ours.size == theirs.size:
        difference = np.asarray(ours).astype(np.int16) - np.asarray(theirs)
        same = int(np.abs(difference).max()) <= 2
    return Compared(format_.upper(), said, pillow, same)


def main(
    folder: Annotated[Path, typer.Argument(help="A folder of pictures, of any depth.")],
    out: Annotated[Path | None, typer.Option("--json", help="Write what was found to this file.")] = None,
) -> None:
    """Print a row per format, and every file on which the two differ."""
    warnings.simplefilter("ignore")
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    found = {str(path.relative_to(folder)): compare(path) for path in files}
    by_format: defaultdict[str, list[Compared]] = defaultdict(list)
    for result in found.values():
        by_format[result.format].append(result)
    table = Table("format", "files", "both read", "same pixels", "Pillow alone", "hierclass alone", "neither")
    for name, results in sorted(by_format.items()):
        counts = Counter((not result.said, not result.pillow) for result in results)
        same = sum(result.same for result in results)
        cells = (
            len(results),
            counts[True, True],
            same,
            counts[False, True],
            counts[True, False],
            counts[False, False],
        )
        table.add_row(name or "(none)", *map(str, cells))
    console = Console()
    console.print(table)
    refused = Counter(result.said for result in found.values() if result.said)
    for said, count in refused.most_common():
        console.print(f"{count:4} refused: {escape(said)}", soft_wrap=True)
    for name, result in found.items():
        if not result.pillow and result.said and not result.listed:
            console.print(
                f"Pillow alone reads {escape(name)} ({result.format}): {escape(result.said)}", soft_wrap=True
            )
        elif not result.pillow and not result.said and not result.same:
            console.print(f"pixels differ: {escape(name)} ({result.format})", soft_wrap=True)
    if out is not None:
        summary = {
            "pillow": PIL.__version__,
            "files": len(found),
            "read": sum(not result.said for result in found.values()),
            "refused": dict(refused.most_common()),
            "by_format": {name or "none": len(results) for name, results in sorted(by_format.items())},
            "pillow_alone_and_not_listed": sorted(
                name
                for name, result in found.items()
                if not result.pillow and result.said and not result.listed
            ),
            "pixels_differ": sorted(
                name
                for name, result in found.items()
                if not result.pillow and not result.said and not result.same
            ),
        }
        out.write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
