"""Find lists of texts in an XMP document, and change them there; every other byte of it stays as it is."""

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
EMPTY = (
    b'<?xpacket begin="\xef\xbb\xbf" id="W5M0MpCehiHzreSzNTczkc9d"?>\n'
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/" x:xmptk="hierclass">\n'
    b' <rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">\n </rdf:RDF>\n'
    b'</x:xmpmeta>\n<?xpacket end="w"?>\n'
)
"""A document without properties."""

SEPARATOR = "\n"
"""Divides namespace and name in what the parser gives; no namespace holds it."""

_LONGEST_TEXT = 1 << 16
"""Characters of an entry that is read; bounds the time to put together a longer one."""
_RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
_ABOUT = f"{_RDF}{SEPARATOR}about"
_TAG = re.compile(rb"""<(?P<name>[^\s/>]+)(?:[^>"']|"[^"]*"|'[^']*')*>""")
_ENCODINGS = ("utf-8", "utf8", "us-ascii", "ascii")
_ADVICE = "have its program save it anew, or move it away"


class Edit(NamedTuple):
    """Bytes from `start` to `end` are replaced."""

    start: int
    end: int
    by: bytes


def edited(data: bytes, edits: Iterable[Edit]) -> bytes:
    """Return a document with edits, which do not overlap."""
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

    def filled(self, data: bytes, content: bytes) -> Edit:
        """Put content into an element that holds none."""
        if not self.is_empty:
            return Edit(self.inside, self.inside, content)
        tag = data[self.start : self.inside].removesuffix(b"/>").rstrip()
        return Edit(self.start, self.inside, tag + b">" + content + b"</" + self.name + b">")


@dataclass(slots=True)
class _Item:
    """An entry of a list, and its text; None where it is more than a text."""

    element: _Element
    text: str | None = ""


@dataclass(slots=True)
class _Description:
    """A description, and how many properties it has, as elements and as attributes."""

    element: _Element
    size: int


@dataclass(slots=True)
class Property:
    """A list of the document."""

    element: _Element
    within: _Description
    array: _Element | None = None
    items: list[_Item] = field(default_factory=list)


