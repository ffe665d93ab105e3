"""The commands' HTTP client for a running service, and its errors."""

from __future__ import annotations

import os
import re
import ssl
from collections.abc import Iterable
from typing import Any, TypeVar
from urllib.parse import quote

import httpx
import msgspec

from service import replies
from service.commands.terminal import Failed
from service.events import JSON, NDJSON, Event, Label

Predicted = TypeVar("Predicted", replies.Predicted, replies.PredictedKept)

_encode_lines = msgspec.json.Encoder().encode_lines
_predicted = msgspec.json.Decoder(replies.Predicted)
_predicted_kept = msgspec.json.Decoder(replies.PredictedKept)

TIMEOUT_SECONDS = 60.0
"""A service that is silent for longer on a request counts as not answering."""


class NoAnswer(Failed):
    """No reply came. `sent`: whether the service may have received the request and acted on it."""

    def __init__(self, url: str, error: httpx.TransportError) -> None:
        reason = re.sub(r"^\[Errno -?\d+\] ", "", str(error)) or type(error).__name__
        self.sent = not isinstance(error, httpx.ConnectError | httpx.ConnectTimeout | httpx.UnsupportedProtocol)
        super().__init__(
            f"the connection to {url} was lost ({reason})"
            if self.sent
            else f"no service answers at {url}; start one with `logstep serve` ({reason})"
        )


class Refused(Failed):
    """The service answered with an error. `problem` is its problem document, without `detail` if it is not logstep."""

    def __init__(self, url: str, reply: httpx.Response) -> None:
        self.status = reply.status_code
        self.problem = _json_object(reply)
        super().__init__(
            str(self.problem.get("detail") or f"{url} answered {self.status}, but not like a logstep service")
        )
        after = reply.headers.get("retry-after", "")
        self.retry_after = float(after) if after.isdecimal() else 0.0
        """Seconds."""

    @property
    def kind(self) -> str:
        """The error's name: "not-ready"."""
        return str(self.problem.get("type", "")).rpartition(":")[2]

    @property
    def line(self) -> int:
        """The line of a stream that the error names, from 1; 0 if it names none."""
        line = self.problem.get("line")
        return line if isinstance(line, int) else 0


class Client:
    """A running service. Every method raises NoAnswer or Refused if it fails."""

    def __init__(self, url: str, token: str | None = None) -> None:
        self.url = url.rstrip("/")
        # A proxy from the environment cannot reach this machine.
        local = httpx.URL(self.url).host in ("127.0.0.1", "localhost", "::1")
        self._http = httpx.Client(
            timeout=httpx.Timeout(TIMEOUT_SECONDS, connect=5.0),
            trust_env=not local,
            headers={"authorization": f"Bearer {token}"} if token else {},
            verify=_trusted(),
        )

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def alive(self) -> None:
        """Return if a service answers at all."""
        self._call("status", "GET", "/livez")

    def ready(self) -> None:
        """Return if the service takes requests."""
        self._call("status", "GET", "/readyz")

    def models(self) -> list[dict[str, Any]]:
        """Name, rule and seq of each model."""
        return list(self._call("models", "GET", "/models")["models"])

    def model(self, name: str) -> dict[str, Any]:
        """The reply of GET /models/{model}."""
        return self._call("seq", "GET", _path(name))

    def curve(self, name: str) -> dict[str, Any]:
        """The reply of GET /models/{model}/curve."""
        return self._call("seq", "GET", f"{_path(name)}/curve")

    def create(self, name: str, spec: bytes) -> dict[str, Any]:
        """Create a model with a spec (JSON) unless it exists; returns its spec, seq and whether it was `created`."""
        return self._call("created", "PUT", _path(name), spec, JSON)

    def delete(self, name: str) -> None:
        """Remove a model."""
        self._send("DELETE", _path(name))

    def resume(self, name: str) -> dict[str, Any]:
        """Let a model learn again after its breaker has stopped it; returns its name, seq and breaker."""
        return self._call("seq", "POST", f"{_path(name)}/resume")

    def crosscheck(self, name: str) -> dict[str, Any]:
        """The cross-check of a model's log with river. Takes as long as river does."""
        return self._call("equal", "GET", f"{_path(name)}/crosscheck", timeout=httpx.Timeout(None, connect=5.0))

    def learn(self, name: str, events: Iterable[Event | Label]) -> dict[str, Any]:
        """Learn events and late labels in order; the reply counts them."""
        return self.learn_lines(name, _encode_lines(map(_plain, events)))

    def learn_lines(self, name: str, lines: bytes) -> dict[str, Any]:
        """`learn` for events as NDJSON."""
        return self._call("learned", "POST", f"{_path(name)}/learn", lines, NDJSON)

    def predict(self, name: str, events: Iterable[Event]) -> list[float]:
        """The probability of label 1 for each event."""
        return [reply.p for reply in self._predict(name, ({"x": event.x} for event in events), _predicted)]

    def predict_to_keep(self, name: str, events: Iterable[Event]) -> list[replies.PredictedKept]:
        """Predict events with their ids; each prediction then waits for its label, if the service keeps it."""
        return self._predict(name, ({"x": event.x, "id": event.id} for event in events), _predicted_kept)

    def _predict(
        self, name: str, questions: Iterable[dict[str, Any]], decoder: msgspec.json.Decoder[Predicted]
    ) -> list[Predicted]:
        reply = self._send("POST", f"{_path(name)}/predict", _encode_lines(questions), NDJSON)
        try:
            return decoder.decode_lines(reply.content)
        except msgspec.DecodeError:
            raise Refused(self.url, reply) from None

    # -- one request

    def _call(self, needs: str, *request: Any, **options: Any) -> dict[str, Any]:
        return self._object(needs, self._send(*request, **options))

    def _send(
        self, method: str, path: str, body: bytes | None = None, content_type: str | None = None, **options: Any
    ) -> httpx.Response:
        headers = {"content-type": content_type} if content_type else {}
        try:
            reply = self._http.request(method, self.url + path, content=body, headers=headers, **options)
        except httpx.TransportError as error:
            raise NoAnswer(self.url, error) from None
        if not reply.is_success:
            raise Refused(self.url, reply)
        return reply

    def _object(self, needs: str, reply: httpx.Response) -> dict[str, Any]:
        """The JSON object in a reply. Raises Refused without the field `needs`: another program answered."""
        found = _json_object(reply)
        if needs not in found:
            raise Refused(self.url, reply)
        return found


def _trusted() -> ssl.SSLContext | bool:
    """The trusted certificates: SSL_CERT_FILE or SSL_CERT_DIR, else the usual ones."""
    told = os.environ.get("SSL_CERT_FILE") or os.environ.get("SSL_CERT_DIR")
    return ssl.create_default_context() if told else True


def _json_object(reply: httpx.Response) -> dict[str, Any]:
    try:
        found = msgspec.json.decode(reply.content)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return {}
    return found if isinstance(found, dict) else {}


def _path(model: str) -> str:
    return f"/models/{quote(model, safe='')}"


def _plain(event: Event | Label) -> dict[str, Any]:
    """An event or label as JSON types, without default values."""
    plain: dict[str, Any] = {"x": event.x} if isinstance(event, Event) else {}
    plain["y"] = event.y
    if event.id is not None:
        plain["id"] = event.id
    if event.weight != 1.0:
        plain["weight"] = event.weight
    return plain
