"""The series: what happened is told after any restart, merged without loss, bounded, and nothing depends on it."""

from __future__ import annotations

import asyncio
import itertools
import random
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from effort import examples, from_checks_on
from harness import Service, Start, assert_problem
from hypothesis import given
from hypothesis import strategies as st
from patience import eventually
from processes import Clock, running_engine

from core import Spec
from service import errors
from service.commands.inspect import examine
from service.events import Event
from service.learning import sampling
from service.learning.model import Model
from service.learning.sampling import Sampler
from service.learning.telemetry import Facts, OfTopic, Telemetry
from service.storage import series
from service.storage.log import LogReader, StoredModel
from service.storage.series import Mark, Piece, Row
from service.storage.store import Store
from service.watching.past import Grid, asked_for, on_grid

HOUR, DAY = 3_600, 86_400
NOW = 1_767_225_600


def row(t: int, seconds: int = 5, model: int = 1, **values: Any) -> Row:
    """A row of 10 events and 2 predictions; `values` are of other things."""
    given: dict[str, Any] = {
        "seq": 100, "features": 3, "learned": 10, "predicted": 2, "scored": 10, "loss": 5.0, "loss_total": 0.5,
        "loss_window": 0.4, "accuracy_window": 0.8, "entropy": 0.69, "served": 0, "served_loss": 0.0, "waiting": 0,
        "delays": 0, "delay": 0.0, "commit_p50_ms": 0.4, "commit_p99_ms": 2.0, "shares": None,
    }  # fmt: skip
    return Row(model, t, seconds, **{**given, **values})


def piece(
    now: int, *rows: Row, tidied: list[int] | None = None, models: int = 1, marks: tuple[Mark, ...] = ()
) -> Piece:
    return Piece(now, rows, marks, tidied or [], models)


def stored(folder: Path, model: int = 1) -> list[Row]:
    """Every row of a model."""
    log = LogReader(folder)
    try:
        return series.read(log.db, model, 0, 2 * NOW)[0]
    finally:
        log.close()


def ask(service: Service, model: str = "default", **query: Any) -> dict[str, Any]:
    response = service.http.get(f"/models/{model}/series", params=query)
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


def learned_in(found: dict[str, Any]) -> float:
    """Events learned in all points together."""
    now = time.time()
    rates: list[tuple[float, float | None]] = list(zip(found["t"], found["learned"], strict=True))
    step: float = found["step"]
    return sum(rate * max(1.0, min(step, now - (t - step))) for t, rate in rates if rate is not None)


def some(count: int) -> list[dict[str, Any]]:
    numbers = random.Random(count)
    return [{"x": {"a": (a := numbers.random()), "b": 1.0}, "y": int(numbers.random() < a)} for _ in range(count)]


# -- a service


@from_checks_on
def test_the_past_survives_a_kill_and_a_stop(start: Start) -> None:
    service = start()
    folder = service.folder
    service.model("mixture").create({"rule": "auto"})
    for name in ("default", "mixture"):
        service.model(name).learn(some(400))
        service.model(name).predict({"x": {"a": 1}})
    eventually(lambda: any(ask(service, "mixture")["learned"]), "a row")
    before = ask(service)
    service.kill()
    service = start(folder=folder)
    second = time.time()
    state = service.model().state()["progressive"]
    after = ask(service, **{"from": before["from"], "to": before["to"]})
    assert {**after, "marks": None} == {**before, "marks": None}
    point = next(i for i, seq in enumerate(after["seq"]) if seq == 400)
    assert after["loss_total"][point] == pytest.approx(state["total"]["log_loss"])
    assert after["loss_window"][point] == pytest.approx(state["window"]["log_loss"])
    assert after["accuracy_window"][point] == state["window"]["accuracy"]
    assert after["base_rate_loss_window"][point] == pytest.approx(state["window"]["base_rate_log_loss"])
    assert learned_in(after) == pytest.approx(400)
    assert sum(rate for rate in after["predicted"] if rate) * 5 == pytest.approx(1)
    arrays = [values for name, values in after.items() if isinstance(values, list) and name != "marks"]
    assert {len(values) for values in arrays} == {len(after["t"])}
    mixture = ask(service, "mixture")["shares"]
    assert set(mixture) == {"single", "evidence", "pairs", "stackers"}
    for shares in zip(*mixture.values(), strict=True):
        assert shares == (None,) * 4 or sum(shares) == pytest.approx(1, abs=2e-4)  # each is rounded
    assert any(share is not None for share in mixture["pairs"])
    service.model().learn(some(30))
    assert service.stop() == 0  # what was not written yet is written then
    time.sleep(max(0.0, second + 1.1 - time.time()))  # two starts within a second are one mark
    service = start(folder=folder)
    # Rates, over spans that are not to the microsecond while the last of them goes on.
    eventually(lambda: learned_in(ask(service)) == pytest.approx(430, abs=0.5), "all of it to be told")
    eventually(lambda: service.model().learn(some(1)) and len(starts(service)) == 3, "the mark of the third start")


