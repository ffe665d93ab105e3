"""`logstep consume`: a Kafka topic sent to a service, each record once, whatever is killed or made again.

The fast tests run on librdkafka's own mock of a broker, in this process; it has no ids of topics. The others run on a
real one, which `.ci/kafka` fetches.
"""

from __future__ import annotations

import itertools
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import broker as brokers
import pytest
from broker import Broker
from effort import from_checks_on
from forked import Logstep, clean_environment
from harness import Service, Start
from patience import PATIENCE, eventually

from core import Learner
from service.brokers import Brokers, properties
from service.commands import cli, consume

_names = itertools.count(1)
CLASSIC = "session.timeout.ms=1000\nheartbeat.interval.ms=200\n"
COOPERATIVE = f"{CLASSIC}partition.assignment.strategy=cooperative-sticky\n"
"""Properties of members of a group."""


@pytest.fixture(scope="module")
def mock_brokers() -> Iterator[Broker]:
    with brokers.mock() as found:
        yield found


@pytest.fixture
def mock(mock_brokers: Broker, monkeypatch: pytest.MonkeyPatch) -> Broker:
    monkeypatch.setattr(Brokers, "patience", 1.0)  # it does not answer when a topic's id is asked
    return mock_brokers


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    with brokers.brokers(tmp_path_factory.mktemp("kafka") / "broker") as found:
        yield found


@pytest.fixture
def name() -> str:
    """The name of a topic and of its model."""
    return f"clicks-{next(_names)}"


def record(i: int) -> dict[str, Any]:
    return {"order": f"o-{i}", "clicked": i % 3 == 0, "age": i % 60, "country": ("FR", "DE", "IT")[i % 7 % 3]}


def records(count: int, first: int = 0) -> list[dict[str, Any]]:
    return [record(i) for i in range(first, first + count)]


def learned_in_order(rows: list[dict[str, Any]]) -> str:
    """The SHA-256 of a model that has learned these."""
    learner = Learner()
    for row in rows:
        learner.learn_one({"age": row["age"], "country": row["country"]}, int(row["clicked"]))
    return learner.sha256()


# -- the command in a thread of this process


class Run:
    """`logstep consume` with these arguments, until `stop`."""

    def __init__(self, output: pytest.CaptureFixture[str], *arguments: str) -> None:
        self.signals = consume.Signals()
        self._output, self._said = output, ""
        self._code: int | None = None
        self._thread = threading.Thread(target=self._main, args=(["consume", *arguments],), daemon=True)
        self._thread.start()

    def _main(self, arguments: list[str]) -> None:
        _of_thread[threading.get_ident()] = self
        self._code = cli.main(arguments)

    @property
    def said(self) -> str:
        """What it has printed so far."""
        self._said += "".join(self._output.readouterr())
        return self._said

    def says(self, text: str) -> None:
        eventually(lambda: text in self.said or not self._thread.is_alive(), f"{text!r}")
        assert text in self.said, self.said

    def code(self) -> int:
        """The exit code, when it ends."""
        self._thread.join(PATIENCE)
        assert self._code is not None, self.said
        return self._code

    def stop(self) -> int:
        self.signals.came = signal.SIGTERM
        return self.code()


