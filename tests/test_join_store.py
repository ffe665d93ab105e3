"""Waiting predictions on disk: read back or refused, and their room given back."""

from __future__ import annotations

import asyncio
import io
import logging
import random
import sqlite3
import string
from collections.abc import Callable, Coroutine, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from effort import examples, few, from_checks_on
from hypothesis import example, given
from hypothesis import strategies as st
from processes import Clock, logged_events, replay, running_engine, started, told, write_snapshots
from test_join_engine import described

from core import Spec
from core.batch import EXPIRED, JOINED, LATE, ORDINARY, Batch, Served
from core.builder import BatchBuilder
from core.features import Features
from service import errors, failures, logs
from service.commands.inspect import examine
from service.events import Event, Label
from service.learning.chores import SPACE_PAUSE_SECONDS
from service.learning.engine import Engine
from service.learning.request import Outcome
from service.replies import PredictedKept
from service.storage import codec, schema, trimming, waiting
from service.storage import store as store_module
from service.storage.codec import pack, unpack
from service.storage.ids import IdKind, NewId
from service.storage.store import ModelBatch, Store
from service.storage.waiting import Waiting, waiting_crc

PATIENCE = 60.0


def run(story: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(story, PATIENCE))


async def kept(engine: Engine, *ids: str, model: str = "default") -> list[PredictedKept]:
    """Keep a prediction under each id, each with a feature of its own."""
    found = engine.model(model)
    predictions = [found.predict_to_keep(id_, {"a": 1.0, f"f-{id_}": 2.0}) for id_ in ids]
    outcomes = await engine.learn(model, predictions)
    replies = told(outcomes).predicted
    assert all(reply.kept for reply in replies)
    return replies


async def learned(engine: Engine, *ids: str, y: int = 1, model: str = "default") -> list[Outcome]:
    return await engine.learn(model, [Label(id_, y) for id_ in ids])


def counts(engine: Engine, model: str = "default") -> tuple[int, int, int, int]:
    """How many wait, were joined, expired, were dropped."""
    found = engine.model(model)
    joined = found.joins.counts()
    return found.waiting, joined["joined"], joined["expired"], found.dropped


async def until(condition: Callable[[], Any], what: str) -> None:
    for _ in range(1_000):
        if condition():
            return
        await asyncio.sleep(0.01)
    pytest.fail(f"waited in vain for {what}")


def sql(folder: Path, statement: str, *values: Any) -> list[tuple[Any, ...]]:
    """Run a statement on a closed log, as someone who meddles with it would."""
    with closing(sqlite3.connect(folder / "log.db", isolation_level=None)) as db:
        return db.execute(statement, values).fetchall()


# -- bytes

floats = st.floats(width=64)
an_event = st.tuples(
    st.lists(st.tuples(st.integers(0, 2**30), floats), max_size=4),
    st.integers(0, 1),
    st.one_of(st.just(1.0), st.floats(1e-300, 1e300)),
    st.sampled_from([ORDINARY, JOINED, EXPIRED, LATE]),
    floats,
    floats,
)
EventRow = tuple[list[tuple[int, float]], int, float, int, float, float]
HEADER = 9


def batch_of(events: Sequence[EventRow]) -> Batch:
    return Batch(
        np.cumsum([0] + [len(event[0]) for event in events]).astype(np.int64),
        np.array([column for event in events for column, _ in event[0]], np.int32),
        np.array([value for event in events for _, value in event[0]], np.float64),
        np.array([event[1] for event in events], np.uint8),
        np.array([event[2] for event in events], np.float64),
        Served(
            np.array([event[3] for event in events], np.uint8),
            np.array([event[4] for event in events], np.float64),
            np.array([event[5] for event in events], np.float64),
        ),
    )