def starts_of(found: dict[str, Any]) -> list[dict[str, Any]]:
    return [mark for mark in found["marks"] if mark["kind"] == "start"]


def starts(service: Service) -> list[dict[str, Any]]:
    return starts_of(ask(service))


def test_an_idle_service_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)

    def last_commit() -> tuple[int, int]:
        with closing(LogReader(tmp_path)) as log:
            return log.db.log_end()

    async def run() -> None:
        async with running_engine(tmp_path) as engine:
            await learn(engine, 10)
            clock.let_pass(series.BUCKET_SECONDS, engine)
            for _ in range(1_000):
                if stored(tmp_path):
                    break
                await asyncio.sleep(0.01)
            before = last_commit()
            for _ in range(2 * sampling.TIDY_SECONDS // series.BUCKET_SECONDS):
                clock.let_pass(series.BUCKET_SECONDS, engine)
                await asyncio.sleep(0.002)
            assert last_commit() == before

    asyncio.run(run())
    assert len(stored(tmp_path)) == 1
    assert examine(tmp_path).wrong == []


def test_what_makes_no_sense_is_refused_with_its_field(shared: Service) -> None:
    for query, field in (
        ({"from": "yesterday"}, "from"),
        ({"to": "-1"}, "to"),
        ({"to": "nan"}, "to"),
        ({"from": "1e400"}, "from"),
        ({"from": "1700000000000"}, "from"),
        ({"from": "100", "to": "100"}, "from"),
        ({"from": "0"}, "from"),
        ({"step": "1"}, "step"),
        ({"step": "0"}, "step"),
    ):
        problem = assert_problem(shared.http.get("/models/default/series", params=query), 422)
        assert problem["field"] == field, query
    assert_problem(shared.http.get("/models/nobody/series"), 404)


@from_checks_on
def test_a_deleted_model_takes_its_past_along(start: Start) -> None:
    service = start()
    service.model("short-lived").create({})
    service.model("short-lived").learn(some(20))
    eventually(lambda: any(ask(service, "short-lived")["learned"]), "a row")
    assert stored(service.folder, 2)
    service.model("short-lived").delete()
    eventually(lambda: not stored(service.folder, 2), "the rows to go")
    service.model("short-lived").create({})
    assert not any(ask(service, "short-lived")["learned"])


# -- writing, merging, dropping


@contextmanager
def store_of_one_model(folder: Path) -> Iterator[Store]:
    with closing(Store(folder)) as store:
        assert store.create_model("m", Spec().as_dict()).key == 1
        yield store


def test_what_is_told_of_a_model_after_it_was_deleted_is_not_kept(tmp_path: Path) -> None:
    with store_of_one_model(tmp_path) as store:
        (model,) = store.log.models()
        store.delete_model(model)
        while store.trimming.purge():
            pass
        late = Mark(1, NOW, 100, "snapshot"), Mark(0, NOW, 0, "start")
        store.write_series(piece(NOW, row(NOW), marks=late))
        assert list(store.log.db.rows("SELECT model FROM series UNION ALL SELECT model FROM marks")) == [(0,)]


def test_rows_are_merged_with_age_and_nothing_of_them_is_lost(tmp_path: Path) -> None:
    first = NOW - 2 * DAY
    with store_of_one_model(tmp_path) as store:
        for start in range(first, NOW, 30_000):
            rows = [row(t, seq=t - first, loss=float(t % 7)) for t in range(start + 5, min(start + 30_000, NOW) + 1, 5)]
            store.write_series(piece(NOW, *rows))
        store.write_series(piece(NOW, tidied=[1]))
    found = stored(tmp_path)
    old = [r for r in found if r.t <= NOW - DAY]
    middle = [r for r in found if NOW - DAY < r.t <= NOW - HOUR]
    new = [r for r in found if r.t > NOW - HOUR]
    assert {r.seconds for r in old} == {900}
    assert {r.seconds for r in middle} == {60}
    assert {r.seconds for r in new} == {5}
    assert sum(r.learned for r in found) == 10 * (NOW - first) // 5
    assert sum(r.loss for r in found) == sum(float(t % 7) for t in range(first + 5, NOW + 1, 5))
    assert all(r.seq == r.t - first for r in found)  # of the newest of those merged
    assert len(found) == 96 + 1_380 + 720


@given(
    times=st.lists(st.integers(NOW - 40 * DAY, NOW), min_size=1, max_size=60, unique=True),
    later=st.lists(st.integers(0, 3 * DAY), max_size=4),
)
@examples(30)
def test_merging_keeps_sums_and_the_newest_however_often_it_is_done(
    tmp_path_factory: pytest.TempPathFactory, times: list[int], later: list[int]
) -> None:
    folder, now = tmp_path_factory.mktemp("data"), NOW
    rows = [row(t, seq=i, learned=i % 5) for i, t in enumerate(sorted(times))]
    with store_of_one_model(folder) as store:
        store.write_series(piece(NOW, *rows))
        for seconds in (0, *later):
            now += seconds
            store.write_series(piece(now, tidied=[1]))
    found = stored(folder)
    kept = [r for r in rows if r.t > now - series.KEPT_SECONDS]
    surely = [r for r in rows if r.t > now - series.KEPT_SECONDS + 900]
    assert sum(r.learned for r in surely) <= sum(r.learned for r in found) <= sum(r.learned for r in rows)
    if kept:
        assert found[-1].seq == kept[-1].seq
    assert all(a.t < b.t for a, b in itertools.pairwise(found))
    assert all(r.t > now - series.KEPT_SECONDS for r in found)


def test_a_month_of_rows_is_bounded_and_so_are_the_marks(tmp_path: Path) -> None:
    with store_of_one_model(tmp_path) as store:
        rows = [row(t) for t in range(NOW - 5 * 6_000, NOW, 5)]
        marks = tuple(Mark(model, NOW - i, i, "snapshot") for model in (0, 1) for i in range(2 * series.KEPT_MARKS))
        store.write_series(piece(NOW - 100 * DAY, *rows, marks=marks))
        store.write_series(piece(NOW - 100 * DAY, tidied=[1], models=series.MOST_ROWS))  # many models: the fewest rows
        log = LogReader(tmp_path)
        found, marked = series.read(log.db, 1, 0, 2 * NOW)
        log.close()
    assert [r.t for r in found] == [r.t for r in rows[-series.FEWEST_ROWS :]]
    assert len(marked) == 2 * series.KEPT_MARKS


def test_rows_are_gone_after_a_month(tmp_path: Path) -> None:
    with store_of_one_model(tmp_path) as store:
        store.write_series(piece(NOW, row(NOW - series.KEPT_SECONDS - 900), row(NOW - 5), tidied=[1]))
    assert [r.t for r in stored(tmp_path)] == [NOW - 5]


# -- nothing depends on it


async def learn(engine: Any, count: int = 1) -> None:
    await engine.learn("default", [Event({"a": 1.0}, 1)] * count)


def test_a_full_disk_leaves_a_gap_and_nothing_else(tmp_path: Path) -> None:
    async def run() -> tuple[int, str]:
        async with running_engine(tmp_path) as engine:
            await learn(engine, 5)
            store = engine.disk.store
            limit = store.log.db.connection.execute("PRAGMA page_count").fetchone()[0]
            store.log.db.connection.execute(f"PRAGMA max_page_count = {limit}").fetchall()
            many = piece(NOW, *(row(NOW - 5 * i) for i in range(2_000)))
            with pytest.raises(errors.DiskFull):
                await engine.disk.run(Store.write_series, many)
            await learn(engine, 5)
            store.log.db.connection.execute("PRAGMA max_page_count = 1000000").fetchall()
            await engine.disk.run(Store.write_series, many)
            await learn(engine, 5)
            return engine.model("default").learner.seq, engine.lifecycle.state

    assert asyncio.run(run()) == (15, "ready")
    assert len(stored(tmp_path)) >= 2_000


def test_damaged_series_are_left_alone_and_learning_goes_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def run(folder: Path) -> int:
        async with running_engine(folder) as engine:
            await learn(engine, 5)
            for _ in range(2):
                await engine.disk.run(Store.write_series, piece(NOW, row(NOW)))
            await learn(engine, 5)
            return engine.model("default").learner.seq

    assert asyncio.run(run(tmp_path)) == 10
    with closing(sqlite3.connect(tmp_path / "log.db")) as db:
        ((root,),) = db.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'series'").fetchall()
        ((size,),) = db.execute("PRAGMA page_size").fetchall()
    with (tmp_path / "log.db").open("r+b") as file:
        file.seek((root - 1) * size)
        file.write(b"\x77" * size)
    assert asyncio.run(run(tmp_path)) == 20
    assert caplog.text.count("the plot series are damaged") == 1


# -- sampling


def models(count: int) -> list[Model]:
    return [Model(StoredModel(i, f"m{i}", Spec().as_dict()), 10) for i in range(1, count + 1)]


def sampler(known: list[Model]) -> Sampler:
    telemetry = Telemetry(lambda: Facts(True, Path(), 0, known, None, OfTopic()))
    looking = Sampler(telemetry)
    looking.begin(NOW, known)
    return looking


def pieces(looking: Sampler, now: float, known: list[Model]) -> list[Piece]:
    found = []
    while (written := looking.piece(now, known)) is not None:
        found.append(written)
    return found


def test_only_models_with_news_are_written_and_each_once_a_bucket() -> None:
    known = models(5)
    looking = sampler(known)
    known[1].learned, known[3].predicted = 7, 9
    assert pieces(looking, NOW + 4.9, known) == []
    (written,) = pieces(looking, NOW + 5.1, known)
    assert [(r.model, r.t, r.seconds, r.learned, r.predicted) for r in written.rows] == [
        (2, NOW + 5, 5, 7, 0),
        (4, NOW + 5, 5, 0, 9),
    ]
    assert written.marks == [Mark(0, NOW, 0, "start")]
    assert pieces(looking, NOW + 10.1, known) == []
    known[1].learned = 8
    (written,) = pieces(looking, NOW + 20.0, known)
    assert [(r.model, r.t, r.seconds, r.learned) for r in written.rows] == [(2, NOW + 20, 10, 1)]
    assert written.marks == []


def test_where_very_many_have_news_they_take_turns_in_small_pieces() -> None:
    known = models(1_500)
    looking = sampler(known)
    for model in known:
        model.learned = 1
    first = pieces(looking, NOW + 5, known)
    assert [len(p.rows) for p in first] == [sampling.PIECE] * (sampling.MOST_IN_A_BUCKET // sampling.PIECE)
    second = pieces(looking, NOW + 10, known)
    rows = [r for p in first + second for r in p.rows]
    assert sorted(r.model for r in rows) == list(range(1, 1_501))
    assert {r.seconds for p in second for r in p.rows} == {10}
    assert all(not p.tidied for p in first[:-1])
    assert len(first[-1].tidied) == sampling.TIDIED


def test_a_clock_that_is_set_back_or_far_ahead_holds_nothing_up() -> None:
    known = models(1)
    looking = sampler(known)
    for learned, now in enumerate((NOW - 10 * DAY, NOW + 100 * DAY, NOW), 1):
        known[0].learned = learned
        (written,) = pieces(looking, now, known)
        assert [(r.t, r.learned) for r in written.rows] == [(now, 1)]
        assert written.rows[0].seconds >= 1


# -- the grid


def told(grid: Grid, rows: list[Row], *marks: Mark) -> dict[str, Any]:
    """What a reply has of these rows, long after."""
    found: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(on_grid(grid, rows, marks, grid.end + 1e6)))
    return found


def test_by_default_it_is_the_last_hour_in_the_shortest_step() -> None:
    assert asked_for(NOW, None, None, None) == Grid(NOW - HOUR, NOW, 5)
    assert asked_for(NOW + 0.5, None, None, None) == Grid(NOW - HOUR + 5, NOW + 5, 5)
    assert asked_for(NOW + 0.5, str(NOW - HOUR), None, None) == Grid(NOW - HOUR + 5, NOW + 5, 5)


@pytest.mark.parametrize(("back", "step"), [(HOUR, 5), (2 * HOUR, 60), (12 * HOUR, 60), (DAY, 120), (31 * DAY, 7_200)])
def test_older_times_have_the_step_of_their_rows_and_no_more_points_than_a_plot_shows(back: int, step: int) -> None:
    grid = asked_for(NOW, str(NOW - back), None, None)
    assert (grid.step, grid.points <= 720) == (step, True)


def test_rows_are_spread_and_added_up_and_gaps_are_null() -> None:
    rows = [row(NOW + 5, seq=1), row(NOW + 10, seq=2, loss_window=None), row(NOW + 90, seconds=60, seq=3, learned=60)]
    found = told(Grid(NOW, NOW + 120, 15), rows)
    assert found["t"] == [NOW + 15 * i for i in range(1, 9)]
    assert found["seq"] == [2, None, 3, 3, 3, 3, None, None]
    assert found["learned"] == [20 / 15, None, 1, 1, 1, 1, None, None]
    assert found["loss"] == [0.5, None, 0.5, 0.5, 0.5, 0.5, None, None]
    assert found["loss_window"] == [None, None, 0.4, 0.4, 0.4, 0.4, None, None]


@given(
    st.lists(st.tuples(st.integers(1, 90), st.integers(0, 50), st.integers(0, 40)), max_size=30),
    st.integers(1, 100),
)
def test_whatever_the_step_the_events_of_all_points_are_those_of_the_rows(
    spans: list[tuple[int, int, int]], step: int
) -> None:
    rows, t = [], NOW
    for seconds, learned, gap in spans:
        t += gap + seconds
        rows.append(row(t, seconds=seconds, learned=learned))
    grid = Grid(NOW // step * step, (t // step + 1) * step, step)
    found = told(grid, rows)
    total = sum(rate for rate in found["learned"] if rate is not None) * step
    assert total == pytest.approx(sum(r.learned for r in rows))
    for i, end in enumerate(found["t"]):
        covered = any(r.t - r.seconds < end and r.t > end - step for r in rows)
        assert (found["seq"][i] is not None) == covered


def test_no_rows_are_no_points_but_nulls() -> None:
    found = told(Grid(NOW, NOW + 10, 5), [], Mark(0, NOW + 1, 0, "start"), Mark(1, NOW + 2, 7, "snapshot"))
    assert all(found[name] == [None, None] for name in ("seq", "learned", "loss", "waiting"))
    assert "shares" not in found
    assert found["marks"] == [
        {"t": NOW + 1, "kind": "start", "seq": None},
        {"t": NOW + 2, "kind": "snapshot", "seq": 7},
    ]
