"""A real Kafka broker for the tests: KRaft, one process, on free ports of this machine."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewPartitions, NewTopic
from harness import HOST, ROOT, running
from patience import PATIENCE, eventually

JARS = ROOT / ".kafka"
JAVA = ("-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-XX:-UsePerfData")
START_SECONDS = 60.0
_CLUSTER = "bG9nc3RlcCBicm9rZXIgMQ"
_LOG = """\
status = error
appender.file.type = File
appender.file.name = file
appender.file.fileName = {log}
appender.file.layout.type = PatternLayout
appender.file.layout.pattern = %d %p %m (%c)%n
rootLogger.level = warn
rootLogger.appenderRef.file.ref = file
"""
_PROPERTIES = """\
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@{host}:{controller}
controller.listener.names=CONTROLLER
listeners=PLAINTEXT://{host}:{port},SASL_PLAINTEXT://{host}:{sasl},CONTROLLER://{host}:{controller}
listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT,SASL_PLAINTEXT:SASL_PLAINTEXT
sasl.enabled.mechanisms=PLAIN
listener.name.sasl_plaintext.plain.sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule \
required user_shop="a secret of the shop";
log.dirs={data}
offsets.topic.num.partitions=1
offsets.topic.replication.factor=1
transaction.state.log.num.partitions=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
group.initial.rebalance.delay.ms=0
group.min.session.timeout.ms=1000
group.consumer.min.session.timeout.ms=1000
group.consumer.session.timeout.ms=1000
group.consumer.min.heartbeat.interval.ms=200
group.consumer.heartbeat.interval.ms=200
auto.create.topics.enable=false
log.retention.check.interval.ms=500
file.delete.delay.ms=100
"""


def skip_without_broker() -> None:
    """Skip a test where there is no Java, or no jar of the broker."""
    if shutil.which("java") is None:
        pytest.skip("java is missing: Debian's default-jre-headless has it")
    if not list(JARS.glob("kafka_2.13-*.jar")):
        pytest.skip(f"the broker is not in {JARS.name}: .ci/kafka fetches it with mvn")


@contextmanager
def broker(folder: Path) -> Iterator[Broker]:
    """A broker on a new folder; it is killed at the end."""
    skip_without_broker()
    folder.mkdir(parents=True)
    port, sasl, controller = free_ports(3)
    properties, log = folder / "server.properties", folder / "broker.log"
    properties.write_text(
        _PROPERTIES.format(host=HOST, port=port, sasl=sasl, controller=controller, data=folder / "data")
    )
    (folder / "log4j2.properties").write_text(_LOG.format(log=log))
    java = ["java", *JAVA, "-cp", f"{JARS}/*", f"-Dlog4j2.configurationFile={folder / 'log4j2.properties'}"]
    subprocess.run(
        [*java, "kafka.tools.StorageTool", "format", "-t", _CLUSTER, "-c", properties],
        check=True, stdout=subprocess.DEVNULL, timeout=START_SECONDS,
    )  # fmt: skip
    with (
        (folder / "output").open("wb") as output,
        running([*java, "kafka.Kafka", properties], stdout=output) as process,
    ):

        def listens() -> bool:
            assert process.poll() is None, log.read_text()
            with suppress(OSError), socket.create_connection((HOST, port), timeout=1.0):
                return True
            return False

        eventually(listens, "the broker to listen", START_SECONDS)
        yield Broker(f"{HOST}:{port}", f"{HOST}:{sasl}")


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server((HOST, 0)) for _ in range(count)]
    ports = [found.getsockname()[1] for found in sockets]
    for found in sockets:
        found.close()
    return ports


class Broker:
    """A running broker, or librdkafka's own mock of some. address: without a password; sasl: with the password of the
    user `shop`."""

    def __init__(self, address: str, sasl: str = "") -> None:
        self.address, self.sasl = address, sasl
        self._settings = {"bootstrap.servers": address, "log_level": "0"}
        self._admin = AdminClient(self._settings)

    def create(self, topic: str, partitions: int = 1) -> None:
        for done in self._admin.create_topics([NewTopic(topic, partitions, 1)]).values():
            done.result()

    def delete(self, topic: str) -> None:
        for done in self._admin.delete_topics([topic]).values():
            done.result()

    def add_partitions(self, topic: str, total: int) -> None:
        for done in self._admin.create_partitions([NewPartitions(topic, total)]).values():
            done.result()

    def drop_records(self, topic: str, before: int) -> None:
        """Drop what stands before an offset of partition 0, as retention does."""
        for done in self._admin.delete_records([TopicPartition(topic, 0, before)]).values():
            done.result()

    def produce(self, topic: str, values: Iterable[Any], partition: int = 0) -> None:
        """Append records: bytes and None as they are, all else as JSON."""
        producer = Producer(self._settings)  # a new one: others know the partitions and the topic as they were
        for value in values:
            data = value if isinstance(value, bytes | None) else json.dumps(value).encode()
            producer.produce(topic, data, partition=partition)
        assert producer.flush(PATIENCE) == 0

    def transaction(self, topic: str, values: Iterable[Any], *, commits: bool) -> None:
        producer = Producer({**self._settings, "transactional.id": topic})
        producer.init_transactions(PATIENCE)
        producer.begin_transaction()
        for value in values:
            producer.produce(topic, json.dumps(value).encode(), partition=0)
        producer.flush(PATIENCE)
        (producer.commit_transaction if commits else producer.abort_transaction)(PATIENCE)

    def committed(self, group: str, topic: str, partitions: int = 1) -> list[int]:
        """The group's offset in each partition; -1001 without one."""
        consumer = Consumer({**self._settings, "group.id": group})
        try:
            places = [TopicPartition(topic, partition) for partition in range(partitions)]
            return [place.offset for place in consumer.committed(places, PATIENCE)]
        finally:
            consumer.close()


@contextmanager
def mock() -> Iterator[Broker]:
    """librdkafka's own brokers, in this process. They make a topic of four partitions when it is written to, and know
    no ids of topics."""
    cluster = AdminClient({"test.mock.num.brokers": 1, "bootstrap.servers": "in.this.process", "log_level": "0"})
    found = cluster.list_topics(timeout=PATIENCE)
    yield Broker(",".join(f"{one.host}:{one.port}" for one in found.brokers.values()))