def bytes_of(batch: Batch) -> list[bytes]:
    arrays: list[npt.NDArray[Any]] = [batch.offsets, batch.columns, batch.values, batch.labels, batch.weights]
    if batch.served is not None:
        arrays += [batch.served.kinds, batch.served.scores, batch.served.delays]
    return [array.tobytes() for array in arrays]


@given(st.lists(an_event, max_size=8))
@example([])
@example([([], 1, 1.0, LATE, float("nan"), -0.0)])
def test_a_batch_with_what_was_served_comes_back_equal_in_every_bit(events: list[EventRow]) -> None:
    batch = batch_of(events)
    found = unpack([pack(batch)])
    assert bytes_of(found) == bytes_of(batch)
    for n in range(len(events) + 1):  # in two rows of the log
        halves = unpack([pack(batch.part(0, n)), pack(batch.part(n, len(events)))])
        assert bytes_of(halves) == bytes_of(batch)


@given(st.lists(an_event, min_size=1, max_size=4), st.lists(an_event, min_size=1, max_size=4))
def test_rows_with_and_without_what_was_served_are_one_batch(some: list[EventRow], others: list[EventRow]) -> None:
    with_, whole = batch_of(some), batch_of(others)
    without = Batch(whole.offsets, whole.columns, whole.values, whole.labels, whole.weights)
    found = unpack([pack(without), pack(with_), pack(without)])
    assert found.served is not None
    n, m = len(without), len(with_)
    assert found.served.kinds.tolist() == [ORDINARY] * n + [event[3] for event in some] + [ORDINARY] * n
    assert with_.served is not None
    assert found.served.scores[n : n + m].tobytes() == with_.served.scores.tobytes()
    assert bytes_of(found.part(n, n + m)) == bytes_of(with_)
    assert bytes_of(found)[0][: 8 * (n + 1)] == without.offsets.tobytes()


def whole_or_refused(data: bytes) -> None:
    """That these bytes are refused, or a batch whose arrays fit together."""
    try:
        batch = unpack([data])
    except ValueError:
        return
    assert batch.offsets[0] == 0
    assert batch.offsets[-1] == len(batch.columns) == len(batch.values)
    assert (np.diff(batch.offsets) >= 0).all()
    assert (batch.labels <= 1).all()
    if batch.served is not None:
        assert len(batch.served.kinds) == len(batch.served.scores) == len(batch.served.delays) == len(batch)
        assert (batch.served.kinds <= LATE).all()


