"""A corpus of files as bad as they come: each has one row, and the good ones among them their answer."""

from __future__ import annotations

import io
import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from test_images import png_of_one_colour

import hierclass
from hierclass.labelling.read_input import ReadOptions

PIXELS = np.random.default_rng(0).integers(0, 255, (48, 64, 3), dtype=np.uint8)


def encoded(kind: str, mode: str = "RGB", **options: Any) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(PIXELS).convert(mode).save(stream, kind, **options)
    return stream.getvalue()


def jpeg_markers(data: bytes) -> Iterator[int]:
    """Where each marker of a JPEG begins, in the data between them too, but for the last."""
    yield from (at for at in range(2, len(data) - 2) if data[at] == 0xFF and data[at + 1] not in (0, 0xFF))


def png_chunks(data: bytes) -> Iterator[int]:
    at = 8
    while at < len(data):
        yield at
        at += 12 + struct.unpack(">I", data[at : at + 4])[0]


def broken_files() -> dict[str, bytes]:
    baseline, progressive = encoded("JPEG", restart_marker_blocks=2), encoded("JPEG", progressive=True)
    png, gif, webp, tiff = encoded("PNG"), encoded("GIF"), encoded("WEBP"), encoded("TIFF")
    files = {f"baseline cut at {at}.jpg": baseline[:at] for at in jpeg_markers(baseline)}
    files |= {f"progressive cut at {at}.jpg": progressive[:at] for at in jpeg_markers(progressive)}
    files |= {f"cut at {at}.png": png[:at] for at in [*png_chunks(png)][:-1]}
    files |= {
        f"cut at {share}.{kind}": data[: int(len(data) * share)]
        for kind, data in (("gif", gif), ("webp", webp), ("tif", tiff))
        for share in (0.1, 0.5, 0.9)
    }
    noise = np.random.default_rng(1).bytes(5000)
    return files | {
        "empty.jpg": b"",
        "one byte.jpg": b"\xff",
        "only a signature.png": png[:8],
        "text.jpg": b"no picture",
        "page.png": b"<html><body>404 Not Found</body></html>",
        "noise.webp": noise,
        "noise behind a signature.jpg": baseline[:4] + noise,
        "zeros.gif": bytes(5000),
        "bomb.png": png_of_one_colour(30_000, 30_000),
        "no pixels.gif": b"GIF89a" + bytes(20),
        "script.jpg": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        "drawing.png": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        "video.heic": b"\0\0\0\x18ftypheic" + bytes(100),
        "wrong length.png": png[:8] + b"\xff" + png[9:],
    }


def good_files() -> dict[str, bytes]:
    return {
        "a png called.jpg": encoded("PNG"),
        "a jpeg called.png": encoded("JPEG"),
        "inks.jpg": encoded("JPEG", "CMYK"),
        "grey.jpg": encoded("JPEG", "L"),
        "bits.png": encoded("PNG", "1"),
        "palette.gif": encoded("GIF", "P"),
        "transparent.png": encoded("PNG", "LA"),
        "floating.tif": encoded("TIFF", "F"),
        "deep.tif": encoded("TIFF", "I"),
        "trailing.jpg": encoded("JPEG") + b"whatever follows",
        "-o.jpg": encoded("JPEG"),
        'quotes "and, commas".jpg': encoded("JPEG"),
        "two\nlines\r.jpg": encoded("JPEG"),
        "ünï 🐕.JPEG": encoded("JPEG"),
        "%s{0}$HOME`id`.jpg": encoded("JPEG"),
        "n" * 240 + ".jpg": encoded("JPEG"),
        "all but its end.png": encoded("PNG")[:-12],  # every pixel is there
        "one pixel.png": png_of_one_colour(1, 1),
        "a line.png": png_of_one_colour(1, 5000),
    }


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    for name, data in {**broken_files(), **good_files()}.items():
        (folder / name).write_bytes(data)
    with open(os.fsencode(folder) + b"/caf\xe9.jpg", "wb") as file:
        file.write(encoded("JPEG"))
    (folder / "nowhere.jpg").symlink_to(folder / "nothing")
    (folder / "round.jpg").symlink_to(folder / "and round.jpg")
    (folder / "and round.jpg").symlink_to(folder / "round.jpg")
    (folder / "loop").symlink_to(folder)
    (folder / "zeros for ever.jpg").symlink_to("/dev/zero")
    (folder / "folder.jpg").mkdir()
    os.mkfifo(folder / "pipe.jpg")
    with socket.socket(socket.AF_UNIX) as server:
        here = Path.cwd()
        os.chdir(folder)  # a socket's path must be short
        try:
            server.bind("socket.jpg")
        finally:
            os.chdir(here)
    return folder


@pytest.mark.parametrize("processes", [False, True], ids=["threads", "processes"])
def test_each_bad_file_has_its_one_row_and_each_good_one_its_answer(
    corpus: Path, tiny_checkpoint: Path, processes: bool
) -> None:
    classifier = hierclass.load(tiny_checkpoint, device="cpu")
    links = {
        "nowhere.jpg",
        "round.jpg",
        "and round.jpg",
        "zeros for ever.jpg",
        "folder.jpg",
        "pipe.jpg",
        "socket.jpg",
    }
    bad = {*broken_files(), *links}
    assert len(bad) >= 60
    reading = ReadOptions(batch_size=8, workers=2, processes=processes)
    rows = list(hierclass.label(corpus, classifier=classifier, level=0, reading=reading))
    names = [row.path.removeprefix(f"{corpus}/") for row in rows]
    assert len(names) == len(set(names))
    assert set(names) == {*bad, *good_files(), "caf\\xe9.jpg"}
    assert {name for name, row in zip(names, rows, strict=True) if row.error} == bad
    assert all("\n" not in row.error and str(corpus) not in row.error for row in rows if row.error)
    assert all(row.label for row in rows if not row.error)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_has_its_row(tmp_path: Path, tiny_checkpoint: Path) -> None:
    file = tmp_path / "secret.jpg"
    file.write_bytes(encoded("JPEG"))
    file.chmod(0)
    (row,) = hierclass.label(tmp_path, classifier=hierclass.load(tiny_checkpoint, device="cpu"))
    assert row.error == "permission denied"
