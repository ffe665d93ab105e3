"""The head of a request: what can be understood in two ways, and how large it may be."""

from __future__ import annotations

import pytest

from service.http.heads import Headers, HeadSize, size_of, without_offer, wrong_with

HOST = (b"host", b"localhost:8000")
CHUNKED = (b"transfer-encoding", b"Chunked")


@pytest.mark.parametrize(
    ("headers", "version", "host", "wrong"),
    [
        ([HOST], "1.1", None, None),
        ([HOST, (b"accept", b"a"), (b"accept", b"b")], "1.1", None, None),
        ([HOST, HOST], "1.1", None, "host more than once"),
        ([HOST, (b"origin", b"a"), (b"origin", b"b")], "1.1", None, "origin more than once"),
        ([HOST, CHUNKED], "1.1", None, None),
        ([HOST, CHUNKED], "1.0", None, "HTTP/1.0"),
        ([HOST, (b"transfer-encoding", b"gzip"), CHUNKED], "1.1", None, "gzip, Chunked"),
        ([HOST], "1.1", b"LOCALHOST", None),
        ([HOST], "1.1", b"elsewhere", "one host in its first line"),
        ([(b"host", b"[::1]:80")], "1.1", b"::1", None),
        ([(b"host", b"[::1]")], "1.1", b"::1", None),
        ([], "1.1", b"localhost", "one host in its first line"),
    ],
)
def test_what_can_be_understood_in_two_ways(
    headers: Headers, version: str, host: bytes | None, wrong: str | None
) -> None:
    found = wrong_with(headers, version, host)
    assert (found is None) == (wrong is None)
    assert wrong is None or wrong in str(found)


def test_the_size_of_a_head_is_bounded_from_both_sides_while_it_arrives() -> None:
    size = HeadSize()
    size.read(100)  # a head begins, somewhere in these bytes
    size.begin()
    assert (size.at_least, size.at_most) == (100, 100)
    size.read(50)
    assert (size.at_least, size.at_most) == (150, 150)
    size.in_head, size.between = False, True  # it ends in them, and so does its message
    size.read(60)
    size.begin()
    size.between = True
    size.begin()  # a second one in the same bytes: how many of them are its own is not known
    assert (size.at_least, size.at_most) == (0, 60)
    size.read(10)
    assert (size.at_least, size.at_most) == (10, 70)


def test_a_head_without_its_offer_keeps_all_else() -> None:
    headers = [HOST, (b"upgrade", b"h2c"), (b"http2-settings", b"AAMA"), (b"connection", b"upgrade")]
    line = b"POST /learn HTTP/1.1\r\n"
    assert without_offer(line, headers) == line + b"host: localhost:8000\r\nconnection: upgrade\r\n\r\n"
    assert size_of(b"/learn", [HOST]) == len(b"/learnhost: localhost:8000\r\n")
