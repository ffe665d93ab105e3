"""`logstep kafka`: makes the topic that is a log, and says what is wrong with one."""

from __future__ import annotations

import itertools
import re
from functools import partial
from typing import TYPE_CHECKING

import pytest
from effort import from_checks_on
from patience import eventually

from service.brokers import Brokers
from service.commands import cli
from service.replica import topic

if TYPE_CHECKING:
    from broker import Cluster, Mock

_names = itertools.count(1)


@pytest.fixture
def name() -> str:
    return f"log-{next(_names)}"


class Said:
    """What `logstep kafka VERB` printed, and its exit code."""

    def __init__(self, output: pytest.CaptureFixture[str], verb: str, address: str, *arguments: str) -> None:
        self.code = cli.main(["kafka", verb, "--kafka", address, *arguments])
        self.text = "".join(output.readouterr())

    def of(self, verdict: str) -> list[str]:
        """The settings with this verdict."""
        return re.findall(rf"^{verdict} +(.*)$", self.text, re.MULTILINE)


@from_checks_on
def test_a_topic_that_was_made_can_be_the_log_and_none_is_made_twice(
    cluster: Cluster, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    made = Said(capsys, "create-topic", cluster.address, "--topic", name)
    assert made.code == 0, made.text
    assert f"{name} can be the log" in made.text
    checked = Said(capsys, "check", cluster.address, "--topic", name)
    assert checked.code == 0
    assert not checked.of("WRONG") + checked.of("weak")
    assert checked.of("right") == [
        "64 partitions",
        "3 copies of each partition",
        "min.insync.replicas=2",
        "message.timestamp.type=LogAppendTime",
        "cleanup.policy=delete",
        "max.message.bytes=17825792",
        "unclean.leader.election.enable=false",
        "retention.ms=-1",
        "retention.bytes=-1",
    ]
    assert topic.faults(Brokers(cluster.address, {}), name) == []
    again = Said(capsys, "create-topic", cluster.address, "--topic", name, "--replication=1")
    assert again.code == 1
    assert f"There is a topic '{name}'" in again.text
    assert "3 copies of each partition" in Said(capsys, "check", cluster.address, "--topic", name).of("right")


@from_checks_on
def test_one_copy_is_for_development_and_the_check_says_what_that_means(
    cluster: Cluster, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    made = Said(capsys, "create-topic", cluster.address, "--topic", name, "--replication=1")
    assert made.code == 0, made.text
    assert made.of("weak") == ["1 copy of each partition"]
    assert "an acknowledged event is on one machine alone, and is lost with it" in made.text
    assert "min.insync.replicas=1" in made.of("right")
    checked = Said(capsys, "check", cluster.address, "--topic", name)
    assert checked.code == 1, "three copies were asked for"
    assert checked.of("WRONG") == ["1 copy of each partition"]


@from_checks_on
def test_each_setting_that_is_wrong_is_found_and_the_advice_mends_it(
    cluster: Cluster, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert Said(capsys, "create-topic", cluster.address, "--topic", name).code == 0

    def says(right: int, verdict: str = "", *about: str) -> Said | None:
        """What is said when so many settings are right, and these not: brokers get a change one after another."""
        said = Said(capsys, "check", cluster.address, "--topic", name)
        return said if len(said.of("right")) == right and (not about or said.of(verdict) == [*about]) else None

    for setting, value, verdict in (
        ("message.timestamp.type", "CreateTime", "WRONG"),
        ("cleanup.policy", "compact", "WRONG"),
        ("cleanup.policy", "compact,delete", "WRONG"),
        ("max.message.bytes", "1048588", "WRONG"),
        ("unclean.leader.election.enable", "true", "WRONG"),
        ("retention.ms", "604800000", "weak"),
        ("retention.bytes", "1073741824", "weak"),
        ("min.insync.replicas", "1", "WRONG"),
        ("min.insync.replicas", "3", "weak"),
    ):
        cluster.alter(name, setting, value)
        told = verdict, f"{setting}={value}"
        said = eventually(partial(says, 8, *told), f"{setting} to be {value}, and {verdict}")
        assert said.code == (1 if verdict == "WRONG" else 0), said.text
        mends = re.search(rf"--entity-name {name} --alter --add-config (\S+)=(\S+)$", said.text, re.MULTILINE)
        assert mends, said.text
        cluster.alter(name, *mends.groups())
        eventually(lambda: says(right=9), f"{setting} to be right")


@from_checks_on
def test_a_number_of_partitions_cannot_be_mended_and_what_cannot_be_written_is_wrong(
    cluster: Cluster, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster.create(name, partitions=4, copies=2, min_insync_replicas="3")
    said = Said(capsys, "check", cluster.address, "--topic", name, "--replication=1")
    assert said.code == 1
    assert said.of("WRONG")[:2] == ["4 partitions", "min.insync.replicas=3"]
    assert "logstep kafka create-topic" in said.text
    assert "with 2 copies of a partition nothing can be written" in said.text


@from_checks_on
def test_brokers_that_are_away_are_told_until_they_are_back(
    cluster: Cluster, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster.create(name, partitions=topic.PARTITIONS, copies=3, min_insync_replicas="3")
    brokers = Brokers(cluster.address, {})

    def told() -> bool:
        return any("too few copies in sync" in finding.what for finding in topic.faults(brokers, name))

    assert not told()
    leader = cluster.leader(name)
    cluster.kill(leader)
    eventually(lambda: cluster.leader(name) != leader, "another leader")
    eventually(told, "the broker that is away to be told")
    cluster.start(leader)
    eventually(lambda: cluster.in_sync(name), "the copies to be in sync")
    eventually(lambda: not told(), "every broker to know it")  # one tells the others


@from_checks_on
def test_who_does_not_answer_and_what_is_not_there_is_named(
    cluster: Cluster, name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Brokers, "patience", 1.0)
    for verb in ("create-topic", "check"):
        nobody = Said(capsys, verb, "127.0.0.1:1", "--topic", name)
        assert nobody.code == 1
        assert "No Kafka broker answers at 127.0.0.1:1 (" in nobody.text
    missing = Said(capsys, "check", cluster.address, "--topic", name)
    assert missing.code == 1
    assert f"There is no topic '{name}' at {cluster.address}: create it" in missing.text


@from_checks_on
def test_more_copies_than_brokers_are_refused_with_advice(
    cluster: Cluster, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    said = Said(capsys, "create-topic", cluster.address, "--topic", name, "--replication=4")
    assert said.code == 1
    assert "For development on one broker: --replication 1" in said.text
    wrong = Said(capsys, "create-topic", cluster.address, "--topic", "a name with spaces")
    assert wrong.code == 1
    assert "refuses: " in wrong.text


def test_what_brokers_do_not_tell_is_weak(mock_cluster: Mock, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    mock_cluster.create(name, topic.PARTITIONS)
    said = Said(capsys, "check", mock_cluster.address, "--topic", name)
    assert said.code == 0
    assert said.of("weak") == ["min.insync.replicas", *(rule.name for rule in topic.RULES)]
