"""The brokers of Kafka: how to reach them, and what their errors mean."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from service.failures import KafkaMissing, NoBroker, NoTopic, WrongProperties

try:
    from confluent_kafka import KafkaError, KafkaException, TopicCollection, TopicPartition
    from confluent_kafka.admin import AdminClient
except ImportError:
    raise KafkaMissing from None

SAID = {"bootstrap.servers": "--kafka says it", "metadata.broker.list": "--kafka says it"}
"""Properties that a file must not set, and why."""
_HARMLESS = ("security.protocol", "sasl.mechanism", "sasl.mechanisms")
"""Properties whose value an error may show. Any other may be a secret."""
DENIED = (
    KafkaError._AUTHENTICATION,  # noqa: SLF001  # librdkafka's own errors are named like this
    KafkaError._SSL,  # noqa: SLF001
    KafkaError.SASL_AUTHENTICATION_FAILED,
    KafkaError.TOPIC_AUTHORIZATION_FAILED,
    KafkaError.GROUP_AUTHORIZATION_FAILED,
    KafkaError.CLUSTER_AUTHORIZATION_FAILED,
)
"""Errors that asking again does not mend."""
_GONE = (KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC, KafkaError._UNKNOWN_PARTITION)  # noqa: SLF001


def properties(file: Path | None, ours: Mapping[str, str] = SAID) -> dict[str, str]:
    """The properties of librdkafka in a file: lines `name=value`, and comments. Errors show no value.

    ours: those that the file must not set, and why.
    """
    found: dict[str, str] = {}
    try:
        lines = [] if file is None else file.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "it is not text"
        raise WrongProperties(reason=f"cannot read {file}: {why}") from None
    for number, line in enumerate(lines, 1):
        name, equals, value = map(str.strip, line.partition("="))
        if not name or name.startswith("#"):
            continue
        where = f"{file} line {number}"
        if not equals:
            raise WrongProperties(reason=f"{where}: it is not NAME=VALUE, as librdkafka's properties are written")
        if name in ours:
            raise WrongProperties(reason=f"{where}: leave out {name}: {ours[name]}")
        found[name] = value
    return found


class Brokers:
    """Brokers, and the properties that people gave for them.

    address: HOST:PORT, or several with commas. on_error: gets each error of librdkafka that names no topic.
    """

    patience = 10.0
    """Seconds to wait for an answer."""

    def __init__(
        self, address: str, given: Mapping[str, str], on_error: Callable[[Any], None] = lambda error: None
    ) -> None:
        self.address, self.given, self._on_error = address, dict(given), on_error
        self.refusal = ""
        """The last such error."""
        self.denied = ""
        """The last one that does not pass."""

    def client(self, kind: Any, fixed: Mapping[str, Any] | None = None, **defaults: Any) -> Any:
        """A Consumer, Producer or AdminClient. Raises WrongProperties, without a secret in the message.

        fixed: settings that nobody may change. defaults: settings that the given properties may change, with _ in place
        of a dot.
        """
        settings: dict[str, Any] = {"bootstrap.servers": self.address, "client.id": "logstep", "error_cb": self.heard}
        if "debug" not in self.given:
            settings["log_level"] = "0"  # its errors come to `heard`
        settings |= {name.replace("_", "."): value for name, value in defaults.items()}
        try:
            return kind({**settings, **self.given, **(fixed or {})})
        except (KafkaException, TypeError, ValueError) as error:
            raise WrongProperties(reason=f"librdkafka refuses the properties: {self._without_secrets(error)}") from None

    @cached_property
    def admin(self) -> Any:
        """An AdminClient."""
        return self.client(AdminClient)

    def heard(self, error: Any) -> None:
        """Note an error that the brokers tell, and tell `on_error`."""
        self.refusal = error.str()
        if error.code() in DENIED or error.fatal():
            self.denied = self.refusal
        self._on_error(error)

    def topic(self, name: str) -> Any:
        """What the brokers tell of a topic: its partitions, their leaders and copies. Raises NoBroker, NoTopic."""
        try:
            found = self.admin.list_topics(name, self.patience).topics[name]
        except KafkaException as error:
            raise self.no_answer(error) from None
        if found.error is not None:
            advice = "create it, or mend the name" if found.error.code() in _GONE else found.error.str()
            raise NoTopic(topic=name, brokers=self.address, reason=advice)
        self.refusal = ""
        return found

    def members(self) -> list[Brokers]:
        """Each broker of the cluster by itself. Raises NoBroker."""
        try:
            found = self.admin.list_topics(timeout=self.patience).brokers.values()
        except KafkaException as error:
            raise self.no_answer(error) from None
        return [Brokers(f"{one.host}:{one.port}", self.given) for one in found]

    def topic_id(self, name: str) -> str:
        """The topic's UUID as Kafka's own tools write it; "" if the brokers have none for it (Kafka before 2.8). Raises
        KafkaException."""
        told = (
            self.admin.describe_topics(TopicCollection([name]), request_timeout=self.patience)[name].result().topic_id
        )
        is_none = told is None or not (told.get_most_significant_bits() or told.get_least_significant_bits())
        return "" if is_none else str(told).replace("+", "-").replace("/", "_")

    def offsets(self, name: str, partitions: Iterable[int], which: Any, timeout: float, **how: Any) -> list[int]:
        """Where partitions of a topic begin or end, as an OffsetSpec says. Raises KafkaException, also if a broker
        knows none, which it may answer while it is busy or becomes the leader."""
        asked = {TopicPartition(name, partition): which for partition in partitions}
        told = self.admin.list_offsets(asked, request_timeout=timeout, **how)
        found = [told[place].result().offset for place in asked]
        if min(found) < 0:
            raise KafkaException(KafkaError(KafkaError.LEADER_NOT_AVAILABLE))
        return found

    def no_answer(self, error: Exception) -> NoBroker:
        """Why the admin client got no answer."""
        self.admin.poll(0)  # brings the reason
        return NoBroker(brokers=self.address, reason=self.denied or self.refusal or error.args[0].str())

    def _without_secrets(self, error: Exception) -> str:
        found = error.args[0].str() if isinstance(error, KafkaException) else str(error)
        for name, value in self.given.items():
            if value and name not in _HARMLESS:
                found = re.sub(rf"(?<!\w){re.escape(value)}(?!\w)", "...", found)
        return found
