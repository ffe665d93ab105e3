"""A node in this process, on librdkafka's own mock of brokers: how what it is asked becomes records and comes back."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from broker import Mock
from confluent_kafka import KafkaError, KafkaException
from patience import PATIENCE
from processes import copied

from core import Learner, Spec
from service import errors
from service.decode.lines import Shape
from service.events import Event, Label
from service.learning import draft
from service.learning.request import Duplicate, Learned, Run, Stream, refusal_of
from service.replica import outbox, topic
from service.replica.lag import Lag
from service.replica.replica import Replica
from service.settings import Settings
from service.storage.log import LogReader
from service.storage.store import Store
from service.table import Table

_names = itertools.count(1)


@asynccontextmanager
async def node(brokers: Mock, folder: Path, name: str, **settings: Any) -> AsyncIterator[Replica]:
    """A node that has caught up."""
    engine = Replica(Settings(data=folder, kafka=brokers.address, topic=name, **settings))
    await engine.start()
    try:
        async with asyncio.timeout(PATIENCE):
            while why := engine.unready:
                assert engine.lifecycle.failure is None, (why, engine.lifecycle.failure)
                await asyncio.sleep(0.02)
        yield engine
    finally:
        await engine.stop(1.0)


@pytest.fixture
def name(mock_cluster: Mock) -> str:
    made = f"log-{next(_names)}"
    mock_cluster.create(made, topic.PARTITIONS)
    return made


def rows(count: int) -> list[Event]:
    return [Event({"a": float(i % 7), "b": 1.0, "c": i % 3 == 0}, i % 2) for i in range(count)]


def learned(events: list[Event]) -> str:
    learner = Learner()
    for event in events:
        learner.learn_one(event.x, int(event.y))
    return learner.sha256()


def test_a_piece_that_is_too_large_for_a_record_becomes_several_in_order(
    mock_cluster: Mock, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox, "LARGEST_RECORD", 4_096)
    events = rows(300)
    values = np.array([[float(i % 7), 1.0, float(i % 3 == 0)] for i in range(300)])
    labels = np.array([event.y for event in events], np.uint8)
    table = Table(1, ["a", "b", "c"], values, None, labels)

    async def story() -> None:
        async with node(mock_cluster, tmp_path, name) as engine:
            stream = Stream()
            pieces = [await engine.queue.submit("default", part, stream) for part in (events, table, events[:1])]
            one, two, three = [await piece for piece in pieces]
            assert [outcome.seq for outcome in one if isinstance(outcome, Learned)] == [*range(1, 301)]
            runs = [run for run in two if isinstance(run, Run)]
            assert len(runs) > 1
            assert sum(len(run.losses) for run in runs) == 300
            assert isinstance(three[0], Learned)
            assert three[0].seq == 601
            assert engine.model("default").learner.sha256() == learned(events + events + events[:1])
            wrong = [*events[:280], Event({"a": 1e301}, 1), *events[:5]]
            result = await (await engine.queue.submit("default", wrong, Stream()))
            refused = refusal_of(result)
            assert refused is not None
            assert (len(result), refused.error.index) == (281, 280)
            assert engine.model("default").learner.seq == 881

    asyncio.run(story())


@pytest.mark.parametrize("lacks", ["", "b", "word"])
def test_lines_with_ids_are_learned_though_values_are_missing(
    mock_cluster: Mock, name: str, tmp_path: Path, lacks: str
) -> None:
    """They are a table with ids, in which not every value is there."""
    events: list[Event] = []
    lines = bytearray()
    for i in range(300):
        x: dict[str, Any] = {"a": float(i % 7), "b": 1.0, "word": f"w{i % 3}"}
        if lacks and i % 4 == 1:
            x[lacks] = None
        lines += msgspec.json.encode({"id": f"id {i}", "x": x, "y": i % 2}) + b"\n"
        events.append(Event({name: value for name, value in x.items() if value is not None}, i % 2, f"id {i}"))
    shape = Shape.of(bytes(lines[: lines.index(b"\n")]))
    assert shape is not None
    table, _ = shape.read(lines, 1_000)
    assert len(table) == 300

    async def story() -> str:
        async with node(mock_cluster, tmp_path, name) as engine:
            (run,) = await (await engine.queue.submit("default", table, Stream()))
            assert isinstance(run, Run)
            assert len(run.losses) == 300
            assert await engine.learn("default", [events[1]]) == [Duplicate(2)]
            return engine.model("default").learner.sha256()

    assert asyncio.run(story()) == learned(events)


def test_an_array_that_no_record_holds_is_refused_before_the_log(
    mock_cluster: Mock, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story() -> None:
        async with node(mock_cluster, tmp_path, name, queue_events=2**20) as engine:
            wide: Any = {f"a feature with a long name, number {i}": 1.5 for i in range(9_000)}
            with pytest.raises(errors.RecordTooLarge, match="Send NDJSON"):
                await engine.learn("default", [Event(wide, 1)] * 50)
            assert engine.model("default").learner.seq == 0
            assert engine.queue.asked_events == 0

    asyncio.run(story())


def test_what_is_on_its_way_is_bounded(mock_cluster: Mock, name: str, tmp_path: Path) -> None:
    async def story() -> None:
        async with node(mock_cluster, tmp_path, name, queue_events=10) as engine:
            answers = [engine.queue.enqueue("default", rows(1)) for _ in range(10)]
            with pytest.raises(errors.QueueFull):
                engine.queue.enqueue("default", rows(1))
            seqs = [(await answer)[0].seq for answer in answers]  # type: ignore[union-attr]  # each is Learned
            assert seqs == [*range(1, 11)]
            assert engine.queue.has_room(10)

    asyncio.run(story())


def test_a_node_that_catches_up_does_not_say_that_there_is_no_model(
    mock_cluster: Mock, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Lag, "note", lambda *_: None)  # it never knows that it has all

    async def story() -> None:
        engine = Replica(Settings(data=tmp_path, kafka=mock_cluster.address, topic=name))
        await engine.start()
        async with asyncio.timeout(PATIENCE):
            while engine.queue.link is None:  # noqa: ASYNC110  # it tells nobody
                await asyncio.sleep(0.005)
        for stream in (None, Stream()):
            with pytest.raises(errors.NotReady, match="catching up"):
                await engine.learn("made-elsewhere", rows(2), stream)
        with pytest.raises(errors.NotReady, match="catching up"):
            engine.queue.enqueue("made-elsewhere", rows(1))
        await engine.stop(1.0)

    asyncio.run(story())


def test_labels_that_lead_to_too_much_are_refused_and_the_node_goes_on_behind_them(
    mock_cluster: Mock, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(draft, "JOINED_BYTES", 5_000)
    ids = [f"wide-{i}" for i in range(12)]

    async def story() -> None:
        async with node(mock_cluster, tmp_path, name) as engine:
            wide: Any = {f"feature-{i}": float(i) for i in range(200)}
            model = engine.model("default")
            for id_ in ids:
                await engine.learn("default", [model.predict_to_keep(id_, wide)])
            with pytest.raises(errors.IdsTooLarge):
                await engine.learn("default", [Label(id_, 1) for id_ in ids])
            assert engine.model("default").learner.seq == 0
            await engine.learn("default", [Label(ids[0], 1)])
            place = (engine.place_of("default") or b"").decode()
        async with node(mock_cluster, tmp_path, name) as engine:
            await engine.wait_for_place(place)
            await engine.learn("default", rows(1))
            assert (engine.model("default").learner.seq, engine.model("default").waiting) == (2, 11)

    asyncio.run(story())


def test_a_node_that_was_killed_in_the_middle_of_a_record_goes_on_in_the_middle(
    mock_cluster: Mock, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A breaker cuts a piece of a stream into turns. The events have no ids: only the position says what is there."""
    folder, kills = tmp_path / "data", list[Path]()
    folder.mkdir()
    commit = Store.commit

    def copying(store: Store, *args: Any) -> bool:
        done = commit(store, *args)
        if len(kills) < 4:
            kills.append(copied(folder, tmp_path / f"killed-{len(kills)}"))
        return done

    async def story() -> None:
        async with node(mock_cluster, folder, name) as engine:
            await engine.create("m", Spec.from_dict({"breaker": {"events": 10, "log_loss": 50}}))
            monkeypatch.setattr(Store, "commit", copying)
            await engine.learn("m", rows(45), Stream())
            monkeypatch.undo()
            learned_here = engine.model("m").learner.sha256()
        assert len(kills) == 4
        for number, kill in enumerate(kills, 1):
            with closing(LogReader(kill)) as log:
                assert log.last_seq(log.models()[-1].key) == 10 * number
            async with node(mock_cluster, kill, name) as engine:
                assert (engine.model("m").learner.seq, engine.model("m").learner.sha256()) == (45, learned_here)

    asyncio.run(story())