_of_thread: dict[int, Run] = {}


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Start the command on a topic and a service: `run(broker, name, service, "--label", "clicked")`."""

    @contextmanager
    def handled(_: consume.Signals) -> Iterator[consume.Signals]:
        yield _of_thread[threading.get_ident()].signals

    runs: list[Run] = []

    def start_run(broker: Broker, topic: str, service: Service, *arguments: str) -> Run:
        url = f"--url=http://127.0.0.1:{service.port}"
        runs.append(Run(capsys, "--kafka", broker.address, "--topic", topic, url, *arguments))
        return runs[-1]

    monkeypatch.setattr(consume.Signals, "handled", handled)  # signals belong to the main thread
    monkeypatch.setattr(consume, "REPORT_SECONDS", 0.1)
    yield start_run
    for each in runs:
        each.signals.came = signal.SIGTERM
    for each in runs:
        each.code()


def seq(service: Service, model: str) -> int:
    found = service.http.get(f"/models/{model}")
    return int(found.json()["seq"]) if found.status_code == 200 else 0


def learns(service: Service, model: str, count: int) -> None:
    eventually(lambda: seq(service, model) >= count, f"{count} events of {model}")
    assert seq(service, model) == count


# -- on the mock


def test_each_id_is_learned_once_and_what_is_no_event_is_left_out(
    mock: Broker, shared: Service, run: Any, name: str
) -> None:
    good = records(30)
    wrong = [b"nonsense", b"", b"[1]", {"age": 1}, record(1) | {"clicked": 7}, record(2) | {"x": {}}, b"\0\0\0\0\1a"]
    others: list[Any] = [None, record(3) | {"clicked": None}]
    mock.produce(name, [*good[:20], *wrong, *others, *good])
    running = run(mock, name, shared, "--label=clicked", "--id-field=order")
    running.says("30 learned, 20 known before, 7 left out, 1 without a label, 1 without a value; lag 0 record(s)")
    for offset in range(20, 27):
        assert f"{name} partition 0 offset {offset}: " in running.said
    assert "only plain JSON can be read" in running.said
    assert running.stop() == 0
    assert seq(shared, name) == 30
    assert mock.committed(f"logstep-{name}-{name}", name) == [20 + 7 + 2 + 30]


def test_what_the_service_refuses_is_left_out_and_the_rest_is_learned(
    real: Broker, shared: Service, run: Any, name: str
) -> None:
    conflict, too_large = record(3) | {"age": 99}, record(50) | {"age": 1e101}
    real.create(name)
    real.produce(name, [*records(10), conflict, record(11), too_large, record(12)])
    running = run(real, name, shared, "--label=clicked", "--id-field=order", "--look=10")
    running.says("12 learned, 2 left out; lag 0")
    assert "partition 0 offset 10: " in running.said
    assert "partition 0 offset 12: " in running.said
    assert running.stop() == 0


def test_a_strict_run_stops_at_what_is_no_event_and_what_came_before_is_learned(
    real: Broker, shared: Service, run: Any, name: str
) -> None:
    arguments = "--label=clicked", "--id-field=order", "--strict", "--group=strict"
    real.create(name)
    real.produce(name, [*records(12), b"nonsense", *records(5, first=12)])
    running = run(real, name, shared, *arguments)
    assert running.code() == 3
    assert f"{name} partition 0 offset 12: it is not JSON" in running.said
    assert seq(shared, name) == 12
    assert real.committed("strict", name)[0] == 12
    assert run(real, name, shared, *arguments).code() == 3, "it goes on there"
    assert seq(shared, name) == 12


def test_a_strict_run_stops_at_what_the_service_refuses(real: Broker, shared: Service, run: Any, name: str) -> None:
    real.create(name)
    real.produce(name, [*records(12), record(3) | {"age": 99}, *records(5, first=12)])
    running = run(real, name, shared, "--label=clicked", "--id-field=order", "--strict")
    assert running.code() == 3
    assert f"{name} partition 0 offset 12: " in running.said
    assert seq(shared, name) == 12
    assert real.committed(f"logstep-{name}-{name}", name)[0] == 12


def test_flags_that_fit_no_record_are_told_and_nothing_is_committed(
    real: Broker, shared: Service, run: Any, name: str
) -> None:
    real.create(name)
    real.produce(name, records(150))
    running = run(real, name, shared, "--label=klicked", "--id-field=order")
    assert running.code() == 2
    assert "it has no 'klicked'" in running.said
    assert shared.http.get(f"/models/{name}").status_code == 404
    assert real.committed(f"logstep-{name}-{name}", name) == [-1001]
    running = run(real, name, shared, "--id-field=id")
    assert running.code() == 2
    assert real.committed(f"logstep-{name}-{name}", name) == [-1001]


def test_records_may_be_events_as_one_would_post(real: Broker, shared: Service, run: Any, name: str) -> None:
    real.create(name)
    real.produce(name, [{"x": {"age": i}, "y": i % 2, "id": f"e-{i}", "weight": 2} for i in range(20)] * 2)
    real.produce(name, [{"x": {"age": 1}, "y": 1}, {"x": {"age": "1" * 300}, "y": 1, "id": "e-99"}])
    running = run(real, name, shared, "--id-field=id")
    running.says("20 learned, 20 known before, 2 left out; lag 0")
    assert "partition 0 offset 40: it has no id" in running.said
    assert running.stop() == 0


@from_checks_on
def test_without_an_id_of_the_topic_the_records_must_have_one(
    mock: Broker, shared: Service, run: Any, name: str
) -> None:
    mock.produce(name, records(20))
    running = run(mock, name, shared, "--label=clicked")
    assert running.code() == 2
    assert "--id-field FIELD names an id in the records" in running.said
    assert mock.committed(f"logstep-{name}-{name}", name) == [-1001]


def test_a_service_that_is_away_is_waited_for_and_a_signal_ends_the_waiting(
    real: Broker, start: Start, run: Any, name: str
) -> None:
    service = start()
    real.create(name)
    real.produce(name, records(20))
    running = run(real, name, service, "--label=clicked", "--id-field=order")
    learns(service, name, 20)
    running.says("20 learned; lag 0")
    service.kill()
    real.produce(name, records(20, first=20))
    running.says("trying again\n")
    began = time.monotonic()
    assert running.stop() == 0
    assert time.monotonic() - began < PATIENCE / 3
    assert real.committed(f"logstep-{name}-{name}", name) == [20]
    again = start(folder=service.folder)
    run(real, name, again, "--label=clicked", "--id-field=order")
    learns(again, name, 40)


def test_who_does_not_answer_at_the_start_is_named(
    shared: Service, run: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Brokers, "patience", 1.0)
    nobody = Broker(f"127.0.0.1:{brokers.free_ports(1)[0]}")
    running = run(nobody, name, shared, "--label=clicked")
    assert running.code() == 1
    assert f"No Kafka broker answers at {nobody.address} (" in running.said


# -- without a broker


def test_properties_are_read_and_what_is_wrong_with_them_is_told_without_their_values(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "kafka.properties"
    arguments = ["consume", "--kafka=127.0.0.1:1", "--topic=clicks", "--kafka-config", str(file)]
    file.write_text("# a comment\n\nsasl.password = a secret = of ours\nsecurity.protocol=SASL_SSL\n")
    assert properties(file) == {"sasl.password": "a secret = of ours", "security.protocol": "SASL_SSL"}
    for text, line, told in (
        ("sasl.username=shop\na secret\n", 2, "NAME=VALUE"),
        ("sasl.password=secret\ngroup.id=mine\n", 2, "--group says it"),
        ("sasl.password=secret\nsession.timeout.ms=secret\n", 0, "session.timeout.ms"),
        ("sasl.pasword=secret\n", 0, "sasl.pasword"),
        ("sasl.password=secret\nsecurity.protocol=SASL_SLL\n", 0, "SASL_SLL"),
        ("ssl.ca.pem=secret\nsecurity.protocol=ssl\n", 0, "ssl.ca"),
        ("stats_cb=secret\n", 0, "properties"),
    ):
        file.write_text(text)
        assert cli.main(arguments) == 2, text
        output = "".join(capsys.readouterr())
        assert told in output, output
        assert not line or f"line {line}" in output
        assert "secret" not in output


def test_without_confluent_kafka_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "confluent_kafka", None)
    for module in ("service.brokers", "service.commands.kafka", "service.commands.consume"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    assert cli.main(["consume", "--kafka=127.0.0.1:1", "--topic=clicks"]) == 1
    assert "pip install 'logstep[kafka]'" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["yesterday", "2026-13-01", "END"])
def test_a_beginning_that_is_none_is_refused(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.main(["consume", "--kafka=127.0.0.1:1", "--topic=clicks", f"--from={text}"])
    assert "must be beginning, end, or a time" in capsys.readouterr().err


# -- on a real broker


@pytest.fixture
def consumers(tmp_path: Path) -> Iterator[Any]:
    """Start `logstep consume` as a process; whatever still runs is killed at the end."""
    processes: list[Logstep] = []

    def start_consumer(broker: Broker, topic: str, port: int, *arguments: str, how: str = CLASSIC) -> Logstep:
        config = tmp_path / "kafka.properties"
        config.write_text(how)
        command = ["consume", "--kafka", broker.address, "--topic", topic, "--label=clicked", "--model", topic]
        command += [f"--url=http://127.0.0.1:{port}", "--kafka-config", str(config), *arguments]
        log = tmp_path / f"consumer-{len(processes)}"
        processes.append(Logstep(*command, log=log, env=clean_environment()))
        return processes[-1]

    yield start_consumer
    for process in processes:
        process.kill()
        process.wait()
    for log in tmp_path.glob("consumer-*"):
        assert "Traceback" not in log.read_text()


@from_checks_on
def test_a_record_is_learned_once_whatever_is_killed(real: Broker, start: Start, consumers: Any, name: str) -> None:
    """One partition, so the order is defined: the model is that of a learner that learned them in this order."""
    real.create(name)
    rows = records(3_000)
    service = start()
    assert service.model(name).create({"columns": {"order": "ignore", "age": "number", "country": "text"}}).is_success
    real.produce(name, rows[:1_500])
    slow = "--batch=50"
    consumer = consumers(real, name, service.port, slow)
    eventually(lambda: seq(service, name) > 300, "the first part")
    consumer.kill()
    consumer = consumers(real, name, service.port, slow)
    eventually(lambda: seq(service, name) > 700, "the second part")
    service.kill()
    assert consumer.poll() is None
    real.produce(name, rows[1_500:])
    service = start("--port", str(service.port), folder=service.folder)
    eventually(lambda: seq(service, name) > 1_800, "the third part")
    consumer.kill()
    consumer = consumers(real, name, service.port)
    learns(service, name, len(rows))
    eventually(lambda: real.committed(f"logstep-{name}-{name}", name) == [len(rows)], "the last commit")
    consumer.send_signal(signal.SIGTERM)
    assert consumer.wait(PATIENCE) == 0
    assert service.model(name).state()["sha256"] == learned_in_order(rows)


@from_checks_on
@pytest.mark.parametrize(
    "how", [CLASSIC, COOPERATIVE, "group.protocol=consumer\n"], ids=["classic", "cooperative", "consumer"]
)
def test_two_members_of_a_group_share_the_partitions_and_one_takes_over_when_the_other_is_killed(
    real: Broker, start: Start, consumers: Any, name: str, how: str, tmp_path: Path
) -> None:
    real.create(name, partitions=4)
    service = start()
    assert service.model(name).create({}).is_success
    first, second = (consumers(real, name, service.port, "--batch=50", how=how) for _ in range(2))

    def produce(begin: int) -> None:
        for partition in range(4):
            real.produce(name, records(500, first=begin + 500 * partition), partition)

    produce(0)
    eventually(lambda: seq(service, name) > 200, "a part")
    both = [tmp_path / "consumer-0", tmp_path / "consumer-1"]
    eventually(lambda: all("; here partition" in log.read_text() for log in both), "both to have partitions")
    produce(2_000)
    assert first.poll() is second.poll() is None
    first.kill()
    learns(service, name, 4_000)
    eventually(lambda: real.committed(f"logstep-{name}-{name}", name, 4) == [1_000] * 4, "the commits")
    second.send_signal(signal.SIGINT)
    assert second.wait(PATIENCE) == 130


def test_members_that_start_at_once_make_the_model_once(real: Broker, shared: Service, run: Any, name: str) -> None:
    real.create(name, partitions=2)
    real.produce(name, records(300))
    members = [run(real, name, shared, "--label=clicked", "--ignore=order", "--batch=10") for _ in range(3)]
    learns(shared, name, 300)
    eventually(lambda: real.committed(f"logstep-{name}-{name}", name) == [300], "the commits")
    real.produce(name, records(5, first=300), partition=1)
    learns(shared, name, 305)
    assert [each.stop() for each in members] == [0, 0, 0]


def test_a_topic_made_again_begins_anew_while_it_is_read_and_while_nobody_reads(
    real: Broker, shared: Service, run: Any, name: str
) -> None:
    real.create(name)
    real.produce(name, records(20))
    running = run(real, name, shared, "--label=clicked", "--ignore=order")
    learns(shared, name, 20)
    running.says("lag 0")
    real.delete(name)
    real.create(name)
    real.produce(name, records(50, first=100))
    running.says("was deleted and made again")
    learns(shared, name, 70)
    running.says("70 learned; lag 0")
    assert running.stop() == 0
    real.delete(name)
    real.create(name)
    real.produce(name, records(60, first=200))
    running = run(real, name, shared, "--label=clicked")
    learns(shared, name, 130)


def test_a_group_that_begins_at_the_end_misses_nothing_after_its_first_start(
    real: Broker, shared: Service, run: Any, name: str
) -> None:
    real.create(name)
    real.produce(name, records(20))
    arguments = "--label=clicked", "--from=end", "--ignore=order", "--look=1"
    running = run(real, name, shared, *arguments)
    running.says("from offset 20")
    assert running.stop() == 0, "before the first record"
    real.produce(name, records(30, first=20))
    real.add_partitions(name, 2)
    real.produce(name, records(5, first=50), partition=1)
    running = run(real, name, shared, *arguments)
    learns(shared, name, 35)
    assert "--from does not apply" in running.said


def test_a_group_begins_at_a_time(real: Broker, shared: Service, run: Any, name: str) -> None:
    real.create(name)
    real.produce(name, records(20))
    time.sleep(0.01)
    now = datetime.now(UTC)
    real.produce(name, records(15, first=20))
    running = run(real, name, shared, "--label=clicked", f"--from={now.isoformat()}")
    running.says("15 learned; lag 0")
    assert "0 from offset 20" in running.said


def test_records_that_the_topic_no_longer_has_are_told(real: Broker, shared: Service, run: Any, name: str) -> None:
    real.create(name)
    real.produce(name, records(20))
    running = run(real, name, shared, "--label=clicked", "--ignore=order")
    learns(shared, name, 20)
    running.says("lag 0")
    assert running.stop() == 0
    real.produce(name, records(20, first=20))
    real.drop_records(name, {0: 30})
    running = run(real, name, shared, "--label=clicked")
    learns(shared, name, 30)
    assert "10 record(s) from offset 20 on are gone" in running.said


def test_aborted_transactions_are_not_learned_and_leave_no_lag(
    real: Broker, shared: Service, run: Any, name: str
) -> None:
    real.create(name)
    real.transaction(name, records(20), commits=True)
    real.transaction(name, records(20, first=20), commits=False)
    running = run(real, name, shared, "--label=clicked")
    running.says("20 learned; lag 0")
    assert running.stop() == 0
    assert real.committed(f"logstep-{name}-{name}", name) == [42], "with the end of each transaction"


def test_a_password_goes_to_the_broker_and_into_no_message(
    real: Broker, shared: Service, run: Any, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real.create(name)
    real.produce(name, records(20))
    file = tmp_path / "kafka.properties"
    lines = "security.protocol=SASL_PLAINTEXT\nsasl.mechanism=PLAIN\nsasl.username=shop\nsasl.password="
    file.write_text(f"{lines}a secret of the shop\n")
    with_password = Broker(real.sasl)
    running = run(with_password, name, shared, "--label=clicked", "--kafka-config", str(file))
    learns(shared, name, 20)
    assert running.stop() == 0
    file.write_text(f"{lines}another secret\n")
    monkeypatch.setattr(Brokers, "patience", 3.0)
    refused = run(with_password, name, shared, "--label=clicked", "--kafka-config", str(file))
    assert refused.code() == 1
    assert "uthentication failed" in refused.said
    assert "secret" not in running.said + refused.said


@from_checks_on
def test_who_may_not_read_the_group_is_told_so(
    real: Broker, shared: Service, run: Any, name: str, tmp_path: Path
) -> None:
    real.create(name)
    real.keep_group_to("theirs", "somebody else")
    file = tmp_path / "kafka.properties"
    file.write_text(
        "security.protocol=SASL_PLAINTEXT\nsasl.mechanism=PLAIN\n"
        "sasl.username=shop\nsasl.password=a secret of the shop\n"
    )
    flags = "--label=clicked", "--kafka-config", str(file), "--group=theirs"
    refused = run(Broker(real.sasl), name, shared, *flags)
    assert refused.code() == 1
    assert "Group authorization failed" in refused.said


def test_the_flags_of_replay_decide_what_is_learned(real: Broker, shared: Service, run: Any, name: str) -> None:
    real.create(name)
    rows = [{"y": ("no", "yes")[i % 2], "zip": 1000 + i % 3, "w": 2, "a": str(i), "b": i} for i in range(20)]
    real.produce(name, rows)
    flags = "--label=y", "--positive=yes", "--text=zip", "--number=a", "--ignore=b", "--weight-field=w"
    running = run(real, name, shared, *flags, '--spec={"rule": "sgd"}')
    learns(shared, name, 20)
    learner = Learner()
    for row in rows:
        learner.learn_one({"zip": str(row["zip"]), "a": float(row["a"])}, int(row["y"] == "yes"), 2.0)
    assert shared.model(name).state()["sha256"] == learner.sha256()
    assert running.stop() == 0
