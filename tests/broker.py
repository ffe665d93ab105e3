"""Kafka brokers for the tests: real ones (KRaft, on free ports of this machine), and librdkafka's own mock of some.

Tests take the fixtures `cluster` (three real brokers, started once for all tests of a worker) and `mock_cluster` of
conftest.py.
"""

from __future__ import annotations

import base64
import ctypes
import json
import random
import shutil
import signal
import socket
import subprocess
import threading
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import confluent_kafka
import pytest
from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import (
    AclBinding,
    AclOperation,
    AclPermissionType,
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    NewPartitions,
    NewTopic,
    ResourcePatternType,
    ResourceType,
)
from forked import OUTLIVE_A_TEST
from harness import HOST, ROOT
from patience import PATIENCE, eventually

JARS = ROOT / ".kafka"
LASTING = ("-Xmx256m", "-XX:+UseSerialGC", "-XX:-UsePerfData")
JAVA = (*LASTING, "-XX:TieredStopAtLevel=1")
"""For brokers that live for some tests: they start sooner, but never compile as well as those that last."""
START_SECONDS = 60.0
_CLUSTER_ID = "bG9nc3RlcCBicm9rZXIgMQ"
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
node.id={number}
controller.quorum.voters={voters}
controller.listener.names=CONTROLLER
listeners=PLAINTEXT://{host}:{ports.plain},SASL_PLAINTEXT://{host}:{ports.sasl},FAR://{host}:{ports.far},\
CONTROLLER://{host}:{ports.controller}
advertised.listeners=PLAINTEXT://{host}:{ports.plain},SASL_PLAINTEXT://{host}:{ports.sasl},FAR://{host}:{ports.relay}
listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT,SASL_PLAINTEXT:SASL_PLAINTEXT,FAR:PLAINTEXT
sasl.enabled.mechanisms=PLAIN
listener.name.sasl_plaintext.plain.sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule \
required user_shop="a secret of the shop";
log.dirs={data}
offsets.topic.num.partitions=1
offsets.topic.replication.factor={copies}
transaction.state.log.num.partitions=1
transaction.state.log.replication.factor={copies}
transaction.state.log.min.isr=1
group.initial.rebalance.delay.ms=0
group.min.session.timeout.ms=1000
group.consumer.min.session.timeout.ms=1000
group.consumer.session.timeout.ms=1000
group.consumer.min.heartbeat.interval.ms=200
group.consumer.heartbeat.interval.ms=200
authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer
super.users=User:ANONYMOUS
allow.everyone.if.no.acl.found=true
auto.create.topics.enable=false
file.delete.delay.ms=100
broker.session.timeout.ms=3000
broker.heartbeat.interval.ms=500
replica.lag.time.max.ms=3000
"""


def skip_without_broker() -> None:
    """Skip a test where there is no Java, or no jar of the broker."""
    if shutil.which("java") is None:
        pytest.skip("java is missing: Debian's default-jre-headless has it")
    if not list(JARS.glob("kafka_2.13-*.jar")):
        pytest.skip(f"the broker is not in {JARS.name}: .ci/kafka fetches it with mvn")


def free_ports(count: int) -> list[int]:
    """Ports that nobody has. They are below those that the system gives to clients, so a broker that is started again
    finds its own free."""
    found: set[int] = set()
    while len(found) < count:
        port = random.randrange(10_000, 32_000)
        with suppress(OSError), socket.create_server((HOST, port)):
            found.add(port)
    return list(found)


class Broker:
    """A running broker, or librdkafka's own mock of some. address: without a password; sasl: with the password of the
    user `shop`."""

    def __init__(self, address: str, sasl: str = "") -> None:
        self.address, self.sasl = address, sasl
        self._settings = {"bootstrap.servers": address, "log_level": "0"}
        self._admin = AdminClient(self._settings)

    def create(self, topic: str, partitions: int = 1, copies: int = 1, **settings: str) -> None:
        """Make a topic. settings: with _ in place of a dot."""
        config = {name.replace("_", "."): value for name, value in settings.items()}
        for done in self._admin.create_topics([NewTopic(topic, partitions, copies, config=config)]).values():
            done.result()

    def alter(self, topic: str, setting: str, value: str) -> None:
        """Change a setting of a topic."""
        entry = ConfigEntry(setting, value, incremental_operation=AlterConfigOpType.SET)
        resource = ConfigResource(ConfigResource.Type.TOPIC, topic, incremental_configs=[entry])
        for done in self._admin.incremental_alter_configs([resource]).values():
            done.result()

    def delete(self, topic: str) -> None:
        for done in self._admin.delete_topics([topic]).values():
            done.result()

    def keep_group_to(self, group: str, user: str) -> None:
        """From now on only that user may read the group."""
        rule = AclOperation.READ, AclPermissionType.ALLOW
        of_group = AclBinding(ResourceType.GROUP, group, ResourcePatternType.LITERAL, f"User:{user}", "*", *rule)
        for done in self._admin.create_acls([of_group]).values():
            done.result()

    def add_partitions(self, topic: str, total: int) -> None:
        for done in self._admin.create_partitions([NewPartitions(topic, total)]).values():
            done.result()

    def drop_records(self, topic: str, before: Mapping[int, int]) -> None:
        """Drop what stands before an offset of some partitions, as retention does."""
        places = [TopicPartition(topic, partition, offset) for partition, offset in before.items()]

        def dropped() -> bool:
            try:
                asked = AdminClient(self._settings)  # a new one: others ask the leaders that they knew
                for done in asked.delete_records(places).values():
                    done.result()
            except KafkaException:  # another broker leads a partition now
                return False
            return True

        eventually(dropped, "the records to be dropped")

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


# -- real brokers


class Ports(NamedTuple):
    """Where a broker listens. far: for who comes by a `Relay`, which listens at `relay`."""

    plain: int
    sasl: int
    controller: int
    far: int
    relay: int


class Process:
    """One broker, which is a controller too. It can be killed and started again."""

    def __init__(self, folder: Path, number: int, ports: Ports, java: Sequence[str]) -> None:
        self.number, self.ports, self._folder = number, ports, folder
        self._java = ["java", *java, "-cp", f"{JARS}/*", f"-Dlog4j2.configurationFile={folder / 'log4j2.properties'}"]
        self._process: subprocess.Popen[bytes] | None = None

    def prepare(self, voters: str, copies: int) -> None:
        """Write its properties."""
        self._folder.mkdir()
        text = _PROPERTIES.format(
            host=HOST, number=self.number, ports=self.ports, voters=voters, copies=copies, data=self._folder / "data"
        )
        (self._folder / "server.properties").write_text(text)
        (self._folder / "log4j2.properties").write_text(_LOG.format(log=self._folder / "broker.log"))

    def format(self) -> None:
        """Make its data folder."""
        tool = [*self._java, "kafka.tools.StorageTool", "format", "-t", _CLUSTER_ID]
        tool += ["-c", str(self._folder / "server.properties")]
        subprocess.run(tool, check=True, stdout=subprocess.DEVNULL, timeout=START_SECONDS)

    def format_like(self, other: Process) -> None:
        """Make its data folder from another one, without a second start of Java."""
        shutil.copytree(other._folder / "data", self._folder / "data")
        meta = self._folder / "data" / "meta.properties"
        lines = [line for line in meta.read_text().splitlines() if not line.startswith(("node.id=", "directory.id="))]
        meta.write_text("\n".join([*lines, f"node.id={self.number}", f"directory.id={_uuid()}"]))

    @property
    def runs(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start it; `listens` says when it is there."""
        assert not self.runs
        with (self._folder / "output").open("ab") as output:
            command = [*self._java, "kafka.Kafka", str(self._folder / "server.properties")]
            self._process = subprocess.Popen(command, stdout=output)
        OUTLIVE_A_TEST.add(self._process.pid)

    def listens(self) -> bool:
        assert self.runs, (self._folder / "broker.log").read_text()
        with suppress(OSError), socket.create_connection((HOST, self.ports.plain), timeout=1.0):
            return True
        return False

    def signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def end(self) -> None:
        """Kill it, and wait for its end."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(PATIENCE)
            OUTLIVE_A_TEST.discard(self._process.pid)


class Cluster(Broker):
    """Real brokers, numbered from 1 on."""

    def __init__(self, processes: Sequence[Process]) -> None:
        self._processes = {process.number: process for process in processes}
        address, sasl = (",".join(f"{HOST}:{ports[kind]}" for ports in self._ports) for kind in (0, 1))
        super().__init__(address, sasl)

    @property
    def _ports(self) -> list[Ports]:
        return [process.ports for process in self._processes.values()]

    def create(self, topic: str, partitions: int = 1, copies: int = 1, **settings: str) -> None:
        super().create(topic, partitions, copies, **settings)
        for ports in self._ports:  # a client asks whichever it is connected to, and each learns of it by itself
            admin = AdminClient({"bootstrap.servers": f"{HOST}:{ports.plain}", "log_level": "0"})
            eventually(partial(self._knows, admin, topic), f"{topic} to be known")

    @staticmethod
    def _knows(admin: Any, topic: str) -> bool:
        return admin.list_topics(topic, PATIENCE).topics[topic].error is None

    def has(self, topic: str) -> bool:
        """Whether any broker knows a topic."""
        asked = (AdminClient({"bootstrap.servers": f"{HOST}:{ports.plain}", "log_level": "0"}) for ports in self._ports)
        return any(topic in admin.list_topics(timeout=PATIENCE).topics for admin in asked)

    def kill(self, number: int) -> None:
        """`kill -9` a broker."""
        self._processes[number].end()

    def terminate(self, number: int) -> None:
        """Stop a broker as an administrator does (SIGTERM), and wait for its end."""
        self._processes[number].signal(signal.SIGTERM)
        eventually(lambda: not self._processes[number].runs, f"broker {number} to end")
        self.kill(number)

    def start(self, *numbers: int) -> None:
        """Start brokers that do not run, and wait until the cluster has them."""
        for number in numbers:
            self._processes[number].start()
        for number in numbers:
            eventually(self._processes[number].listens, f"broker {number} to listen", START_SECONDS)
        eventually(lambda: self.members.issuperset(numbers), "the cluster to have it", START_SECONDS)

    def pause(self, number: int) -> None:
        """Stop a broker for a while (SIGSTOP): it keeps its connections, and does not answer."""
        self._processes[number].signal(signal.SIGSTOP)

    def resume(self, number: int) -> None:
        """Let a broker go on (SIGCONT)."""
        self._processes[number].signal(signal.SIGCONT)

    def mend(self) -> None:
        """Let every broker run, and wait until the cluster has all: one that was paused was left out."""
        dead = [number for number, process in self._processes.items() if not process.runs]
        for number in self._processes.keys() - dead:
            self.resume(number)
        self.start(*dead)
        eventually(lambda: self.members == set(self._processes), "the cluster to have all", START_SECONDS)

    @contextmanager
    def relay(self) -> Iterator[Relay]:
        """A way to these brokers that can be cut."""
        way = Relay({ports.relay: ports.far for ports in self._ports})
        try:
            yield way
        finally:
            way.close()

    @property
    def members(self) -> set[int]:
        """The brokers that the cluster has, as one of them tells."""
        with suppress(KafkaException):
            return set(self._admin.list_topics(timeout=1.0).brokers)
        return set()

    def leader(self, topic: str, partition: int = 0) -> int:
        """The number of the broker that leads a partition."""

        def led() -> int:
            with suppress(KafkaException):
                return max(0, int(self._admin.list_topics(topic, 1.0).topics[topic].partitions[partition].leader))
            return 0

        return int(eventually(led, f"a leader of {topic}"))

    def in_sync(self, topic: str) -> bool:
        """Whether all copies of a topic are there, and have all that it has."""
        with suppress(KafkaException):
            partitions = self._admin.list_topics(topic, 1.0).topics[topic].partitions.values()
            return all(len(one.isrs) == len(one.replicas) for one in partitions)
        return False

    def end(self) -> None:
        for process in self._processes.values():
            process.end()


class Relay:
    """Passes bytes on between ports of this machine. While it is cut, they wait, and nobody is told: as when a cable is
    pulled. ports: where it listens, and where to pass on to."""

    def __init__(self, ports: Mapping[int, int]) -> None:
        self.address = ",".join(f"{HOST}:{port}" for port in ports)
        self._flows = threading.Event()
        self._flows.set()
        self._sockets: list[socket.socket] = []
        for port, to in ports.items():
            listener = socket.create_server((HOST, port))
            self._sockets.append(listener)
            threading.Thread(target=self._accept, args=(listener, to), daemon=True).start()

    def cut(self) -> None:
        self._flows.clear()

    def mend(self) -> None:
        self._flows.set()

    def _accept(self, listener: socket.socket, to: int) -> None:
        with suppress(OSError):  # it was closed
            while True:
                near, _ = listener.accept()
                self._sockets.append(near)
                try:
                    far = socket.create_connection((HOST, to))
                except OSError:  # the broker is away
                    near.close()
                    continue
                self._sockets.append(far)
                for pair in ((near, far), (far, near)):
                    threading.Thread(target=self._pass_on, args=pair, daemon=True).start()

    def _pass_on(self, source: socket.socket, to: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                self._flows.wait()
                to.sendall(data)
        with suppress(OSError):
            to.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._flows.set()
        for one in self._sockets:
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()


def _uuid() -> str:
    """An id as Kafka has them."""
    return base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")


@contextmanager
def brokers(folder: Path, count: int = 1, java: Sequence[str] = JAVA) -> Iterator[Cluster]:
    """A cluster in a new folder; its brokers are killed at the end. java: options of Java."""
    skip_without_broker()
    folder.mkdir(parents=True)
    kinds = len(Ports._fields)
    ports = free_ports(kinds * count)
    processes = [
        Process(folder / f"broker-{i + 1}", i + 1, Ports(*ports[kinds * i : kinds * (i + 1)]), java)
        for i in range(count)
    ]
    voters = ",".join(f"{process.number}@{HOST}:{process.ports.controller}" for process in processes)
    for process in processes:
        process.prepare(voters, copies=count)
    first, *others = processes
    first.format()
    for process in others:
        process.format_like(first)
    cluster = Cluster(processes)
    try:
        cluster.start(*range(1, count + 1))
        yield cluster
    finally:
        cluster.end()


# -- librdkafka's mock


class Mock(Broker):
    """librdkafka's own brokers, in this process, numbered from 1 on. They make a topic when it is written to, know no
    settings of topics, and keep the time that a producer sends. Without a controller they tell no ids of topics."""

    def __init__(self, count: int) -> None:
        # Whoever has a library open finds what those have that it needs, and this one needs librdkafka.
        self._c = ctypes.CDLL(str(confluent_kafka.cimpl.__file__))
        for name in ("rd_kafka_conf_new", "rd_kafka_new", "rd_kafka_mock_cluster_new"):
            getattr(self._c, name).restype = ctypes.c_void_p
        self._c.rd_kafka_mock_cluster_bootstraps.restype = ctypes.c_char_p
        why = ctypes.create_string_buffer(256)
        conf = ctypes.c_void_p(self._c.rd_kafka_conf_new())
        self._c.rd_kafka_conf_set(conf, b"log_level", b"0", None, ctypes.c_size_t(0))
        self._client = ctypes.c_void_p(self._c.rd_kafka_new(0, conf, why, ctypes.c_size_t(len(why))))
        assert self._client, why.value
        self._cluster = ctypes.c_void_p(self._c.rd_kafka_mock_cluster_new(self._client, count))
        super().__init__(self._c.rd_kafka_mock_cluster_bootstraps(self._cluster).decode())

    def have_controller(self) -> None:
        """Answer what clients ask of a controller: the ids of topics; all else they refuse."""
        if not hasattr(self._c, "rd_kafka_mock_set_controller_id"):
            pytest.skip("the mock of this librdkafka has no controller; confluent-kafka 2.16 has one")
        self._call("set_controller_id", 1)

    def create(self, topic: str, partitions: int = 1, copies: int = 3, **settings: str) -> None:
        assert not settings
        self._call("topic_create", topic.encode(), partitions, copies)

    def set_leader(self, topic: str, partition: int, number: int) -> None:
        """Make a broker the leader of a partition; -1: none."""
        self._call("partition_set_leader", topic.encode(), partition, number)

    def down(self, number: int) -> None:
        """Close a broker's connections, and accept none."""
        self._call("broker_set_down", number)

    def up(self, number: int) -> None:
        self._call("broker_set_up", number)

    def delay(self, number: int, milliseconds: int) -> None:
        """Have a broker answer so much later."""
        self._call("broker_set_rtt", number, milliseconds)

    def _call(self, name: str, *arguments: int | bytes) -> None:
        assert getattr(self._c, f"rd_kafka_mock_{name}")(self._cluster, *arguments) == 0, name

    def end(self) -> None:
        self._c.rd_kafka_mock_cluster_destroy(self._cluster)
        self._c.rd_kafka_destroy(self._client)


@contextmanager
def mock(count: int = 1) -> Iterator[Mock]:
    """librdkafka's own brokers."""
    found = Mock(count)
    try:
        yield found
    finally:
        found.end()