@examples(300)
@given(st.lists(an_event, min_size=1, max_size=4), st.data())
def test_a_batch_with_a_flipped_bit_is_refused_or_a_batch(events: list[EventRow], data: st.DataObject) -> None:
    packed = bytearray(pack(batch_of(events)))
    for place in data.draw(st.lists(st.integers(0, len(packed) * 8 - 1), min_size=1, max_size=3)):
        packed[place // 8] ^= 1 << place % 8
    whole_or_refused(bytes(packed))


@given(st.lists(an_event, min_size=1, max_size=4), st.data())
def test_a_batch_that_is_cut_or_has_more_is_refused(events: list[EventRow], data: st.DataObject) -> None:
    packed = pack(batch_of(events))
    end = data.draw(st.integers(0, len(packed) - 1))
    more = data.draw(st.binary(min_size=1, max_size=30))
    for wrong in (packed[:end], packed + more):
        with pytest.raises(ValueError, match=r"cut short|does not fit"):
            unpack([wrong])


def test_a_kind_that_is_none_is_refused() -> None:
    packed = bytearray(pack(batch_of([([(1, 2.0)], 1, 1.0, JOINED, 0.5, 1.0)])))
    packed[HEADER + 4 + 8 + 1] = LATE + 1  # after one column, one value and the label
    with pytest.raises(ValueError, match="a kind that does not exist"):
        unpack([bytes(packed)])


names = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
numbers = st.floats(allow_nan=False, allow_infinity=False)
xs = st.one_of(
    st.dictionaries(names, st.one_of(numbers, st.booleans(), names), max_size=6),
    st.lists(st.one_of(numbers, st.booleans()), max_size=6),
)


@given(st.lists(floats, min_size=1, max_size=5), xs)
@example([float("nan")], {"a": -0.0, "b": True, "c": "1"})
def test_a_waiting_prediction_comes_back_as_it_was(served: list[float], x: Any) -> None:
    found, found_x, *asked = codec.decode_prediction(codec.encode_prediction(np.array(served), x, 3, "3f9a2c71"))
    assert asked == [3, "3f9a2c71"]
    assert found.tobytes() == np.array(served).tobytes()
    assert repr(found_x) == repr(x)  # the same order, types and signs
    found[0] = 1.0  # memory of its own


@examples(300)
@given(st.binary(max_size=40))
@example(b"")
@example(b"\0\0\0\0\x80")
@example(b"\xff\xff\xff\xff\x80")
@example(b"\x01\0\0\0" + b"\0" * 8)
def test_bytes_that_are_no_prediction_are_refused(data: bytes) -> None:
    try:
        served, x, *_ = codec.decode_prediction(data)
    except ValueError:
        return
    assert len(served) > 0
    assert isinstance(x, dict | list)


@examples(300)
@given(st.lists(floats, min_size=1, max_size=3), xs, st.data())
def test_a_prediction_that_is_damaged_or_cut_is_refused_or_a_prediction(
    served: list[float], x: Any, data: st.DataObject
) -> None:
    encoded = bytearray(codec.encode_prediction(np.array(served), x))
    with pytest.raises(ValueError):  # noqa: PT011  # cut in the header, or in the x
        codec.decode_prediction(bytes(encoded[: data.draw(st.integers(0, len(encoded) - 1))]))
    place = data.draw(st.integers(0, len(encoded) * 8 - 1))
    encoded[place // 8] ^= 1 << place % 8
    try:
        found, found_x, *_ = codec.decode_prediction(bytes(encoded))
    except ValueError:
        return
    assert len(found) > 0
    assert isinstance(found_x, dict | list)


# -- damage

Damage = Callable[[Path], Any]


def damaged_payload(folder: Path) -> None:
    ((payload,),) = sql(folder, "SELECT payload FROM waiting WHERE id = 'p1'")
    flipped = payload[:-1] + bytes([payload[-1] ^ 1])
    sql(folder, "UPDATE waiting SET payload = ? WHERE id = 'p1'", flipped)


def unreadable_payload(folder: Path) -> None:
    """Whole by its checksum, but no prediction."""
    ((model, number, kept_at, seq),) = sql(folder, "SELECT model, number, kept_at, seq FROM waiting WHERE id = 'p1'")
    payload = b"\x01\0\0\0 no prediction"
    checksum = waiting_crc(model, number, b"p1", kept_at, seq, payload)
    sql(folder, "UPDATE waiting SET payload = ?, checksum = ? WHERE id = 'p1'", payload, checksum)


DAMAGES: dict[str, Damage] = {
    "its payload": damaged_payload,
    "its payload, with a checksum that fits": unreadable_payload,
    "its payload gone": lambda folder: sql(folder, "UPDATE waiting SET payload = x'' WHERE id = 'p1'"),
    "its checksum": lambda folder: sql(folder, "UPDATE waiting SET checksum = checksum + 1 WHERE id = 'p1'"),
    "its seq": lambda folder: sql(folder, "UPDATE waiting SET seq = seq + 1 WHERE id = 'p1'"),
    "its time, a little": lambda folder: sql(folder, "UPDATE waiting SET kept_at = kept_at - 1 WHERE id = 'p1'"),
    "its time, far ahead": lambda folder: sql(folder, "UPDATE waiting SET kept_at = kept_at | 1 << 61 WHERE id = 'p1'"),
    "its time, long ago": lambda folder: sql(folder, "UPDATE waiting SET kept_at = kept_at | 1 << 63 WHERE id = 'p1'"),
    "its number": lambda folder: sql(folder, "UPDATE waiting SET number = number + 64 WHERE id = 'p1'"),
    "its id, now of one that waits": lambda folder: sql(folder, "UPDATE waiting SET id = 'p0' WHERE id = 'p1'"),
    "its id, now of one that was learned": lambda folder: sql(folder, "UPDATE waiting SET id = 'done' WHERE id = 'p1'"),
    "its id, now of nobody": lambda folder: sql(folder, "UPDATE waiting SET id = 'p9' WHERE id = 'p1'"),
    "its id, now no text": lambda folder: sql(folder, "UPDATE waiting SET id = CAST(x'F031' AS TEXT) WHERE id = 'p1'"),
    "its row gone": lambda folder: sql(folder, "DELETE FROM waiting WHERE id = 'p1'"),
    "the number of its id": lambda folder: sql(folder, "UPDATE ids SET seq = seq + 64 WHERE id = 'p1'"),
    "the number of its id, now of another": lambda folder: sql(folder, "UPDATE ids SET seq = 1 WHERE id = 'p1'"),
}
AT_ONCE = ("its time, far ahead", "its time, long ago")
"""What is dropped when it is first looked at."""
HARMLESS = tuple(damage for damage in DAMAGES if damage.startswith("its id, now"))
"""What its id's own row still tells."""


def test_a_damaged_prediction_that_is_asked_for_again_and_again_does_not_fill_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = io.StringIO()
    monkeypatch.setattr(logging.root, "handlers", [])
    logs.set_up("info", "json", out)

    async def story() -> None:
        async with running_engine(tmp_path) as engine:
            await kept(engine, "p1")
        damaged_payload(tmp_path)
        async with running_engine(tmp_path) as engine:
            for _ in range(50):
                with pytest.raises(errors.PredictionDamaged):
                    await learned(engine, "p1")

    run(story())
    assert 1 <= out.getvalue().count("'p1'") < 5


@from_checks_on
@pytest.mark.parametrize("on_timeout", ["drop", "negative"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_prediction_is_refused_and_the_others_are_joined_and_time_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str, on_timeout: str
) -> None:
    clock = Clock(monkeypatch, store_module)

    async def story() -> None:
        async with running_engine(tmp_path) as engine:
            await engine.create("m", Spec.from_dict({"join": {"on_timeout": on_timeout}}))
            await kept(engine, "p0", "p1", "p2", "p3", "done", model="m")
            await learned(engine, "done", model="m")
        DAMAGES[damage](tmp_path)
        async with running_engine(tmp_path) as engine:
            await until(lambda: all(model.next_timeout > 0 for model in engine.models), "a look for timeouts")
            if damage not in (*AT_ONCE, *HARMLESS):
                with pytest.raises(errors.PredictionDamaged, match="'p1' is damaged on the disk and was not learned"):
                    await learned(engine, "p1", model="m")
                with pytest.raises(errors.PredictionDamaged, match="under another id"):
                    await engine.learn("m", [Event({"a": 1.0, "f-p1": 2.0}, 1, "p1")])
                with pytest.raises(errors.PredictionDamaged):
                    await kept(engine, "p1", model="m")
            assert told(await learned(engine, "p2", model="m")).seq == [2]
            await kept(engine, "p4", model="m")
            clock.advance(25 * 3600, engine)
            await until(lambda: counts(engine, "m")[0] == 0, "all to time out")
            in_time = 3 + (damage in HARMLESS)
            expired = in_time if on_timeout == "negative" else 0
            assert counts(engine, "m") == (0, 2, expired, (3 if damage == "its row gone" else 4) - expired)
            for id_ in ("p0", "p3", "p4"):
                with pytest.raises(errors.ExpiredId if expired else errors.DroppedId):
                    await learned(engine, id_, model="m")
            unreached = damage in ("its row gone", "its number") or damage.startswith("the number of its id")
            good = expired and damage in HARMLESS
            with pytest.raises(
                errors.ExpiredId if good else errors.PredictionDamaged if unreached else errors.DroppedId
            ):
                await learned(engine, "p1", model="m")
            assert told(await learned(engine, "done", model="m")).duplicate == [True]
            assert engine.lifecycle.failure is None
            after = described(engine.model("m"))
        async with running_engine(tmp_path) as engine:
            assert described(engine.model("m")) == after
        assert replay(tmp_path)["m"]["sha256"] == after["sha256"]

    run(story())


@pytest.mark.parametrize("kind", [ORDINARY, JOINED, EXPIRED, IdKind.DROPPED, 64])
@pytest.mark.parametrize("on_timeout", ["drop", "negative"])
def test_an_id_that_stands_for_something_else_does_not_stop_the_timeouts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: int, on_timeout: str
) -> None:
    clock = Clock(monkeypatch, store_module)

    async def story() -> None:
        async with running_engine(tmp_path) as engine:
            await engine.create("m", Spec.from_dict({"join": {"on_timeout": on_timeout}}))
            await kept(engine, "p0", "p1", "p2", model="m")
        sql(tmp_path, "UPDATE ids SET kind = ? WHERE id = 'p1'", kind)
        async with running_engine(tmp_path) as engine:
            with pytest.raises(errors.LogstepError):
                await learned(engine, "p1", model="m")
            clock.advance(25 * 3600, engine)
            await until(lambda: counts(engine, "m")[0] == 0 or engine.lifecycle.failure, "all to time out")
            assert engine.lifecycle.failure is None
            expired = 2 if on_timeout == "negative" else 0
            assert counts(engine, "m") == (0, 0, expired, 3 - expired)

    run(story())


@pytest.mark.parametrize("on_timeout", ["drop", "negative"])
def test_predictions_time_out_by_their_size_some_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, on_timeout: str
) -> None:
    """What is read at once is bounded, and none is forgotten; long ones come back as short ones do."""
    monkeypatch.setattr(waiting, "OLDEST_BYTES", 3_000)
    clock = Clock(monkeypatch)
    wide = {f"a feature with a long name, {i}": 1.0 for i in range(2_000)}

    async def story() -> None:
        async with running_engine(tmp_path) as engine:
            join = {"keep": "60s", "on_timeout": on_timeout}
            model, _ = await engine.create("late", Spec.from_dict({"join": join}))
            predictions = [model.predict_to_keep(str(i), wide if i % 3 else {"a": 1.0}) for i in range(12)]
            await engine.learn("late", predictions)
            assert told(await engine.learn("late", [Label("1", 1)])).seq == [1]  # of a long one
            assert len(engine.disk.store.log.waiting.oldest(model.stored.key, 500)) < 11
            clock.advance(61.0, engine)
            await until(lambda: model.waiting == 0, "all of them to time out")
            timed_out = model.dropped if on_timeout == "drop" else model.learner.seq - 1
            assert timed_out == 11
            assert model.learner.n_features == (2_000 if on_timeout == "drop" else 2_001)

    run(story())


def test_an_id_that_was_lost_does_not_stop_the_timeouts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, store_module)

    async def story() -> None:
        async with running_engine(tmp_path) as engine:
            await kept(engine, "p0", "p1")
        sql(tmp_path, "DELETE FROM ids WHERE id = 'p1'")
        async with running_engine(tmp_path) as engine:
            with pytest.raises(errors.UnknownId):
                await learned(engine, "p1")
            clock.advance(25 * 3600, engine)
            await until(lambda: counts(engine)[0] == 0, "all to time out")
            assert counts(engine) == (0, 0, 0, 2)

    run(story())


