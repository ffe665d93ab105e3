"""The head of a request: its size, and what is wrong with it, whatever it asks."""

from __future__ import annotations

from service import errors

Headers = list[tuple[bytes, bytes]]

_FIELD_BYTES = len(b": \r\n")
_ONCE = {b"host", b"content-type", b"authorization", b"origin"}
"""Headers that the service trusts. If one came twice, a proxy in front might have looked at the other one."""
_OFFER = (b"upgrade", b"http2-settings")


class HeadSize:
    """Bounds of the size of the current or last head, in bytes, while the bytes arrive. One read may also contain
    other heads, or bodies."""

    __slots__ = ("_begins", "_read", "at_least", "at_most", "between", "in_head")

    def __init__(self) -> None:
        self.in_head = True
        self.at_most = self.at_least = 0
        self.between = True
        """Whether no message has begun that has not ended."""
        self._begins = True
        """Whether that was so when the last read began, and no message has begun in it."""
        self._read = 0

    def read(self, size: int) -> None:
        """So many more bytes are about to be read."""
        self._read = size
        self.at_most += size
        self.at_least += size
        self._begins = self.between

    def begin(self) -> None:
        """A message begins, somewhere in these bytes."""
        self.in_head, self.at_most = True, self._read
        self.at_least = self._read if self._begins else 0
        self._begins = self.between = False


def size_of(url: bytes, headers: Headers) -> int:
    """The size of a head, without its blanks."""
    return len(url) + sum(len(name) + len(value) + _FIELD_BYTES for name, value in headers)


def wrong_with(headers: Headers, version: str, host: bytes | None) -> errors.UnclearHead | None:
    """What can be understood in two ways. `host`: the name in the first line, if it is in absolute form.

    >>> print(wrong_with([(b"host", b"a"), (b"host", b"b")], "1.1", None))
    The head of the request has the header host more than once. It can be read in two ways, so the service refuses it.
    """
    fields = dict(headers)
    if len(fields) < len(headers):
        names = [name for name, _ in headers]
        for name in _ONCE:
            if names.count(name) > 1:
                return errors.UnclearHead(reason=f"has the header {name.decode()} more than once")
    if b"transfer-encoding" in fields:
        codings = b", ".join(value for name, value in headers if name == b"transfer-encoding")
        if version != "1.1" or codings.lower() != b"chunked":
            shown = codings.decode("latin-1")[:100]
            return errors.UnclearHead(reason=f"has the transfer coding {shown!r} in HTTP/{version}")
    if host and not _is_of(host, fields.get(b"host", b"")):
        return errors.UnclearHead(reason="names one host in its first line and another in the header host")
    return None


def _is_of(host: bytes, told: bytes) -> bool:
    """Whether the header Host has this name, with any port."""
    name = told if told.endswith(b"]") else told.rpartition(b":")[0] or told
    return name.strip(b"[]").lower() == host.lower()


def without_offer(line: bytes, headers: Headers) -> bytes:
    """A head without the offer of another protocol."""
    fields = [b"%b: %b\r\n" % field for field in headers if field[0] not in _OFFER]
    return b"".join([line, *fields, b"\r\n"])
