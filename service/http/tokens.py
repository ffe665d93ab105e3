"""Tokens: who may use a service. The data folder has their hashes, in the file `tokens.json`.

    {"format": 1, "tokens": [{"id": "3f9a2c71", "sha256": "9f86d0...", "scopes": ["predict"], "models": ["clicks"],
                              "rate": 1000.0, "name": "shop", "created_at": 1767225600.0,
                              "expires_at": 1775001600.0}]}

A token is `logstep_`, its id, `_` and 256 random bits. Nobody can guess those, so a plain SHA-256 is enough. Slow
hashes are for passwords and would only slow the service down. The file is replaced by a rename, so a running service
reads the old one or the new one. Only its owner may read it.

This module imports nothing slow, so that the commands that make tokens answer at once.
"""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import logging
import math
import os
import re
import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from service import errors, failures

logger = logging.getLogger("logstep")

FILE = "tokens.json"
FORMAT = 1
Scope = Literal["predict", "learn", "admin"]
SCOPES: tuple[Scope, ...] = ("predict", "learn", "admin")
ANY = "any"
"""What every token may do."""
SHORTEST = 32
"""Fewest characters of a token from the environment, because people make those."""
LOOK_SECONDS = 0.5
"""How often a running service checks whether the file has changed."""
REMEMBERED = 1_024
"""How many valid tokens are remembered as clients sent them, to save hashing."""
_ENVIRONMENT = "environment"
_PREFIX = "logstep_"
_YEAR_10000 = 253_402_300_800.0
_PRINTABLE = re.compile(r"[!-~]+")


