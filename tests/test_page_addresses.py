"""Names under which the page may be asked, other websites, and who a visitor is."""

from __future__ import annotations

import pytest

from hierclass.errors import InputError
from hierclass.page.addresses import AllowedHosts, visitor_of


def refused(hosts: AllowedHosts, host: str, origin: str | None = None, **more: str) -> bool:
    headers = {"host": [host], **({"origin": [origin]} if origin else {})}
    headers |= {name.replace("_", "-"): [value] for name, value in more.items()}
    return hosts.refusal(headers, changes=True) is not None


LOCAL = AllowedHosts("127.0.0.1")
OPEN = AllowedHosts("0.0.0.0")


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "LocalHost:1",
        "localhost.:7860",
        "127.0.0.1:7860",
        "127.1.2.3",
        "[::1]:7860",
        "[::ffff:127.0.0.1]",
    ],
)
def test_a_page_of_this_computer_is_asked_by_local_names(host: str) -> None:
    assert not refused(LOCAL, host)
    assert not refused(OPEN, host)


@pytest.mark.parametrize(
    "host", ["192.168.1.5:7860", "[2001:db8::1]", "nas", "my_service:7860", "printer.local"]
)
def test_a_page_of_the_network_is_also_asked_by_names_that_no_stranger_can_own(host: str) -> None:
    assert refused(LOCAL, host)
    assert not refused(OPEN, host)


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "127.0.0.1.evil.example",
        "localhost.evil.example:7860",
        "me@127.0.0.1",
        "127.0.0.1:80:80",
        "127.0.0.1/x",
        "127.0.0.1 ",
        "[::1",
        "",
        "127.0.0.1, evil.example",
        "b\xfccher.example",
    ],
)
def test_another_name_is_refused(host: str) -> None:
    assert refused(LOCAL, host)
    assert refused(OPEN, host)


def test_a_request_names_one_host() -> None:
    for hosts in ([], ["127.0.0.1", "127.0.0.1"]):
        assert "once" in str(LOCAL.refusal({"host": hosts}, changes=False))


@pytest.mark.parametrize(
    ("host", "origin", "allowed"),
    [
        ("127.0.0.1:7860", "http://127.0.0.1:7860", True),
        ("127.0.0.1:7860", "http://127.0.0.1:3000", False),
        ("127.0.0.1:7860", "http://localhost:7860", False),
        ("127.0.0.1:7860", "null", False),
        ("127.0.0.1:7860", "https://evil.example", False),
        ("127.0.0.1:7860", "chrome-extension://abc", False),
        ("localhost", "http://localhost", True),
        ("localhost", "https://localhost", True),
        ("localhost:443", "https://localhost", True),
        ("localhost:443", "http://localhost", False),
        ("[::1]:7860", "http://[::1]:7860", True),
    ],
)
def test_a_website_asks_only_where_it_is_the_page_itself(host: str, origin: str, allowed: bool) -> None:
    assert refused(LOCAL, host, origin) is not allowed


def test_another_website_may_lead_to_the_page_and_do_no_more() -> None:
    link = {"host": ["localhost"], "sec-fetch-site": ["cross-site"], "sec-fetch-mode": ["navigate"]}
    assert LOCAL.refusal(link, changes=False) is None
    assert LOCAL.refusal(link, changes=True) is not None
    assert LOCAL.refusal({**link, "sec-fetch-mode": ["no-cors"]}, changes=False) is not None


@pytest.mark.parametrize("name", ["photos.example.org", "Photos.Example.org:8443", " photos.example.org. "])
def test_a_name_that_is_allowed_is_known_at_every_port(name: str) -> None:
    hosts = AllowedHosts("127.0.0.1", [name])
    assert not refused(hosts, "photos.example.org", "https://photos.example.org")
    assert not refused(hosts, "photos.example.org", "https://photos.example.org:8443")
    assert not refused(hosts, "127.0.0.1:7860", "https://photos.example.org")  # as nginx hands it on
    assert refused(hosts, "photos.example.org", "https://evil.example")
    assert refused(hosts, "other.example.org")


def test_the_name_that_a_web_server_hands_on_is_checked_too() -> None:
    assert refused(LOCAL, "127.0.0.1", x_forwarded_host="evil.example")
    assert refused(LOCAL, "127.0.0.1", x_forwarded_host="localhost, evil.example")
    assert not refused(AllowedHosts("127.0.0.1", ["a.example"]), "127.0.0.1", x_forwarded_host="a.example")


def test_every_name_can_be_allowed_and_other_websites_are_refused_still() -> None:
    hosts = AllowedHosts("0.0.0.0", ["*"])
    assert not refused(hosts, "x.example", "http://x.example")
    assert refused(hosts, "x.example", "http://y.example")


@pytest.mark.parametrize("name", ["https://photos.example.org/", "a b", "", "*.example.org"])
def test_what_is_no_name_can_not_be_allowed(name: str) -> None:
    with pytest.raises(InputError, match="without https"):
        AllowedHosts("127.0.0.1", [name])


def test_a_visitor_is_an_address_and_of_ipv6_a_network() -> None:
    assert visitor_of("10.0.0.1") == visitor_of("::ffff:10.0.0.1") == "10.0.0.1"
    assert visitor_of("2001:db8::1") == visitor_of("2001:db8:0:0:ff::2") == "2001:db8::/64"
    assert visitor_of("2001:db8:0:1::1") != visitor_of("2001:db8::1")
    assert visitor_of("::1") == "::/64"
    assert visitor_of(None) == ""
    assert visitor_of("x" * 1000) == "x" * 80
