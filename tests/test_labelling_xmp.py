"""Keywords go into XMP documents: what others wrote stays, what an earlier call wrote is replaced."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from hostile import HostileFile
from hostile.sidecars import SIDECARS
from PIL import Image
from xmp_data import (
    CAT,
    DARKTABLE,
    DIGIKAM,
    FLAT,
    LIGHTROOM,
    MICROSOFT,
    NO_PREFIX,
    OTHERS,
    PATHS,
    PUG,
    TAGS,
    by_exiftool,
    lists,
    merged,
    needs_exiftool,
    photo,
    write,
)

from hierclass.errors import InputError
from hierclass.labelling.xmp_document import EMPTY
from hierclass.labelling.xmp_keywords import OURS


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
