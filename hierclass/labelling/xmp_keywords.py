"""Put keywords into an XMP document; every other byte of it stays as it is.

What is put in is listed in properties of a namespace of our own, so that a later call replaces that and nothing else.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence, Set
from typing import NamedTuple

from hierclass.labelling.xmp_document import SEPARATOR, Edit, Property, XmpDocument, edited

OURS = "urn:hierclass:keywords/"
"""Namespace of the properties that list what was put in, under the names of the lists that it was put into."""

_UNWANTED = re.compile(r"[\s,;\x00-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]+")
"""What XML can't hold, and commas and semicolons, at which darktable and Lightroom divide keywords."""


class _KeywordList(NamedTuple):
    """A property that lists keywords: single words, or whole paths with a separator."""

    namespace: str
    name: str
    prefix: str
    separator: str = ""
    only_if_there: bool = False
    """Whether the list is left out where a document has none."""

    @property
    def key(self) -> str:
        return f"{self.namespace}{SEPARATOR}{self.name}"

    @property
    def record(self) -> str:
        """The property that lists what was put into this one; that of paths counts for all lists of paths."""
        return f"{OURS}{SEPARATOR}{_PATHS.name if self.separator else self.name}"

    def entries(self, path: Sequence[str]) -> list[str]:
        if not path:
            return []
        return [self.separator.join(path)] if self.separator else list(dict.fromkeys(path))


_SUBJECT = _KeywordList("http://purl.org/dc/elements/1.1/", "subject", "dc")
_PATHS = _KeywordList("http://ns.adobe.com/lightroom/1.0/", "hierarchicalSubject", "lr", "|")
_LISTS = (
    _SUBJECT,
    _PATHS,
    # digiKam reads the first of these that a document has, and only then the one above.
    _KeywordList("http://www.digikam.org/ns/1.0/", "TagsList", "digiKam", "/", only_if_there=True),
    _KeywordList("http://ns.microsoft.com/photo/1.0/", "LastKeywordXMP", "MicrosoftPhoto", "/", True),
)
_KEYS = {key for each in _LISTS for key in (each.key, each.record)}


def with_keywords(data: bytes, path: Sequence[str]) -> bytes:
    """Return an XMP document with the classes of a path, coarse first, in place of those of an earlier call.

    Every class is a keyword in dc:subject, and the path one in lr:hierarchicalSubject, and in digiKam's and Microsoft's
    lists where the document has them. Without a path those of an earlier call are removed, and so are lists that hold
    nothing else: of an empty one exiftool makes an empty keyword. Keywords of others stay.

    Raises:
        InputError: the document is none of XMP in UTF-8, declares a document type, is beyond the bounds, or has a list
            of keywords in an unknown form; the message says what to do.
    """
    document = _Keywords(data, _KEYS)
    path = [name for name in map(_clean, path) if name]
    edits, emptied = list[Edit](), list[Property]()
    new = list[tuple[str, str, list[str]]]()

    def put(key: str, prefix: str, keep: Set[str], more: list[str]) -> None:
        found = document.lists.get(key)
        if found is None:
            new.extend([(key, prefix, more)] * bool(more))
        elif more or any(item.text is None or item.text in keep for item in found.items):
            edits.extend(document.edit(found, keep, more))
        elif found.items or key.startswith(OURS):
            emptied.append(found)

    for each in _LISTS:
        if each.only_if_there and each.key not in document.lists:
            continue
        there, ours, others = document.texts(each.key), document.ours(each), document.others(each)
        wanted = each.entries(path)
        # Programs that find this list read no other: what others put into dc:subject has to be here too.
        mirrored = document.others(_SUBJECT) if each.separator and wanted and not others else []
        if not wanted and document.only_mirrors(each):
            others = []
        put(each.key, each.prefix, {*others, *wanted}, _new((*mirrored, *wanted), there))
        if not each.only_if_there:
            record = [text for text in wanted if text in ours or text not in {*there, *mirrored}]
            put(each.record, "hierclass", set(record), _new(record, ours))
    if new:
        edits.append(document.appended(new))
    return edited(data, [*edits, *document.without(emptied)])


def _new(texts: Iterable[str], there: Set[str]) -> list[str]:
    return [text for text in dict.fromkeys(texts) if text not in there]


def has_keywords(data: bytes) -> bool:
    """Return whether `with_keywords` put something into a document."""
    return OURS.encode() in data


def _clean(name: str) -> str:
    """A class's name as a keyword: what divides paths, and line ends, are no part of one."""
    return _UNWANTED.sub(" ", name).replace("|", "-").replace("/", "-").strip()


class _Keywords(XmpDocument):
    """A document with lists of keywords."""

    def ours(self, wanted: _KeywordList) -> set[str]:
        """The entries that were put into a list here."""
        return {text.replace(_PATHS.separator, wanted.separator) for text in self.texts(wanted.record)}

    def others(self, wanted: _KeywordList) -> list[str]:
        """The entries of a list that were not put in here, in order."""
        found, ours = self.lists.get(wanted.key), self.ours(wanted)
        texts = [item.text for item in found.items] if found else []
        return [text for text in texts if text and text not in ours]

    def only_mirrors(self, wanted: _KeywordList) -> bool:
        """Whether a list is one of ours that holds, beside ours, only keywords of others from dc:subject."""
        found, record, flat = map(self.lists.get, (wanted.key, wanted.record, _SUBJECT.key))
        if not (found and record and flat and found.within is record.within is not flat.within):
            return False
        return set(self.others(wanted)) <= set(self.others(_SUBJECT))