def test_a_damaged_count_of_dropped_predictions_is_refused_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch, store_module)

    async def story() -> None:
        async with running_engine(tmp_path) as engine:
            await kept(engine, "p0", "p1")
            clock.advance(25 * 3600, engine)
            await until(lambda: counts(engine) == (0, 0, 0, 2), "both to time out")
        sql(tmp_path, "UPDATE drops SET predictions = 3")
        engine = await started(tmp_path)
        assert isinstance(engine.lifecycle.failure, failures.LogDamaged)
        assert "the row of 3 dropped prediction(s) has a wrong checksum" in str(engine.lifecycle.failure)
        await engine.stop(seconds=0)
        (damage,) = examine(tmp_path).damage
        assert "the row of 3 dropped prediction(s) has a wrong checksum" in damage

    run(story())


def test_an_event_that_is_damaged_in_the_log_cannot_be_corrected_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch, store_module)

    async def story() -> None:
        async with running_engine(tmp_path) as engine:
            await engine.create("m", Spec.from_dict({"join": {"on_timeout": "negative", "late": "learn"}}))
            await kept(engine, "p0", "p1", model="m")
            clock.advance(25 * 3600, engine)
            await until(lambda: counts(engine, "m") == (0, 0, 2, 0), "both to time out")
            engine.disk.store.log.db.connection.execute("UPDATE batches SET checksum = checksum + 1")
            with pytest.raises(errors.PredictionDamaged, match="'p1' is damaged on the disk"):
                await learned(engine, "p1", model="m")
            await kept(engine, "p2", model="m")
            assert told(await learned(engine, "p2", model="m")).seq == [3]
            assert engine.lifecycle.failure is None

    run(story())