class XmpDocument:
    """Finds properties of an XMP document that are lists of texts, by their places in its bytes."""

    def __init__(self, data: bytes, keys: Set[str]) -> None:
        """Parse a document and find the lists that are called `keys`: namespace, `SEPARATOR` and name.

        Raises:
            InputError: it is no XMP in UTF-8, declares a document type, is beyond the bounds, or has such a property in
                an unknown form; the message says what to do.
        """
        if len(data) > MAX_BYTES:
            raise InputError(f"is larger than {MAX_BYTES >> 20} MiB; {_ADVICE}")
        if b"\0" in data[:4] or data[:2] in (b"\xff\xfe", b"\xfe\xff"):
            raise InputError(f"is not in UTF-8; {_ADVICE}")
        if data.count(b"=") > MAX_PARTS:  # an attribute has one; the parser is slow with very many
            raise InputError(f"has more than {MAX_PARTS:,} attributes; {_ADVICE}")
        self.lists: dict[str, Property] = {}
        self._keys = keys
        self._data, self._depth, self._num_elements = data, 0, 0
        self._rdf: _Element | None = None
        self._rdf_depth, self._about = 0, ""
        self._described: _Description | None = None
        self._property: Property | None = None
        self._item: _Item | None = None
        self._parse()
        if self._rdf is None:
            raise InputError(f"holds no XMP; {_ADVICE}")

    def texts(self, key: str) -> set[str]:
        """The entries of a list."""
        found = self.lists.get(key)
        return set() if found is None else {item.text for item in found.items if item.text is not None}

    def without(self, emptied: Sequence[Property]) -> set[Edit]:
        """Remove whole lists, and the descriptions that hold nothing else."""
        cut = set[Edit]()
        for found in emptied:
            within = found.within
            alone = within.size == sum(each.within is within for each in emptied)
            element = within.element if alone else found.element
            cut.add(Edit(self._before_space(element.start), element.end, b""))
        return cut

    def edit(self, found: Property, keep: Set[str], more: Sequence[str]) -> list[Edit]:
        """Remove the entries of a list that are not to be kept, and add more at its end; one of the two stays."""
        data, array = self._data, found.array
        if array is None:
            return [found.element.filled(data, _bag("rdf:", more, declare=True))]
        prefix = array.name.decode().rpartition(":")[0]
        prefix = f"{prefix}:" if prefix else ""
        if array.is_empty:
            return [array.filled(data, _entries(prefix, more, "\n     "))]
        edits, last, indent = list[Edit](), array.inside, "\n     "
        if found.items and not (between := data[array.inside : found.items[0].element.start]).strip():
            indent = between.decode()
        for item in found.items:
            if item.text is None or item.text in keep:
                last = item.element.end
                continue
            edits.append(Edit(self._before_space(item.element.start), item.element.end, b""))
        return [*edits, Edit(last, last, _entries(prefix, more, indent))] if more else edits

    def appended(self, new: Sequence[tuple[str, str, Sequence[str]]]) -> Edit:
        """Add properties (key, prefix, entries) in a description of their own, at the end of the document."""
        assert self._rdf is not None
        names = {prefix: key.partition(SEPARATOR)[0] for key, prefix, _ in new}
        if self._rdf.name != b"rdf:RDF":
            names["rdf"] = _RDF
        spaces = "".join(f'\n    xmlns:{prefix}="{names[prefix]}"' for prefix in names)
        text = f'\n  <rdf:Description rdf:about="{html.escape(self._about)}"{spaces}>'.encode()
        for key, prefix, entries in new:
            name = f"{prefix}:{key.partition(SEPARATOR)[2]}".encode()
            text += b"\n   <" + name + b">" + _bag("rdf:", entries) + b"\n   </" + name + b">"
        text += b"\n  </rdf:Description>"
        if self._rdf.is_empty:
            return self._rdf.filled(self._data, text + b"\n ")
        at = self._before_space(self._rdf.close)
        return Edit(at, at, text)

    def _before_space(self, at: int) -> int:
        space = self._data[max(at - 256, 0) : at]
        return at - len(space) + len(space.rstrip())

    # -- parsing

    def _parse(self) -> None:
        parser = self._parser = expat.ParserCreate(namespace_separator=SEPARATOR)
        parser.buffer_text = True
        parser.XmlDeclHandler = self._declared
        parser.StartDoctypeDeclHandler = self._refuse_doctype
        parser.StartElementHandler = self._start
        parser.EndElementHandler = self._end
        parser.CharacterDataHandler = self._characters
        try:
            parser.Parse(self._data, True)
        except expat.ExpatError as error:
            raise InputError(f"is no whole XML ({error}); {_ADVICE}") from None
        finally:
            del self._parser  # it holds this object

    def _declared(self, _version: str, encoding: str | None, _standalone: int) -> None:
        if encoding is not None and encoding.lower() not in _ENCODINGS:
            raise InputError(f"is not in UTF-8; {_ADVICE}")

    def _refuse_doctype(self, *_: object) -> None:
        raise InputError("declares a document type; take its <!DOCTYPE …> out, or move it away")

    @property
    def _level(self) -> int:
        """How deep below rdf:RDF: 1 a description, 2 a property, 3 its array, 4 an entry; 0 elsewhere."""
        rdf = self._rdf
        return 0 if rdf is None or rdf.end >= 0 else self._depth - self._rdf_depth

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        self._depth += 1
        self._num_elements += 1
        if self._num_elements > MAX_PARTS:
            raise InputError(f"has more than {MAX_PARTS:,} elements; {_ADVICE}")
        if self._rdf is None and name == f"{_RDF}{SEPARATOR}RDF":
            self._rdf, self._rdf_depth = self._here(), self._depth
            return
        level = self._level
        if level == 1:
            self._described = None
            if name == f"{_RDF}{SEPARATOR}Description":
                if not self._keys.isdisjoint(attributes):
                    raise _unknown_form()
                self._described = _Description(self._here(), len(attributes.keys() - {_ABOUT}))
            self._about = self._about or attributes.get(_ABOUT, "")
        elif level == 2 and self._described is not None:
            self._described.size += 1
            if name in self._keys:
                if name in self.lists:
                    raise _unknown_form()
                self._property = self.lists[name] = Property(self._here(), self._described)
        elif self._property is not None:
            self._start_inside(self._property, level, name)

    def _start_inside(self, found: Property, level: int, name: str) -> None:
        local = name.removeprefix(f"{_RDF}{SEPARATOR}")
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
            self._item.text = longer if len(longer) <= _LONGEST_TEXT else None

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
        elif level == 1 and self._described is not None:
            self._close(self._described.element)
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
    return InputError(f"lists keywords in a form that is not known; {_ADVICE}")


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
