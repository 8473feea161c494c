"""Writes docs/kinds.md, a table of all kinds of picture, from the table of the code. Run it after changing that."""

from __future__ import annotations

from pathlib import Path

from hierclass.images.kinds import KINDS, Kind, install_command

PAGE = Path(__file__).parent / "kinds.md"
HEAD = """# Which pictures are read

A file is known by what it begins with, whatever its name is; only RAW files among TIFF, and Targa, which begins like
anything, are known by their ending as well. Folders, tar and zip files are searched for the endings of the first two
tables. This page is written by `python docs/kinds.py`.

Every picture is read upright, as EXIF or XMP says; transparent pixels lie on white; 16-bit grey is scaled to 8 bits.
Each is [bounded](labelling.md#which-pictures-are-read) before it is decoded.

`python benchmarks/pillow_images.py FOLDER` reads a folder by hierclass and by Pillow and says where they differ. Of
the 1,067 test images of Pillow 12.3, many broken on purpose, it reads 819 and refuses 248
([figures](../benchmarks/results/pillow_images.json)): what Pillow alone reads is of kinds that the last table names,
and what both read has the same pixels.
"""
MIDDLE = """
## With an extra

Without it such a file gets a row that names the extra; folders are searched for RAW files only where they can be read,
and say how many they passed over where not.
"""
END = """
## Not read

Such a file gets a row that says what it is. Among them is every other format that Pillow knows.
"""


def kinds_page() -> str:
    """The page, Markdown."""
    always = [kind for kind in KINDS if kind.read and not kind.needs]
    extras = [kind for kind in KINDS if kind.read and kind.needs]
    unread = [kind for kind in KINDS if not kind.read]
    return (
        HEAD
        + _table(("kind", "endings", "what is read"), [(kind, kind.note) for kind in always])
        + MIDDLE
        + _table(
            ("kind", "endings", "to read it", "what is read"),
            [(kind, f"`{install_command(kind.needs)}`", kind.note) for kind in extras],
        )
        + END
        + _table(("kind", "usual endings", "why, and what to do"), [(kind, kind.note) for kind in unread])
    )


def _table(columns: tuple[str, ...], rows: list[tuple[Kind | str, ...]]) -> str:
    lines = ["", f"| {' | '.join(columns)} |", f"| {' | '.join('---' for _ in columns)} |"]
    for kind, *cells in rows:
        endings = " ".join(f"`{ending}`" for ending in kind.endings)
        lines.append(f"| {' | '.join((kind.name, endings, *cells))} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(kinds_page(), encoding="utf-8")
