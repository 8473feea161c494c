"""XMP sidecars that make a parser work, or that can't be merged; each lies beside a picture of one pixel."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from hostile import HostileFile
from hostile.archives import TINY_PNG

SIZE = (16 << 20) - 1000
START = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#" '
    b'xmlns:dc="http://purl.org/dc/elements/1.1/" xmlns:hierclass="urn:hierclass:keywords/">'
)
END = b"</rdf:RDF></x:xmpmeta>"


def write(make: Callable[[], bytes], folder: Path) -> Path:
    """Write a picture and its sidecar; returns the picture's path."""
    picture = folder / "pixel.png"
    picture.write_bytes(TINY_PNG)
    (folder / "pixel.png.xmp").write_bytes(make())
    return picture


def entries(count: int) -> bytes:
    """The array of a list with so many different entries."""
    return b"<rdf:Bag>" + b"<rdf:li>%07d</rdf:li>" * count % tuple(range(count)) + b"</rdf:Bag>"


def described(content: bytes) -> bytes:
    """A document with a description."""
    return START + b"<rdf:Description>" + content + b"</rdf:Description>" + END


def laughs() -> bytes:
    """Entities that unfold to gigabytes."""
    steps = b"".join(b'<!ENTITY e%d "%s">' % (n, b"&e%d;" % (n - 1) * 20) for n in range(1, 9))
    return b'<!DOCTYPE a [<!ENTITY e0 "ha">' + steps + b"]>" + described(b"<dc:title>&e8;</dc:title>")


def reads_a_file() -> bytes:
    """An entity that names a file."""
    kind = b'<!DOCTYPE a [<!ENTITY e SYSTEM "file:///etc/hostname">]>'
    return kind + described(b"<dc:subject><rdf:Bag><rdf:li>&e;</rdf:li></rdf:Bag></dc:subject>")


def keyword(part: bytes) -> bytes:
    """One keyword of 16 MiB, of parts."""
    return described(
        b"<dc:subject><rdf:Bag><rdf:li>" + part * (SIZE // len(part)) + b"</rdf:li></rdf:Bag></dc:subject>"
    )


_MAKERS: list[tuple[str, Callable[[], bytes], str]] = [
    ("sidecar whose entities unfold", laughs, "declares a document type"),
    ("sidecar that reads a file", reads_a_file, "declares a document type"),
    (
        "sidecar of 4 million elements",
        lambda: START + b"<a/>" * (SIZE // 4) + END,
        "more than 100,000 elements",
    ),
    ("sidecar 5 million elements deep", lambda: START + b"<a>" * (SIZE // 3), "more than 100,000 elements"),
    (
        "sidecar of a million attributes",
        lambda: START + b"<a " + b"".join(b'b%d="" ' % n for n in range(1_200_000)) + b"/>" + END,
        "more than 100,000 attributes",
    ),
    (
        "sidecar of 40,000 keywords of ours",
        lambda: described(
            b"<dc:subject>" + entries(40_000) + b"</dc:subject>"
            b"<hierclass:subject>" + entries(40_000) + b"</hierclass:subject>"
        ),
        "",
    ),
    ("sidecar of a keyword of many lines", partial(keyword, b"a\n"), ""),
    ("sidecar of a keyword of references", partial(keyword, b"&#65;"), ""),
    ("sidecar of 16 MiB of blanks", lambda: START + b" " * SIZE + END, ""),
    ("sidecar of 17 MiB", lambda: START + b" " * (17 << 20) + END, "larger than 16 M"),
    ("sidecar that ends early", lambda: START + b"<rdf:Description>", "is no whole XML"),
    ("sidecar in UTF-16", lambda: (START + END).decode().encode("utf-16"), "is not in UTF-8"),
    ("sidecar of random bytes", lambda: bytes(range(1, 256)) * 100, "is no whole XML"),
]
SIDECARS = [HostileFile(name, partial(write, make), says) for name, make, says in _MAKERS]
