"""Put keywords into an XMP document; every other byte of it stays as it is.

What is put in is listed in properties of a namespace of our own, so that a later call replaces that and nothing else.
The document is parsed to find where the lists of keywords are, and is changed there alone.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass, field
from typing import NamedTuple
from xml.parsers import expat

from hierclass.errors import InputError

MAX_BYTES = 16 << 20
"""Size of a document; programs write up to some hundred KB, with drawn masks a few MB."""
MAX_PARTS = 100_000
"""Elements of a document, and attributes; a long history of edits has some thousands. Bounds the time to parse one."""
OURS = "urn:hierclass:keywords/"
"""Namespace of the properties that list what was put in, under the names of the lists that it was put into."""
EMPTY = (
    b'<?xpacket begin="\xef\xbb\xbf" id="W5M0MpCehiHzreSzNTczkc9d"?>\n'
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/" x:xmptk="hierclass">\n'
    b' <rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">\n </rdf:RDF>\n'
    b'</x:xmpmeta>\n<?xpacket end="w"?>\n'
)
"""A document without properties."""

_LONGEST_KEYWORD = 1 << 16
"""Characters of an entry that may be one of ours; bounds the time to put together a longer one."""
_RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
_SEPARATOR = "\n"
"""Divides namespace and name in what the parser gives; no namespace holds it."""
_TAG = re.compile(rb"""<(?P<name>[^\s/>]+)(?:[^>"']|"[^"]*"|'[^']*')*>""")
_UNWANTED = re.compile(r"[\s,;\x00-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]+")
"""What XML can't hold, and commas and semicolons, at which darktable and Lightroom divide keywords."""
_ENCODINGS = ("utf-8", "utf8", "us-ascii", "ascii")


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
        return f"{self.namespace}{_SEPARATOR}{self.name}"

    @property
    def record(self) -> str:
        """The property that lists what was put into this one; that of paths counts for all lists of paths."""
        return f"{OURS}{_SEPARATOR}{_PATHS.name if self.separator else self.name}"

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
    lists where the document has them. Without a path those of an earlier call are removed. Keywords of others stay.

    Raises:
        InputError: the document is none of XMP in UTF-8, declares a document type, is beyond the bounds, or has a list
            of keywords in an unknown form.
    """
    document = _Document(data)
    path = [name for name in map(_clean, path) if name]
    edits = list[_Edit]()
    new = list[tuple[str, str, list[str]]]()

    def put(key: str, prefix: str, keep: Set[str], more: list[str]) -> None:
        if found := document.lists.get(key):
            edits.extend(document.edit(found, keep, more))
        elif more:
            new.append((key, prefix, more))

    for each in _LISTS:
        if each.only_if_there and each.key not in document.lists:
            continue
        there, ours, others = document.texts(each.key), document.ours(each), document.others(each)
        wanted = each.entries(path)
        # Programs that find this list read no other: what others put into dc:subject has to be here too.
        mirrored = document.others(_SUBJECT) if each.separator and wanted and not others else []
        put(each.key, each.prefix, {*others, *wanted}, _new((*mirrored, *wanted), there))
        if not each.only_if_there:
            record = [text for text in wanted if text in ours or text not in {*there, *mirrored}]
            put(each.record, "hierclass", set(record), _new(record, ours))
    if new:
        edits.append(document.appended(new))
    return _edited(data, edits)


def _new(texts: Iterable[str], there: Set[str]) -> list[str]:
    return [text for text in dict.fromkeys(texts) if text not in there]


def has_keywords(data: bytes) -> bool:
    """Return whether `with_keywords` put something into a document."""
    return OURS.encode() in data


def _clean(name: str) -> str:
    """A class's name as a keyword: what divides paths, and line ends, are no part of one."""
    return _UNWANTED.sub(" ", name).replace("|", "-").replace("/", "-").strip()


class _Edit(NamedTuple):
    """Bytes from `start` to `end` are replaced."""

    start: int
    end: int
    by: bytes


def _edited(data: bytes, edits: list[_Edit]) -> bytes:
    parts, at = list[bytes](), 0
    for edit in sorted(edits):
        parts += [data[at : edit.start], edit.by]
        at = edit.end
    return b"".join([*parts, data[at:]])


@dataclass(slots=True)
class _Element:
    """Where an element is: its start tag from `start` to `inside`, all of it to `end`; its end tag from `close` on."""

    start: int
    inside: int
    name: bytes
    is_empty: bool
    close: int = -1
    end: int = -1

    def filled(self, data: bytes, content: bytes) -> _Edit:
        """Put content into an element that holds none."""
        if not self.is_empty:
            return _Edit(self.inside, self.inside, content)
        tag = data[self.start : self.inside].removesuffix(b"/>").rstrip()
        return _Edit(self.start, self.inside, tag + b">" + content + b"</" + self.name + b">")


@dataclass(slots=True)
class _Item:
    """An entry of a list, and its text; None where it is more than a text."""

    element: _Element
    text: str | None = ""


@dataclass(slots=True)
class _Property:
    """A list of keywords of the document."""

    element: _Element
    array: _Element | None = None
    items: list[_Item] = field(default_factory=list)


class _Document:
    """Finds the lists of keywords of an XMP document by their places in its bytes."""

    def __init__(self, data: bytes) -> None:
        if len(data) > MAX_BYTES:
            raise InputError(f"is larger than {MAX_BYTES >> 20} MiB")
        if b"\0" in data[:4] or data[:2] in (b"\xff\xfe", b"\xfe\xff"):
            raise InputError("is not in UTF-8")
        if data.count(b"=") > MAX_PARTS:  # an attribute has one; the parser is slow with very many
            raise InputError(f"has more than {MAX_PARTS:,} attributes")
        self.lists: dict[str, _Property] = {}
        self._data, self._depth, self._num_elements = data, 0, 0
        self._rdf: _Element | None = None
        self._rdf_depth, self._about, self._described = 0, "", False
        self._property: _Property | None = None
        self._item: _Item | None = None
        self._parse()
        if self._rdf is None:
            raise InputError("holds no XMP")

    def texts(self, key: str) -> set[str]:
        """The entries of a list."""
        found = self.lists.get(key)
        return set() if found is None else {item.text for item in found.items if item.text is not None}

    def ours(self, wanted: _KeywordList) -> set[str]:
        """The entries that were put into a list here."""
        return {text.replace(_PATHS.separator, wanted.separator) for text in self.texts(wanted.record)}

    def others(self, wanted: _KeywordList) -> list[str]:
        """The entries of a list that were not put in here, in order."""
        found, ours = self.lists.get(wanted.key), self.ours(wanted)
        texts = [item.text for item in found.items] if found else []
        return [text for text in texts if text and text not in ours]

    def edit(self, found: _Property, keep: Set[str], more: Sequence[str]) -> list[_Edit]:
        """Remove the entries of a list that are not to be kept, and add more at its end."""
        data, array = self._data, found.array
        if array is None:
            return [found.element.filled(data, _bag("rdf:", more, declare=True))] if more else []
        prefix = array.name.decode().rpartition(":")[0]
        prefix = f"{prefix}:" if prefix else ""
        if array.is_empty:
            return [array.filled(data, _entries(prefix, more, "\n     "))] if more else []
        edits, last, indent = list[_Edit](), array.inside, "\n     "
        if found.items and not (between := data[array.inside : found.items[0].element.start]).strip():
            indent = between.decode()
        for item in found.items:
            if item.text is None or item.text in keep:
                last = item.element.end
                continue
            edits.append(_Edit(self._before_space(item.element.start), item.element.end, b""))
        return [*edits, _Edit(last, last, _entries(prefix, more, indent))] if more else edits

    def appended(self, new: Sequence[tuple[str, str, Sequence[str]]]) -> _Edit:
        """Add properties (key, prefix, entries) in a description of their own, at the end of the document."""
        assert self._rdf is not None
        names = {prefix: key.partition(_SEPARATOR)[0] for key, prefix, _ in new}
        if self._rdf.name != b"rdf:RDF":
            names["rdf"] = _RDF
        spaces = "".join(f'\n    xmlns:{prefix}="{names[prefix]}"' for prefix in names)
        text = f'\n  <rdf:Description rdf:about="{html.escape(self._about)}"{spaces}>'.encode()
        for key, prefix, entries in new:
            name = f"{prefix}:{key.partition(_SEPARATOR)[2]}".encode()
            text += b"\n   <" + name + b">" + _bag("rdf:", entries) + b"\n   </" + name + b">"
        text += b"\n  </rdf:Description>"
        if self._rdf.is_empty:
            return self._rdf.filled(self._data, text + b"\n ")
        at = self._before_space(self._rdf.close)
        return _Edit(at, at, text)

    def _before_space(self, at: int) -> int:
        space = self._data[max(at - 256, 0) : at]
        return at - len(space) + len(space.rstrip())

    # -- parsing

    def _parse(self) -> None:
        parser = self._parser = expat.ParserCreate(namespace_separator=_SEPARATOR)
        parser.buffer_text = True
        parser.XmlDeclHandler = self._declared
        parser.StartDoctypeDeclHandler = self._refuse_doctype
        parser.StartElementHandler = self._start
        parser.EndElementHandler = self._end
        parser.CharacterDataHandler = self._characters
        try:
            parser.Parse(self._data, True)
        except expat.ExpatError:
            raise InputError("is no whole XML") from None
        finally:
            del self._parser  # it holds this object

    def _declared(self, _version: str, encoding: str | None, _standalone: int) -> None:
        if encoding is not None and encoding.lower() not in _ENCODINGS:
            raise InputError("is not in UTF-8")

    def _refuse_doctype(self, *_: object) -> None:
        raise InputError("declares a document type")

    @property
    def _level(self) -> int:
        """How deep below rdf:RDF: 1 a description, 2 a property, 3 its array, 4 an entry; 0 elsewhere."""
        rdf = self._rdf
        return 0 if rdf is None or rdf.end >= 0 else self._depth - self._rdf_depth

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        self._depth += 1
        self._num_elements += 1
        if self._num_elements > MAX_PARTS:
            raise InputError(f"has more than {MAX_PARTS:,} elements")
        if self._rdf is None and name == f"{_RDF}{_SEPARATOR}RDF":
            self._rdf, self._rdf_depth = self._here(), self._depth
            return
        level = self._level
        if level == 1:
            self._described = name == f"{_RDF}{_SEPARATOR}Description"
            if self._described and not _KEYS.isdisjoint(attributes):
                raise _unknown_form()
            self._about = self._about or attributes.get(f"{_RDF}{_SEPARATOR}about", "")
        elif level == 2 and self._described and name in _KEYS:
            if name in self.lists:
                raise _unknown_form()
            self._property = self.lists[name] = _Property(self._here())
        elif self._property is not None:
            self._start_inside(self._property, level, name)

    def _start_inside(self, found: _Property, level: int, name: str) -> None:
        local = name.removeprefix(f"{_RDF}{_SEPARATOR}")
        if level == 3 and local in ("Bag", "Seq", "Alt") and found.array is None:
            found.array = self._here()
        elif level == 4 and local == "li":
            self._item = _Item(self._here())
            found.items.append(self._item)
        elif level > 4 and self._item is not None:
            self._item.text = None
        else:
            raise _unknown_form()

    def _characters(self, text: str) -> None:
        if self._property is None:
            return
        if self._item is None:
            if text.strip():
                raise _unknown_form()
        elif self._level == 4 and self._item.text is not None:
            longer = self._item.text + text
            self._item.text = longer if len(longer) <= _LONGEST_KEYWORD else None

    def _end(self, _name: str) -> None:
        level = self._level
        if self._rdf is not None and self._depth == self._rdf_depth and self._rdf.end < 0:
            self._close(self._rdf)
        elif level == 4 and self._item is not None:
            self._close(self._item.element)
            self._item = None
        elif level == 3 and self._property is not None and self._property.array is not None:
            self._close(self._property.array)
        elif level == 2 and self._property is not None:
            self._close(self._property.element)
            self._property = None
        self._depth -= 1

    def _here(self) -> _Element:
        """The element whose start tag is being parsed."""
        start = self._parser.CurrentByteIndex
        tag = _TAG.match(self._data, start)
        assert tag is not None
        return _Element(start, tag.end(), tag["name"], tag[0].endswith(b"/>"))

    def _close(self, element: _Element) -> None:
        """Note where an element ends, whose end tag is being parsed."""
        element.close = element.end = element.inside
        if not element.is_empty:
            element.close = self._parser.CurrentByteIndex
            element.end = self._data.index(b">", element.close) + 1


def _unknown_form() -> InputError:
    return InputError("lists keywords in a form that is not known")


def _entries(prefix: str, texts: Sequence[str], indent: str) -> bytes:
    return "".join(
        f"{indent}<{prefix}li>{html.escape(text, quote=False)}</{prefix}li>" for text in texts
    ).encode()


def _bag(prefix: str, texts: Sequence[str], *, declare: bool = False) -> bytes:
    space = f' xmlns:rdf="{_RDF}"' if declare else ""
    return (
        f"\n    <{prefix}Bag{space}>".encode()
        + _entries(prefix, texts, "\n     ")
        + f"\n    </{prefix}Bag>".encode()
    )
