"""XMP documents of other programs, and short ways to put keywords into them and to read them, for several tests."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pyarrow as pa
import pytest
from labelling_data import make_photos

from hierclass.labelling.inputs import Input
from hierclass.labelling.rows import schema
from hierclass.labelling.sidecars import SidecarWriter
from hierclass.labelling.xmp_keywords import with_keywords

PUG, CAT = ("animal", "dog", "pug"), ("animal", "cat")
RDF = "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}"
FLAT = "{http://purl.org/dc/elements/1.1/}subject"
PATHS = "{http://ns.adobe.com/lightroom/1.0/}hierarchicalSubject"
TAGS = "{http://www.digikam.org/ns/1.0/}TagsList"
MICROSOFT = "{http://ns.microsoft.com/photo/1.0/}LastKeywordXMP"
NAMESPACES = """
    xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#" xmlns:dc="http://purl.org/dc/elements/1.1/"
    xmlns:xmp="http://ns.adobe.com/xap/1.0/" xmlns:lr="http://ns.adobe.com/lightroom/1.0/"
    xmlns:crs="http://ns.adobe.com/camera-raw-settings/1.0/" xmlns:darktable="http://darktable.sf.net/"
    xmlns:digiKam="http://www.digikam.org/ns/1.0/" xmlns:MicrosoftPhoto="http://ns.microsoft.com/photo/1.0/"
"""
LIGHTROOM = f"""<x:xmpmeta xmlns:x="adobe:ns:meta/" x:xmptk="Adobe XMP Core">
 <rdf:RDF {NAMESPACES}>
  <rdf:Description rdf:about="" xmp:Rating="3" xmp:Label='a > b' crs:Exposure2012="+0.35" crs:HasSettings="True">
   <dc:subject>
    <rdf:Bag>
     <rdf:li>Rome</rdf:li>
     <rdf:li>places</rdf:li>
    </rdf:Bag>
   </dc:subject>
   <lr:hierarchicalSubject>
    <rdf:Bag>
     <rdf:li>places|Rome</rdf:li>
    </rdf:Bag>
   </lr:hierarchicalSubject>
   <crs:ToneCurvePV2012><rdf:Seq><rdf:li>0, 0</rdf:li><rdf:li>255, 255</rdf:li></rdf:Seq></crs:ToneCurvePV2012>
  </rdf:Description>
 </rdf:RDF>
</x:xmpmeta>"""
DARKTABLE = f"""<?xml version="1.0" encoding="UTF-8"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/" x:xmptk="XMP Core 4.4.0-Exiv2">
 <rdf:RDF {NAMESPACES}>
  <rdf:Description rdf:about="" xmp:Rating="1" darktable:xmp_version="5" darktable:history_end="1">
   <darktable:history>
    <rdf:Seq>
     <rdf:li darktable:num="0" darktable:operation="exposure" darktable:params="gz02eJxjYGBg"/>
    </rdf:Seq>
   </darktable:history>
   <dc:subject>
    <rdf:Seq>
     <rdf:li>Ferien am See</rdf:li>
    </rdf:Seq>
   </dc:subject>
  </rdf:Description>
 </rdf:RDF>
</x:xmpmeta>
"""
DIGIKAM = f"""<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/">
 <rdf:RDF {NAMESPACES}>
  <rdf:Description rdf:about="uuid:1" xmp:Rating="4">
   <digiKam:TagsList><rdf:Seq><rdf:li>People/Zoë</rdf:li></rdf:Seq></digiKam:TagsList>
   <MicrosoftPhoto:LastKeywordXMP><rdf:Bag><rdf:li>People/Zoë</rdf:li></rdf:Bag></MicrosoftPhoto:LastKeywordXMP>
   <dc:subject/>
  </rdf:Description>
 </rdf:RDF>
</x:xmpmeta>
<?xpacket end="w"?>"""
OTHERS = [LIGHTROOM, DARKTABLE, DIGIKAM]
NO_PREFIX = """<RDF xmlns="http://www.w3.org/1999/02/22-rdf-syntax-ns#" xmlns:s="http://purl.org/dc/elements/1.1/">
<Description><s:subject><Bag><li>sea</li></Bag></s:subject></Description></RDF>"""

needs_exiftool = pytest.mark.skipif(shutil.which("exiftool") is None, reason="exiftool is not installed")


def merged(text: str | bytes, *path: str) -> bytes:
    return with_keywords(text.encode() if isinstance(text, str) else text, path)


def lists(data: bytes) -> dict[str, list[str | None]]:
    """The entries of every property of a document, by an XML parser that is not ours."""
    return {
        each.tag: [item.text for item in each.iter(f"{RDF}li")]
        for description in ElementTree.fromstring(data).iter(f"{RDF}Description")
        for each in description
    }


def whole_photos(folder: Path, count: int) -> Path:
    """A folder of images that can all be read."""
    (make_photos(folder, count) / "07.png").unlink()
    return folder


def by_exiftool(*files: Path) -> list[dict[str, Any]]:
    command = ["exiftool", "-j", "-G1", "-XMP:all", *map(str, files)]
    found: list[dict[str, Any]] = json.loads(
        subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout
    )
    return found


def answers(*paths: Sequence[str] | None, error: str | None = None) -> pa.Table:
    """A table of labels with these answers; None where nothing is sure."""
    rows = [
        {"error": error, "level": len(path) - 1 if path else None}
        | {f"tier{tier}_label": name for tier, name in enumerate(path or PUG)}
        for path in paths
    ]
    return pa.Table.from_pylist(rows, schema(3))


def write(*photos: Path, path: Sequence[str] | None = PUG, **more: Any) -> SidecarWriter:
    """Write the same answer for photographs."""
    writer = SidecarWriter(**more)
    writer.write([Input(str(photo)) for photo in photos], answers(*[path] * len(photos)))
    return writer


def photo(folder: Path, *names: str) -> list[Path]:
    for name in names:
        (folder / name).write_bytes(b"picture")
    return [folder / name for name in names]


def sidecars(folder: Path) -> list[str]:
    return sorted(each.name for each in folder.iterdir() if each.name.lower().endswith(".xmp"))