# -- room


def pages(store: Store) -> int:
    return int(store.log.db.connection.execute("PRAGMA page_count").fetchone()[0])


class Keeper:
    """Keeps predictions of about 900 bytes in a store, and joins or drops them, as the engine does."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.model = store.create_model("m", Spec().as_dict()).key
        self.features = Features()
        self.features.extend(["a"])
        self.number = self.seq = 0
        self.waiting: list[Waiting] = []
        self.x = {"text": "".join(random.Random(1).choices(string.ascii_letters, k=850))}
        self.names: Sequence[str] = ["a"]

    def commit(self, batch: Batch, **more: Any) -> None:
        self.store.commit([ModelBatch(self.model, self.seq + 1, batch, 0, self.names, None, **more)])
        self.names = []
        self.seq += len(batch)

    def keep(self, count: int) -> None:
        served = np.array([0.5])
        new = [Waiting(self.number + i, f"p{self.number + i}", 7, 0, served, self.x) for i in range(1, count + 1)]
        self.commit(BatchBuilder(self.features).build(), kept=new)
        self.number += count
        self.waiting += new

    def join(self, count: int) -> None:
        builder = BatchBuilder(self.features)
        done, self.waiting = self.waiting[:count], self.waiting[count:]
        for _ in done:
            builder.add({"a": 1.0}, 1)
        batch = builder.build()
        ids = [NewId(w.id, self.seq + i, 1, JOINED, 1) for i, w in enumerate(done, 1)]
        self.commit(batch, changed_ids=ids, done=[w.number for w in done])

    def drop(self, count: int) -> None:
        gone, self.waiting = self.waiting[:count], self.waiting[count:]
        self.commit(BatchBuilder(self.features).build(), dropped=[(w.number, w.id) for w in gone])


def size_when_closed(folder: Path, store: Store) -> int:
    while store.trimming.give_back():
        pass
    store.close()  # which checkpoints
    return (folder / "log.db").stat().st_size


@from_checks_on
@few(1)
@pytest.mark.parametrize("how", ["join", "drop"])
def test_the_file_gives_back_the_room_of_predictions_that_no_longer_wait(tmp_path: Path, how: str) -> None:
    store = Store(tmp_path)
    keeper = Keeper(store)
    for _ in range(40):
        keeper.keep(1_000)
    peak = pages(store) * schema.PAGE_BYTES
    assert peak > 35e6
    for _ in range(40):
        getattr(keeper, how)(1_000)
    assert store.log.waiting.count(keeper.model) == 0
    size = size_when_closed(tmp_path, store)
    print(f"{peak / 1e6:.1f} MB with 40,000 waiting, {size / 1e6:.1f} MB after")
    assert size < trimming.FREE_BYTES + 5e6  # what it keeps for what comes, and ids and events


@from_checks_on
def test_steady_traffic_does_not_grow_the_file(tmp_path: Path) -> None:
    store = Store(tmp_path)
    keeper = Keeper(store)
    keeper.keep(2_000)
    sizes = []
    for i in range(60):
        keeper.keep(500)
        (keeper.join if i % 3 else keeper.drop)(500)
        sizes.append(pages(store) * schema.PAGE_BYTES)
    # 25,000 predictions of 900 bytes went through after the first ten turns; under 100 of each stay: id and event.
    print(f"{sizes[9] / 1e6:.1f} MB after 5,000, {sizes[-1] / 1e6:.1f} MB after 30,000")
    assert sizes[-1] - sizes[9] < 25_000 * 100
    assert size_when_closed(tmp_path, store) < 2_000 * 1_300 + 30_000 * 100 + 1e6


@from_checks_on
def test_the_service_gives_back_room_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, store_module)
    monkeypatch.setattr(trimming, "FREE_BYTES", 1 << 20)

    async def story() -> None:
        async with running_engine(tmp_path) as engine:
            model = engine.model("default")
            x = {f"feature-{i}": "v" * 250 for i in range(4)}
            for i in range(10):
                await engine.learn("default", [model.predict_to_keep(f"p{i}-{j}", x) for j in range(1_000)])
            peak = await engine.disk.run(pages)
            clock.advance(25 * 3600, engine)
            await until(lambda: counts(engine) == (0, 0, 0, 10_000), "all to time out")

            def is_small() -> bool:
                clock.let_pass(SPACE_PAUSE_SECONDS, engine)
                return pages(engine.disk.store) < peak // 4

            await until(is_small, "the room to be given back")
            with pytest.raises(errors.DroppedId):
                await learned(engine, "p9-999")

    run(story())


# -- snapshots


def test_a_start_from_a_snapshot_tells_the_same_of_labels_as_one_from_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch, store_module)

    async def story() -> None:
        async with running_engine(tmp_path, window=7) as engine:
            await engine.create("m", Spec.from_dict({"join": {"on_timeout": "negative", "late": "learn"}}))
            for i in range(30):
                if i == 20:
                    await write_snapshots(engine)
                    model = engine.model("m")
                    assert model.snapshot_seq == model.learner.seq
                await kept(engine, f"p{i}", f"never-{i}", model="m")
                clock.advance(10.0 ** (i % 5) / 10, engine)
                await learned(engine, f"p{i}", y=i % 2, model="m")
                await engine.learn("m", [Event({"b": float(i)}, i % 2)])
            clock.advance(25 * 3600, engine)
            await until(lambda: counts(engine, "m") == (0, 30, 30, 0), "the rest to time out")
            await learned(engine, "never-3", "never-7", model="m")
            before = described(engine.model("m"))
            assert before["counts"] == {"joined": 30, "expired": 30, "late": 2}
            assert sum(bucket["count"] > 0 for bucket in before["delays"]["buckets"]) > 3
        async with running_engine(tmp_path, window=7) as engine:
            assert engine.model("m").snapshot_seq > 0
            assert described(engine.model("m")) == before
        sql(tmp_path, "DELETE FROM snapshots")
        async with running_engine(tmp_path, window=7) as engine:
            assert engine.model("m").snapshot_seq == 0
            assert described(engine.model("m")) == before
        assert len(logged_events(tmp_path, "m")) == 92

    run(story())