class Token(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the file knows of a token.

    models: those it may use, None for all. rate: events a second, None for no limit. name: for people. created_at,
    expires_at: seconds since 1970; None if it does not expire.
    """

    id: str
    sha256: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
    scopes: tuple[Scope, ...]
    models: tuple[str, ...] | None = None
    rate: Annotated[float, msgspec.Meta(gt=0)] | None = None
    name: str = ""
    created_at: Annotated[float, msgspec.Meta(ge=0, lt=_YEAR_10000)] = 0.0
    expires_at: Annotated[float, msgspec.Meta(gt=0, lt=_YEAR_10000)] | None = None

    @property
    def expired(self) -> bool:
        return self.expires_at is not None and time.time() >= self.expires_at


class _File(msgspec.Struct, forbid_unknown_fields=True):
    format: int
    tokens: list[Token]


# -- the file


def read(folder: Path) -> list[Token]:
    """The tokens of a data folder; none if there is no file."""
    path = folder / FILE
    if path.exists() and not path.is_file():  # a pipe would be waited for, for ever
        raise failures.TokensUnreadable(path=str(path), reason="it is not a file")
    try:
        found = msgspec.json.decode(path.read_bytes(), type=_File)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise failures.TokensUnreadable(path=str(path), reason=error.strerror) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise failures.TokensUnreadable(path=str(path), reason=str(error)) from None
    if found.format != FORMAT:
        raise failures.TokensUnreadable(
            path=str(path), reason=f"its format is {found.format}, but this logstep reads {FORMAT}"
        )
    return found.tokens


def create(
    folder: Path,
    scopes: Sequence[Scope],
    models: Sequence[str] | None,
    rate: float | None,
    name: str = "",
    seconds: float | None = None,
) -> tuple[str, Token]:
    """Make a token. Returns its text, which is stored nowhere, and what the file knows of it. `seconds`: how long it is
    valid."""
    with _changing(folder) as tokens:
        id_ = secrets.token_hex(4)
        while any(token.id == id_ for token in tokens):
            id_ = secrets.token_hex(4)
        text = f"{_PREFIX}{id_}_{secrets.token_urlsafe(32)}"
        sha256 = hashlib.sha256(text.encode()).hexdigest()
        reach = None if models is None else tuple(models)
        now = time.time()
        expires_at = None if seconds is None else now + seconds
        tokens.append(Token(id_, sha256, tuple(scopes), reach, rate, name, now, expires_at))
    return text, tokens[-1]


def revoke(folder: Path, id_: str) -> int:
    """Revoke a token. Returns how many are left."""
    with _changing(folder) as tokens:
        left = [token for token in tokens if token.id != id_]
        if len(left) == len(tokens):
            raise failures.UnknownToken(folder=str(folder), id=id_[:100])
        tokens[:] = left
    return len(left)


@contextmanager
def _changing(folder: Path) -> Iterator[list[Token]]:
    """The tokens, to change in place. They are on disk when the block ends. Only one process at a time."""
    folder.mkdir(parents=True, exist_ok=True)
    directory = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(directory, fcntl.LOCK_EX)
        tokens = read(folder)
        yield tokens
        _replace(folder / FILE, msgspec.json.format(msgspec.json.encode(_File(FORMAT, tokens)), indent=2) + b"\n")
        os.fsync(directory)
    finally:
        os.close(directory)


def _replace(path: Path, data: bytes) -> None:
    """Write a file that only its owner may read, under another name, and rename it."""
    new = path.with_name(f"{path.name}.new")
    new.unlink(missing_ok=True)  # left by a kill
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
        if os.geteuid() == 0:  # the service may run as the folder's owner, who must read it
            owner = path.parent.stat()
            os.fchown(file.fileno(), owner.st_uid, owner.st_gid)
    new.rename(path)


# -- the environment


def given(token_file: Path | None) -> str | None:
    """The token in a file (by default the one LOGSTEP_TOKEN_FILE names), else in LOGSTEP_TOKEN, else None."""
    if token_file is None and os.environ.get("LOGSTEP_TOKEN_FILE"):
        token_file = Path(os.environ["LOGSTEP_TOKEN_FILE"])
    if token_file is None:
        text = os.environ.get("LOGSTEP_TOKEN")
        return None if text is None else _checked(text, "LOGSTEP_TOKEN")
    try:
        return _checked(token_file.read_text().strip(), f"the token in {token_file}")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise failures.BadToken(source=str(token_file), reason=f"cannot be read: {reason}") from None


def _checked(text: str, source: str) -> str:
    if len(text) < SHORTEST:
        raise failures.BadToken(source=source, reason=f"has {len(text)} characters, but needs at least {SHORTEST}")
    if not _PRINTABLE.fullmatch(text):
        raise failures.BadToken(source=source, reason="may have only ASCII letters, digits and signs, and no space")
    return text


# -- a running service


class Pace:
    """Limits a token to its rate: a second's worth of events, which refills.

    A request may take more than is left, or a long body could never pass. Later requests then wait until the average
    fits.
    """

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._most = self._left = max(rate, 1.0)
        self._at = time.monotonic()

    @property
    def wait_seconds(self) -> float:
        """Seconds until another event may be taken; 0 if one may be taken now."""
        now = time.monotonic()
        self._left = min(self._most, self._left + self._rate * (now - self._at))
        self._at = now
        return max(0.0, (1.0 - self._left) / self._rate)

    def begin(self) -> None:
        """Take an event, or refuse the request with TooFast."""
        seconds = self.wait_seconds
        if seconds > 0:
            raise errors.TooFast(rate=self._rate, retry_after=math.ceil(seconds))
        self._left -= 1.0

    def take(self, events: float) -> None:
        self._left -= events


class Grant:
    """What the token of a request may do.

    id: the owner of the predictions that are stored for it. models: None for all. pace: None for no limit.
    """

    __slots__ = ("digest", "id", "may", "models", "pace", "token")

    def __init__(self, token: Token) -> None:
        self.token = token
        self.id = token.id
        self.digest = bytes.fromhex(token.sha256)
        self.may = frozenset([ANY, *(SCOPES if "admin" in token.scopes else token.scopes)])
        self.models = None if token.models is None else frozenset(token.models)
        self.pace = None if token.rate is None else Pace(token.rate)

    @property
    def allows(self) -> tuple[str, frozenset[str], frozenset[str] | None]:
        """Who may do what: everything but the rate and the name."""
        return self.token.sha256, self.may, self.models

    def reaches(self, model: str) -> bool:
        """Whether the token may use a model."""
        return self.models is None or model in self.models

    @property
    def may_learn(self) -> bool:
        return "learn" in self.may

    def may_see(self, owner: str) -> bool:
        """Whether the token may see what is stored for this owner: the owner may, and whoever may learn from it."""
        return self.may_learn or self.id == owner


EVERYONE = Grant(Token("", "", SCOPES))
"""What a request without a token may do, if none is required."""


class Tokens:
    """The tokens that a running service knows: those in its folder, kept up to date, and the one in the environment."""

    def __init__(self, folder: Path, admin: str | None) -> None:
        self._folder = folder
        self._admin = None
        if admin is not None:
            sha256 = hashlib.sha256(admin.encode()).hexdigest()
            self._admin = Grant(Token(_ENVIRONMENT, sha256, ("admin",)))
        self._grants: dict[str, Grant] = {}
        self._seen: dict[bytes, Grant] = {}
        self._look_after = time.monotonic() + LOOK_SECONDS
        self._stamp = stamp_of(folder / FILE)
        self._take(read(folder))
        self.exist = bool(self._grants) or admin is not None
        """Whether there are any, or were since the start. Revoking the last token does not open the service."""

    def look(self) -> None:
        """Read the file again if it has changed. Checks at most twice a second."""
        now = time.monotonic()
        if now < self._look_after:
            return
        self._look_after = now + LOOK_SECONDS
        stamp = stamp_of(self._folder / FILE)
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            self._take(read(self._folder))
        except failures.TokensUnreadable as unreadable:
            logger.warning("%s The tokens read before stay valid.", unreadable)
        else:
            logger.info("%d token(s) in %s", len(self._grants), self._folder / FILE)
        self.exist = self.exist or bool(self._grants)

    def grant(self, authorization: bytes) -> Grant | None:
        """What the token in an Authorization header may do; None if it is not a token of this service.

        Valid tokens are remembered as clients sent them. The time of the look-up reveals nothing, because Python hashes
        with a random key before it compares.
        """
        return self._seen.get(authorization) or self._find(authorization)

    def check(self, grant: Grant) -> None:
        """Raise Unauthorized if the token has been revoked or changed meanwhile, or has expired."""
        now = self._admin if grant is self._admin else self._grants.get(grant.id)
        if now is None or now.allows != grant.allows:
            raise errors.Unauthorized(sent=True)
        if now.token.expired:
            raise errors.Unauthorized(sent=True, expired_at=now.token.expires_at)

    def _find(self, authorization: bytes) -> Grant | None:
        scheme, _, text = authorization.partition(b" ")
        if scheme.lower() != b"bearer":
            return None
        digest = hashlib.sha256(text.strip()).digest()
        id_ = text.strip()[len(_PREFIX) :].partition(b"_")[0].decode("latin-1")
        for grant in (self._grants.get(id_), self._admin):
            if grant is not None and hmac.compare_digest(grant.digest, digest):
                if len(self._seen) >= REMEMBERED:
                    self._seen.clear()
                self._seen[authorization] = grant
                return grant
        return None

    def _take(self, tokens: Sequence[Token]) -> None:
        """Replace the known tokens. A token that stays the same keeps what is left of its rate."""
        before, self._grants = self._grants, {}
        for token in tokens:
            known = before.get(token.id)
            self._grants[token.id] = known if known is not None and known.token == token else Grant(token)
        self._seen.clear()


def stamp_of(file: Path) -> tuple[int, int, int] | None:
    """Changes when a file is replaced or written. Follows symbolic links, which Kubernetes replaces."""
    try:
        found = file.stat()
    except OSError:  # there is none, or it is between two renames
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size