def test_nobody_waits_for_ever_for_a_record_that_does_not_come_back(
    mock_cluster: Mock, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox, "SURE_SECONDS", 0.5)

    async def story() -> None:
        async with node(mock_cluster, tmp_path, name) as engine:
            await engine.learn("default", rows(1))
            for number in (1, 2, 3):
                mock_cluster.down(number)
            with pytest.raises(errors.NotSure):
                await engine.learn("default", rows(1))
            with pytest.raises(errors.NotSure):
                await engine.delete("default")
            for number in (1, 2, 3):
                mock_cluster.up(number)
            async with asyncio.timeout(PATIENCE):
                while True:
                    try:
                        await engine.learn("default", rows(1))
                        break
                    except errors.NotSure:
                        continue

    asyncio.run(story())


class SpentProducer:
    """A producer that librdkafka lets write no more, as after long trouble with brokers: it says so at each call."""

    def __getattr__(self, name: str) -> Any:
        def refuses(*_: Any, **__: Any) -> Any:
            raise KafkaException(KafkaError(KafkaError._INCONSISTENT, "spent", True))  # noqa: SLF001

        return refuses


def test_a_producer_that_may_write_no_more_is_replaced_and_the_node_goes_on(
    mock_cluster: Mock, name: str, tmp_path: Path
) -> None:
    async def story() -> None:
        async with node(mock_cluster, tmp_path, name) as engine:
            link: Any = engine._link  # noqa: SLF001  # librdkafka cannot be made to say it
            for _ in range(2):
                await asyncio.to_thread(link._producer.flush, PATIENCE)  # noqa: SLF001
                link._producer = SpentProducer()  # noqa: SLF001
                await asyncio.sleep(0.3)  # its thread looks after it
                await engine.learn("default", rows(1))
            assert engine.model("default").learner.seq == 2

    asyncio.run(story())


def test_it_stops_at_once_though_much_is_not_applied(mock_cluster: Mock, name: str, tmp_path: Path) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()

    async def story() -> None:
        async with node(mock_cluster, tmp_path / "one", name, queue_events=2**20) as engine:
            for _ in range(3):
                await engine.learn("default", rows(10_000))
        async with node(mock_cluster, tmp_path / "one", name) as engine:
            assert engine.model("default").learner.seq == 30_000
        late = Replica(Settings(data=tmp_path / "two", kafka=mock_cluster.address, topic=name))
        await late.start()
        while not late.model("default").learner.seq:  # noqa: ASYNC110  # it tells nobody
            await asyncio.sleep(0.005)
        await late.stop(1.0)
        assert late.lifecycle.failure is None
        async with node(mock_cluster, tmp_path / "two", name) as engine:
            assert engine.model("default").learner.sha256() == learned(rows(10_000) * 3)

    asyncio.run(story())
