"""Keywords go into .xmp files beside images: what others wrote stays, what an earlier call wrote is replaced."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pyarrow as pa
import pytest
from hostile import HostileFile
from hostile.sidecars import SIDECARS
from labelling_data import make_photos
from PIL import Image

from hierclass.cli import main
from hierclass.errors import InputError
from hierclass.labelling.inputs import Input
from hierclass.labelling.rows import schema
from hierclass.labelling.sidecars import SidecarWriter
from hierclass.labelling.xmp_document import EMPTY, MAX_BYTES
from hierclass.labelling.xmp_keywords import OURS, with_keywords

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


# ---------------------------------------------------------------- documents


def test_a_new_document_has_every_class_and_the_whole_path() -> None:
    found = lists(merged(EMPTY, *PUG))
    assert (found[FLAT], found[PATHS]) == (["animal", "dog", "pug"], ["animal|dog|pug"])
    assert TAGS not in found


@pytest.mark.parametrize("text", [*OTHERS, NO_PREFIX])
def test_what_others_wrote_stays_byte_by_byte(text: str) -> None:
    data = merged(text, *PUG)
    kept = iter(data.decode())
    parts = text.replace("<dc:subject/>", "").split("</")
    assert all(any(char == each for each in kept) for char in "".join(parts))  # all of it, in order
    assert merged(data, *PUG) == data
    assert (
        lists(merged(data, *CAT)).items()
        >= {
            key: entries
            for key, entries in lists(text.encode()).items()
            if key not in (FLAT, PATHS, TAGS, MICROSOFT)
        }.items()
    )


@pytest.mark.parametrize(
    ("text", "flat", "paths"),
    [
        (LIGHTROOM, ["Rome", "places"], ["places|Rome"]),
        (DARKTABLE, ["Ferien am See"], ["Ferien am See"]),  # else darktable would not find it any more
        (DIGIKAM, [], []),
        (NO_PREFIX, ["sea"], ["sea"]),
    ],
)
def test_the_keywords_of_others_stay_and_ours_are_replaced(
    text: str, flat: list[str], paths: list[str]
) -> None:
    once = lists(merged(text, *PUG))
    assert once[FLAT] == [*flat, "animal", "dog", "pug"]
    assert once[PATHS] == [*paths, "animal|dog|pug"]
    twice = lists(merged(merged(text, *PUG), *CAT))
    assert (twice[FLAT], twice[PATHS]) == ([*flat, "animal", "cat"], [*paths, "animal|cat"])


@pytest.mark.parametrize("text", [*OTHERS, NO_PREFIX, EMPTY.decode()])
def test_a_document_is_what_it_was_when_our_keywords_are_taken_away(text: str) -> None:
    before = text.replace("\n   <dc:subject/>", "").encode()  # an empty list is as good as none
    assert merged(merged(text, *PUG)) == before
    assert merged(merged(merged(text, *PUG), *CAT)) == before
    twice = merged(merged(merged(text, *PUG)), *CAT)
    assert lists(twice)[PATHS][-1] == "animal|cat"
    assert merged(twice) == before


def test_a_list_that_held_only_our_keywords_goes_and_one_of_others_stays() -> None:
    data = merged(EMPTY, *PUG).replace(
        b"<rdf:li>dog</rdf:li>", b"<rdf:li>dog</rdf:li><rdf:li>Rex</rdf:li>", 1
    )
    assert list(lists(merged(data)).values()) == [["Rex"]]
    # a keyword that is somebody's needs no list of ours that says so
    mine = merged(LIGHTROOM.replace("places", "pug"), *PUG)
    mine = merged(mine, "pug")
    assert [each for each in lists(mine) if OURS in each] == [f"{{{OURS}}}hierarchicalSubject"]


def test_lists_of_digikam_are_kept_in_step_where_they_are() -> None:
    data = merged(DIGIKAM, *PUG)
    assert lists(data)[TAGS] == lists(data)[MICROSOFT] == ["People/Zoë", "animal/dog/pug"]
    assert lists(merged(data, *CAT))[TAGS] == ["People/Zoë", "animal/cat"]
    # digiKam copies all keywords into its own list
    copied = merged(EMPTY, *PUG).replace(
        b"<lr:hier",
        b'<digiKam:TagsList xmlns:digiKam="http://www.digikam.org/ns/1.0/"><rdf:Seq><rdf:li>animal/dog/pug</rdf:li>'
        b"</rdf:Seq></digiKam:TagsList><lr:hier",
    )
    assert lists(merged(copied, *CAT))[TAGS] == ["animal/cat"]


def test_a_keyword_that_was_there_before_is_not_ours() -> None:
    before = LIGHTROOM.replace("places|Rome", "animal|dog|pug").replace("<rdf:li>Rome", "<rdf:li>dog")
    data = lists(merged(merged(before, *PUG), *CAT))
    assert data[FLAT] == ["dog", "places", "animal", "cat"]
    assert data[PATHS] == ["animal|dog|pug", "animal|cat"]


@pytest.mark.parametrize(
    ("name", "keyword"),
    [
        ("cats|dogs", "cats-dogs"),
        ("and/or", "and-or"),
        ("duck, goose; or swan", "duck goose or swan"),
        ("a\x00b\x1b[2J\nc\u0085d\udcff\ufffe", "a b [2J c d"),
        ("<b> & é 犬", "<b> & é 犬"),
    ],
)
def test_names_of_classes_are_made_keywords(name: str, keyword: str) -> None:
    found = lists(merged(EMPTY, "animal", name))
    assert (found[FLAT], found[PATHS]) == (["animal", keyword], [f"animal|{keyword}"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (LIGHTROOM.replace("<rdf:Bag>\n     <rdf:li>Rome", "see <rdf:Bag>\n     <rdf:li>Rome"), "form"),
        (LIGHTROOM.replace('xmp:Rating="3"', 'dc:subject="Rome"'), "form"),
        (LIGHTROOM.replace("<crs:ToneCurvePV2012>", "<dc:subject/><crs:ToneCurvePV2012>"), "form"),
        (LIGHTROOM.replace("<rdf:Bag>", "<rdf:Bog>").replace("</rdf:Bag>", "</rdf:Bog>"), "form"),
        (DARKTABLE.replace("UTF-8", "ISO-8859-1"), "not in UTF-8"),
        ("<html/>", "holds no XMP"),
        ("", "no whole XML"),
    ],
)
def test_a_document_of_an_unknown_form_is_refused(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        merged(text, *PUG)


@pytest.mark.parametrize(
    "before",
    [
        '<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"/>',
        LIGHTROOM.replace(
            "<rdf:li>Rome</rdf:li>", '<rdf:li xml:lang="x-default"><rdf:value>R</rdf:value></rdf:li>'
        ),
        LIGHTROOM.replace("<rdf:li>Rome</rdf:li>", "<!-- a --><rdf:li><![CDATA[Rome]]></rdf:li><!-- b -->"),
        DIGIKAM.replace("<rdf:Seq><rdf:li>People/Zoë</rdf:li></rdf:Seq>", "<rdf:Seq/>"),
        DIGIKAM.replace("<dc:subject/>", "<dc:subject>\n</dc:subject>"),
    ],
)
def test_every_form_of_a_list_is_merged_into(before: str) -> None:
    data = merged(before, *PUG)
    assert lists(data)[FLAT][-3:] == ["animal", "dog", "pug"]
    assert merged(data, *PUG) == data
    assert "pug" not in str(lists(merged(data, *CAT)))


@pytest.mark.parametrize("hostile", SIDECARS, ids=[each.name for each in SIDECARS])
def test_a_hostile_sidecar_is_left_as_it_is_or_merged(hostile: HostileFile, tmp_path: Path) -> None:
    picture = hostile.write(tmp_path)
    before = (tmp_path / "pixel.png.xmp").read_bytes()
    writer = write(picture)
    assert writer.num_failed == bool(hostile.says)
    assert hostile.says in "".join(writer.failures)
    assert ((tmp_path / "pixel.png.xmp").read_bytes() == before) == bool(hostile.says)


@needs_exiftool
def test_exiftool_reads_the_keywords_and_everything_else_as_before(tmp_path: Path) -> None:
    before, after = [], []
    for number, text in enumerate([*OTHERS, EMPTY.decode()]):
        for files, data in ((before, text.encode()), (after, merged(text, *PUG))):
            files.append(tmp_path / f"{'after' if files is after else 'before'}{number}.xmp")
            files[-1].write_bytes(data)
    found = by_exiftool(*before, *after)
    keywords = ["SourceFile", "XMP-dc:Subject", "XMP-lr:HierarchicalSubject", "XMP-digiKam:TagsList"]
    keywords.append("XMP-microsoft:LastKeywordXMP")
    rest = [
        {name: value for name, value in each.items() if name not in keywords and "hierclass:" not in name}
        for each in found
    ]
    assert rest[: len(before)] == rest[len(before) :]
    assert [each.get("XMP-xmp:Rating") for each in rest] == [3, 1, 4, None] * 2
    assert [each["XMP-lr:HierarchicalSubject"] for each in found[4:]] == [
        ["places|Rome", "animal|dog|pug"],
        ["Ferien am See", "animal|dog|pug"],
        "animal|dog|pug",
        "animal|dog|pug",
    ]
    assert found[7]["XMP-dc:Subject"] == ["animal", "dog", "pug"]
    # another program writes the document anew, and ours are still known
    command = ["exiftool", "-q", "-overwrite_original", "-XMP-dc:Title=Rome", *map(str, after)]
    subprocess.run(command, check=True)
    again = [lists(merged(file.read_bytes(), *CAT)) for file in after]
    assert [each[FLAT] for each in again] == [
        ["Rome", "places", "animal", "cat"],
        ["Ferien am See", "animal", "cat"],
        ["animal", "cat"],
        ["animal", "cat"],
    ]
    # and takes no empty keyword from one that lost ours
    (image,) = photo(tmp_path, "a.jpg")
    Image.new("RGB", (2, 2)).save(image)
    after[3].write_bytes(merged(after[3].read_bytes()))
    copy = ["exiftool", "-q", "-m", "-tagsFromFile", str(after[3]), "-XMP-dc:Subject", str(image)]
    subprocess.run(copy, check=False, stderr=subprocess.DEVNULL)  # 1: there is nothing to copy
    assert "XMP-dc:Subject" not in by_exiftool(image)[0] | by_exiftool(after[3])[0]


# ---------------------------------------------------------------- files


@pytest.mark.parametrize(
    ("there", "name", "wanted"),
    [
        ([], "a.jpg", ["a.jpg.xmp"]),
        ([], "a", ["a.xmp"]),
        ([], "a.b.JPG", ["a.b.JPG.xmp"]),
        ([], "a.nef", ["a.xmp"]),  # Lightroom's
        ([], "a.dng", ["a.dng.xmp"]),  # programs write into DNG files
        (["a.jpg"], "a.nef", ["a.xmp"]),
        (["a.nef"], "a.jpg", ["a.jpg.xmp"]),
        (["a.nef", "a.xmp"], "a.jpg", ["a.jpg.xmp"]),  # the sidecar is that of the RAW file
        (["a.mov", "a.xmp"], "a.jpg", ["a.jpg.xmp"]),
        (["a.jpg", "a.xmp"], "a.nef", ["a.xmp"]),
        (["a.xmp"], "a.jpg", ["a.xmp"]),  # as digiKam may be set to write
        (["A.XMP"], "A.JPG", ["A.XMP"]),
        (["a.nef.xmp"], "a.nef", ["a.nef.xmp"]),
        (["a.xmp", "a.nef.xmp"], "a.nef", ["a.nef.xmp", "a.xmp"]),  # two programs, each with its own
        (["a.cr3"], "a.nef", ["a.nef.xmp"]),
        (["a.cr3", "a.xmp"], "a.nef", ["a.nef.xmp"]),
    ],
)
def test_the_sidecar_is_the_one_that_is_there_or_is_named_by_the_kind_of_image(
    there: list[str], name: str, wanted: list[str], tmp_path: Path
) -> None:
    photo(tmp_path, *there)
    for each in sidecars(tmp_path):
        (tmp_path / each).write_text(LIGHTROOM)
    write(*photo(tmp_path, name))
    changed = [each for each in sidecars(tmp_path) if "pug" in (tmp_path / each).read_text()]
    assert changed == wanted
    assert (tmp_path / name).read_bytes() == b"picture"


def test_long_names_are_for_raw_files_too_where_that_is_asked(tmp_path: Path) -> None:
    write(*photo(tmp_path, "a.nef", "b.jpg"), long_names=True)
    assert sidecars(tmp_path) == ["a.nef.xmp", "b.jpg.xmp"]


def test_a_summary_counts_what_was_written_and_what_was_not(tmp_path: Path) -> None:
    photos = photo(tmp_path, "a.jpg", "b.jpg", "c.jpg", "d.jpg", f"{'e' * 251}.jpg", "f.jpg")
    assert write(*photos[:2]).summary() == "keywords: 2 .xmp files written"
    assert write(*photos[:2]).summary() == "keywords: 0 .xmp files written, 2 had them"
    (tmp_path / "c.jpg.xmp").symlink_to("a.jpg.xmp")
    (tmp_path / "d.jpg.xmp").mkdir()
    (tmp_path / "f.jpg.xmp").touch()  # an empty one is as good as none
    writer = SidecarWriter()
    writer.write(
        [
            *(Input(str(each)) for each in photos),
            Input(str(tmp_path / "g.jpg")),
            Input("a.tar", "h.jpg", 512, 9),
        ],
        answers(None, *[CAT] * 7),
    )
    writer.write([Input(str(photos[0]))], answers(PUG, error="is truncated"))
    says = writer.summary()
    assert says.startswith(
        "keywords: 2 .xmp files written; removed from 1 .xmp file of images without an answer; 1 image without an "
        "answer; 1 image in archives, where there are no .xmp files; 1 image gone since; "
    )
    assert says.endswith(
        "; 3 .xmp files not written, see above; once that is mended, the same command writes them"
    )
    link, folder, long = writer.failures
    assert "c.jpg.xmp is a link, which is not followed; put the file itself in its place" in link
    assert "d.jpg.xmp: it is no regular file" in folder
    assert "jpg.xmp: File name too long" in long
    assert writer.num_failed == 3
    assert lists((tmp_path / "a.jpg.xmp").read_bytes()) == {}
    assert lists((tmp_path / "b.jpg.xmp").read_bytes())[FLAT] == ["animal", "cat"]
    assert "Rome" not in str(sidecars(tmp_path))


def test_every_file_of_a_failure_is_named_with_what_to_do(tmp_path: Path) -> None:
    photos = photo(tmp_path, *(f"{number}.jpg" for number in range(5)))
    for each in photos:
        each.with_name(f"{each.name}.xmp").write_text("<!DOCTYPE a>" + LIGHTROOM)
    writer = write(*photos)
    assert writer.failures == [
        f"left as it is: {each}.xmp declares a document type; take its <!DOCTYPE …> out, or move it away"
        for each in photos
    ]
    assert writer.summary("that").endswith(
        "5 .xmp files not written, see above; once that is mended, that writes them"
    )


def test_an_image_without_an_answer_is_no_failure_where_nothing_was_to_be_taken_away(tmp_path: Path) -> None:
    photos = photo(tmp_path, "link.jpg", "folder.jpg", "big.jpg", "broken.jpg", "ours.jpg")
    link, folder, big, broken, ours = (each.with_name(f"{each.name}.xmp") for each in photos)
    link.symlink_to("nowhere")
    folder.mkdir()
    with big.open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    broken.write_text("mine")
    ours.write_bytes(merged(EMPTY, *PUG)[:-100])  # something was to be taken away
    writer = write(*photos, path=None)
    assert [Path(line.split()[4]) for line in writer.failures] == [ours]
    assert "no whole XML (" in writer.failures[0]


def test_what_killed_processes_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    (image,) = photo(tmp_path, "a.jpg")
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    names = [f".a.jpg.xmp.{dead.pid}.tmp", f".B.XMP.{dead.pid}.tmp", f".a.xmp.{os.getppid()}.tmp"]
    names += [f".a.jpg.{dead.pid}.tmp", ".a.jpg.xmp.tmp", f"a.jpg.xmp.{dead.pid}.tmp"]
    photo(tmp_path, *names)
    write(image, path=None)
    assert sorted(each.name for each in tmp_path.iterdir()) == sorted(["a.jpg", *names[2:]])
    os.utime(tmp_path / names[2], (0, 0))  # the number is that of another process by now
    write(image)
    assert not (tmp_path / names[2]).exists()


def test_a_sidecar_keeps_its_rights_and_one_that_may_not_be_written_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (image,) = photo(tmp_path, "a.jpg")
    sidecar = tmp_path / "a.jpg.xmp"
    sidecar.write_text(LIGHTROOM)
    sidecar.chmod(0o640)
    write(image)
    assert sidecar.stat().st_mode & 0o777 == 0o640
    monkeypatch.setattr(os, "access", lambda *_: False)  # as for another user than root
    writer = write(image, path=CAT)
    (line,) = writer.failures
    assert line == f"not written: {sidecar}: Permission denied; make the file and its folder writable"
    assert "pug" in sidecar.read_text()


def test_classes_that_stand_on_two_tiers_are_one_keyword(tmp_path: Path) -> None:
    write(*photo(tmp_path, "a.jpg"), path=("boat", "boat", "ferry"))
    assert lists((tmp_path / "a.jpg.xmp").read_bytes())[PATHS] == ["boat|ferry"]


# ---------------------------------------------------------------- the command


def test_label_writes_keywords_beside_images_and_again_only_what_changed(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = make_photos(tmp_path / "photos", 9)
    command = ["label", str(photos), "--model", str(tiny_checkpoint), "--keywords", "xmp"]
    assert main([*command, "-o", str(tmp_path / "out.csv"), "--level", "1"]) == 3  # 07.png is none
    assert "keywords: 8 .xmp files written\n" in capsys.readouterr().err
    assert sidecars(photos) == [f"{number:02}.png.xmp" for number in range(9) if number != 7]
    (path,) = lists((photos / "00.png.xmp").read_bytes())[PATHS]
    assert str(path).count("|") == 1
    # to standard output, and one level further
    assert main(command) == 3
    assert "keywords: 8 .xmp files written\n" in capsys.readouterr().err
    (path,) = lists((photos / "00.png.xmp").read_bytes())[PATHS]
    assert str(path).count("|") == 2


def test_a_complete_run_gets_its_keywords_when_they_are_asked_for(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos, run = whole_photos(tmp_path / "photos", 6), str(tmp_path / "run") + "/"
    model = ["--model", str(tiny_checkpoint)]
    assert main(["label", str(photos), "-o", run, "--level", "0", *model]) == 0
    assert sidecars(photos) == []
    assert main(["label", str(photos), "-o", run, "--level", "0", *model, "--keywords", "xmp"]) == 0
    assert capsys.readouterr().err.endswith(
        f"keywords: 6 .xmp files written\nno image was left to label -> {run}labels.parquet\n"
    )
    (photos / "02.png.xmp").unlink()
    refine = ["refine", run, "--where", "path like '%03.png'", "--level", "2", *model, "--keywords", "xmp"]
    assert main(refine) == 0
    assert "keywords: 2 .xmp files written, 4 had them\n" in capsys.readouterr().err
    paths = [lists((photos / f"0{number}.png.xmp").read_bytes())[PATHS][0] for number in (2, 3)]
    assert [str(path).count("|") for path in paths] == [0, 2]


def test_images_in_archives_have_no_sidecars_and_another_word_is_refused(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = whole_photos(tmp_path / "photos", 3)
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.add(photos, "photos")
    command = ["label", str(tmp_path / "a.tar"), "--model", str(tiny_checkpoint), "--keywords"]
    assert main([*command, "xmp"]) == 0
    err = capsys.readouterr().err
    assert "keywords: 0 .xmp files written; 3 images in archives, where there are no .xmp files\n" in err
    assert main([*command, "iptc"]) == 2
    assert capsys.readouterr().err == "error: --keywords iptc: give xmp or xmp-long\n"


def test_a_sidecar_that_is_left_as_it_is_makes_the_exit_code_3(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = whole_photos(tmp_path / "photos", 2)
    (photos / "00.png.xmp").write_text("mine")
    command = [
        "label",
        str(photos),
        "--model",
        str(tiny_checkpoint),
        "-o",
        str(tmp_path / "out.csv"),
        "--keywords",
        "xmp",
    ]
    assert main(command) == 3
    named, summary, _ = capsys.readouterr().err.splitlines()[-3:]
    assert named.startswith(f"left as it is: {photos / '00.png.xmp'} is no whole XML (")
    assert summary.endswith(
        "1 .xmp file written; 1 .xmp file not written, see above; once that is mended, the same command with --update "
        "writes it"
    )
    assert (photos / "00.png.xmp").read_text() == "mine"
    (photos / "00.png.xmp").unlink()
    assert main([*command, "--update"]) == 0
    assert (
        "keywords: 1 .xmp file written, 1 had them\nno image was left to label ->" in capsys.readouterr().err
    )


@pytest.mark.full
def test_ctrl_c_leaves_whole_sidecars_and_the_same_command_writes_the_rest(tmp_path: Path) -> None:
    photos = whole_photos(tmp_path / "photos", 1000)
    words = ["label", str(photos), "-o", str(tmp_path / "out.csv"), "--level", "0", "--keywords", "xmp"]
    command = [sys.executable, "-m", "hierclass", *words]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    while not sidecars(photos) and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130
    assert err == "error: stopped while writing keywords; the same command goes on from there\n"
    written = sidecars(photos)
    assert 0 < len(written) < 999
    assert all(PATHS in lists((photos / name).read_bytes()) for name in written)
    assert not [each.name for each in photos.iterdir() if each.name.endswith(".tmp")]
    again = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=True)
    assert f"keywords: {999 - len(written):,} .xmp files written, {len(written):,} had them\n" in again.stderr
    assert len(sidecars(photos)) == 999
