"""Under which names the page may be asked, which other pages may ask it, and who a visitor is."""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeAlias

from hierclass.errors import InputError

Headers: TypeAlias = Mapping[str, Sequence[str]]
"""Values of each header by its name in lower case."""

ANY = "*"
"""Given as a name, it allows every name."""
_SHOWN = 80
"""Characters of a foreign name that a refusal repeats, at most."""
_HOST = re.compile(r"(\[[0-9a-f:.]{2,45}\]|[a-z0-9_.-]{1,253})(?::([0-9]{1,5}))?", re.IGNORECASE)
_ORIGIN = re.compile(rf"(https?)://{_HOST.pattern}", re.IGNORECASE)
_DEFAULT_PORTS = {"http": "80", "https": "443"}


class AllowedHosts:
    """The names under which a page may be asked.

    A browser sends the name that stands in its address bar. A website whose name leads to this computer (DNS
    rebinding) has another name than the page, and any other website has another origin: both are told apart here.
    """

    def __init__(self, listens_on: str, also: Iterable[str] = ()) -> None:
        """Allow the names of a page that listens on an address, and those in `also`.

        On a loopback address these are localhost and loopback addresses. On any other they are all addresses
        (numbers), names without a dot or that end in .local, and this computer's name: nobody on the internet can
        own these.

        Raises:
            InputError: what is in `also` is no name.
        """
        self._local = _is_loopback(_name(listens_on))
        self._own = set() if self._local else {_name(listens_on), _name(socket.gethostname())}
        self._added = set[str]()
        self._anything = False
        for name in also:
            self.add(name)

    def add(self, name: str) -> None:
        """Allow another name, such as photos.example.org; `ANY` allows all.

        Raises:
            InputError: it is no name.
        """
        match = _HOST.fullmatch(name.strip())
        if name.strip() != ANY and match is None:
            raise InputError(
                f"{name[:_SHOWN]!r} is no name of a computer; give one such as photos.example.org, "
                "without https:// and without a path"
            )
        self._anything |= match is None
        if match:
            self._added.add(_name(match[1]))

    def refusal(self, headers: Headers, *, changes: bool) -> str | None:
        """Return in a sentence why a request is refused; None if it is not.

        `changes` is whether it is one that changes something (POST). Another website may only lead to the page by a
        link; browsers say of a request whether it is one.
        """
        hosts, origins = headers.get("host", ()), headers.get("origin", ())
        if len(hosts) != 1 or not _HOST.fullmatch(hosts[0]):
            return "A request says once which computer it is for, in a header Host."
        forwarded = [
            part.strip() for value in headers.get("x-forwarded-host", ()) for part in value.split(",")
        ]
        for host in (*hosts, *forwarded):
            if not self._knows(host):
                return (
                    f"This page is not known as {_shown(host)}; whoever runs it can allow a name with "
                    "--allow-host NAME."
                )
        if any(not self._may_ask(origin, hosts[0]) for origin in origins):
            return (
                f"Another website ({_shown(origins[0])}) may not use this page; open the page itself, or have its "
                "name allowed with --allow-host NAME."
            )
        is_link = "navigate" in headers.get("sec-fetch-mode", ()) and not changes
        if "cross-site" in headers.get("sec-fetch-site", ()) and not is_link:
            return "Another website may not use this page; open the page itself."
        return None

    def _knows(self, host: str) -> bool:
        match = _HOST.fullmatch(host)
        if match is None:
            return False
        name = _name(match[1])
        if self._anything or name in self._added or _is_loopback(name):
            return True
        if self._local:
            return False
        return name in self._own or "." not in name or name.endswith(".local") or _address(name) is not None

    def _may_ask(self, origin: str, host: str) -> bool:
        """Whether a page of an origin may ask: it is this page itself, or one of a name that was added."""
        match, own = _ORIGIN.fullmatch(origin), _HOST.fullmatch(host)
        if match is None or own is None:
            return False
        usual = _DEFAULT_PORTS[match[1].lower()]
        same = (_name(match[2]), match[3] or usual) == (_name(own[1]), own[2] or usual)
        return same or _name(match[2]) in self._added


def visitor_of(address: str | None) -> str:
    """Return who asks from an address, for limits per visitor: the address, of IPv6 its first 64 bits.

    Whoever has one address of IPv6 has as many as they like with the same 64 bits. Text that is no address, as a web
    server in front may write, is itself.
    """
    found = _address(address or "")
    if isinstance(found, ipaddress.IPv6Address):
        return str(ipaddress.IPv6Network((int(found) >> 64 << 64, 64)))
    return str(found) if found else (address or "")[:_SHOWN]


def _name(host: str) -> str:
    """The name in a header, as names are compared: in lower case, without brackets and the dot of the root."""
    name = host.strip("[]").lower().removesuffix(".")
    found = _address(name)
    return str(found) if found else name


def _address(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        found = ipaddress.ip_address(name)
    except ValueError:
        return None
    return getattr(found, "ipv4_mapped", None) or found


def _is_loopback(name: str) -> bool:
    found = _address(name)
    return found.is_loopback if found else name == "localhost" or name.endswith(".localhost")


def _shown(text: str) -> str:
    """A name that a request gives, for a sentence: nothing but plain characters."""
    return re.sub(r"[^\w.:/\[\]-]", "?", text[:_SHOWN], flags=re.ASCII) or "nothing"
