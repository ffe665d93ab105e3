"""The client in logstep.py: what it takes, what it sends, and what it gives back, against a real service."""

from __future__ import annotations

import asyncio
import copy
import doctest
import functools
import html.parser
import importlib.util
import json
import pickle
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from effort import from_checks_on
from harness import Model, Service, Start
from harness import Service as Process

import logstep
from logstep import AsyncClient, Client, Learned, LearnedMany, Prediction, Problem

ROOT = Path(__file__).resolve().parent.parent
ROWS: list[dict[str, Any]] = [{"age": 20.0 + i, "country": ("FR", "DE")[i % 2], "vip": i % 3 == 0} for i in range(60)]
LABELS = [int(i > 30) for i in range(60)]


@pytest.fixture
def client(model: Model) -> Iterator[Client]:
    """A client of a new model on the shared service."""
    with Client(f"http://127.0.0.1:{model.service.port}", model=model.name) as client:
        yield client


@pytest.fixture
def twin(new_model: Callable[..., Model]) -> Iterator[Client]:
    """Another new model."""
    model = new_model()
    with Client(f"http://127.0.0.1:{model.service.port}", model=model.name) as client:
        yield client


def sha256(client: Client) -> str:
    """Equal for two models that learned the same events in the same order."""
    return str(client.model().state["sha256"])


# -- one event


def test_one_event_is_learned_and_predicted_and_the_replies_are_the_services(client: Client) -> None:
    assert client.learn({"age": 31, "country": "FR", "vip": True}, 1) == Learned(
        client.model_name, 1, 0.5, 0.6931471805599453, False
    )
    prediction = client.predict({"age": 31, "country": "FR", "new": 1.0})
    assert prediction == Prediction(client.model_name, prediction.p, True, 1, unknown=1)
    assert client.predict([1.0, 2.0]).unknown == 2


def test_what_json_lacks_is_a_number_or_a_feature_that_is_missing(client: Client, twin: Client) -> None:
    np = pytest.importorskip("numpy")
    pd = pytest.importorskip("pandas")
    client.learn(
        {"a": np.int64(3), "b": np.float32(0.5), "c": np.bool_(True), "d": float("nan"), "e": None}, np.int8(1)
    )
    client.learn({"a": Decimal("1.5"), "b": pd.NA, "c": np.nan, "d": pd.NaT}, np.bool_(False))
    client.learn(pd.Series({"a": 2.0, "b": np.nan}), 1)
    client.learn(np.array([1.0, np.nan, 3.0]), 1)
    twin.learn([({"a": 3, "b": 0.5, "c": True}, 1), ({"a": 1.5}, 0), ({"a": 2.0}, 1), ([1.0, None, 3.0], 1)])
    assert sha256(client) == sha256(twin)


@pytest.mark.parametrize(
    ("x", "words"), [({"a": float("inf")}, "a is infinite"), ({"a": object()}, "a is a object"), ("text", "x is a str")]
)
def test_what_is_no_feature_is_refused_before_it_is_sent(client: Client, x: Any, words: str) -> None:
    with pytest.raises((TypeError, ValueError), match=words):
        client.learn(x, 1)
    assert client.model().seq == 0


def test_a_label_comes_later_alone(client: Client) -> None:
    kept = client.predict({"age": 31}, id=True)
    assert kept.kept
    assert kept.id is not None
    assert client.explain(id=kept.id)["id"] == kept.id
    learned = client.label(kept.id, 1)
    assert (learned.served_p, learned.duplicate) == (kept.p, False)
    assert client.label(kept.id, 1).duplicate


def test_an_event_is_learned_once_under_its_id(client: Client) -> None:
    assert not client.learn({"age": 31}, 1, id="order-77").duplicate
    assert client.learn({"age": 31}, 1, id="order-77").duplicate
    with pytest.raises(Problem, match="order-77") as refused:
        client.learn({"age": 32}, 1, id="order-77")
    assert (refused.value.kind, refused.value.status, refused.value.members["seq"]) == ("id-conflict", 409, 1)
    assert refused.value.title == "Id conflict"
    again = pickle.loads(pickle.dumps(refused.value))  # as it comes from a worker of joblib
    assert (str(again), again.members) == (str(refused.value), refused.value.members)


def test_a_new_id_is_a_uuid_of_version_7_and_comes_after_those_before() -> None:
    ids = [logstep.new_id() for _ in range(1_000)]
    assert {uuid.UUID(one).version for one in ids} == {7}
    assert len(set(ids)) == len(ids)
    assert ids[::100] == sorted(ids[::100])


# -- many events


def forms() -> dict[str, Callable[[], tuple[Any, ...]]]:
    """Every way to say the same events; see `Client.learn`."""
    labelled = [{**row, "bought": y} for row, y in zip(ROWS, LABELS, strict=True)]
    return {
        "lists": lambda: (ROWS, LABELS),
        "generators": lambda: (iter(ROWS), iter(LABELS)),
        "pairs": lambda: (zip(ROWS, LABELS, strict=True),),
        "events": lambda: (({"x": row, "y": y} for row, y in zip(ROWS, LABELS, strict=True)),),
        "rows and a key": lambda: (labelled, "bought"),
        **{f"{name}, a column": functools.partial(_table, name, labelled, "bought") for name in TABLES},
        **{f"{name}, values": functools.partial(lambda name: (TABLES[name](ROWS), LABELS), name) for name in TABLES},
    }


def _pandas(rows: list[dict[str, Any]]) -> Any:
    return pytest.importorskip("pandas").DataFrame(rows, index=[f"row {i}" for i in range(len(rows))])


def _of(library: str, name: str) -> Any:
    return getattr(pytest.importorskip(library), name)


TABLES: dict[str, Callable[[list[dict[str, Any]]], Any]] = {
    "pandas": _pandas,
    "polars": lambda rows: _of("polars", "from_dicts")(rows),  # noqa: PLW0108  # it may be missing
    "pyarrow": lambda rows: _of("pyarrow", "Table").from_pylist(rows),
    "a batch": lambda rows: _of("pyarrow", "RecordBatch").from_pylist(rows),
}


def _table(name: str, rows: list[dict[str, Any]], label: str) -> tuple[Any, ...]:
    return TABLES[name](rows), label


@pytest.fixture(scope="module")
def expected(shared: Service) -> str:
    """The state after the events, sent one by one as any HTTP client would."""
    model = shared.model("client-expected")
    model.create({})
    for row, y in zip(ROWS, LABELS, strict=True):
        assert model.learn({"x": row, "y": y}).status_code == 200
    return str(model.state()["sha256"])


@pytest.mark.parametrize("form", sorted(forms()))
def test_many_events_are_the_same_steps_in_the_same_order_whatever_form_they_have(
    client: Client, expected: str, form: str
) -> None:
    told = client.learn(*forms()[form]())
    assert (told.learned, told.duplicates, told.first_seq, told.last_seq) == (60, 0, 1, 60)
    assert sha256(client) == expected


@pytest.mark.parametrize("form", sorted(forms()))
def test_pieces_change_nothing(client: Client, expected: str, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logstep, "PIECE_EVENTS", 7)
    monkeypatch.setattr(logstep, "TABLE_ROWS", 7)
    calls: list[tuple[int, int | None]] = []
    told = client.learn(*forms()[form](), progress=lambda done, of: calls.append((done, of)))
    assert [done for done, _ in calls] == [7, 14, 21, 28, 35, 42, 49, 56, 60]
    assert (told.learned, told.first_seq, told.last_seq) == (60, 1, 60)
    assert told.loss == pytest.approx(client.model().log_loss)
    assert sha256(client) == expected


def test_ids_and_weights_are_given_like_labels(client: Client, twin: Client) -> None:
    weights = [0.5 + i % 3 for i in range(60)]
    rows = [
        {**row, "y": y, "order": i, "w": w} for i, (row, y, w) in enumerate(zip(ROWS, LABELS, weights, strict=True))
    ]
    assert client.learn(ROWS, LABELS, id=range(60), weight=weights).learned == 60
    assert twin.learn(rows, "y", id="order", weight="w").learned == 60
    assert sha256(client) == sha256(twin)
    for table in TABLES.values():
        assert client.learn(table(rows), id="order", weight="w").duplicates == 60
    assert client.learn(({"x": row, "y": y} for row, y in zip(ROWS, LABELS, strict=True)), id=False).learned == 60


def test_an_array_has_features_named_by_place(client: Client, twin: Client) -> None:
    np = pytest.importorskip("numpy")
    rows = np.random.default_rng(7).normal(size=(30, 4))
    rows[3, 2] = np.nan
    client.learn(rows, rows[:, 0] > 0)
    twin.learn([list(row) for row in rows], (rows[:, 0] > 0).tolist())
    assert sha256(client) == sha256(twin)
    assert client.predict(rows).tolist() == [one.p for one in twin.predict(rows.tolist())]


def test_a_row_without_features_is_an_event_and_no_late_label(client: Client, twin: Client) -> None:
    nan = float("nan")
    rows: list[dict[str, Any]] = [
        {"a": 1.0, "b": "FR"},
        {"a": nan, "b": None},
        {"a": nan, "b": "DE"},
        {"a": 2.0, "b": None},
    ]
    twin.learn([{"a": 1.0, "b": "FR"}, {}, {"b": "DE"}, {"a": 2.0}], [1, 0, 1, 0])
    for n, table in enumerate(TABLES.values()):
        model = Client(client.url, model=f"{client.model_name}-{n}")
        model.create()
        assert model.learn(table(rows), [1, 0, 1, 0]).learned == 4
        assert sha256(model) == sha256(twin)
        model.delete()


def test_predictions_come_back_in_order_in_the_form_of_what_was_asked(client: Client) -> None:
    pd, pl, pa = map(pytest.importorskip, ("pandas", "polars", "pyarrow"))
    client.learn(ROWS, LABELS)
    one_by_one = [client.predict(row).p for row in ROWS]
    predictions = client.predict(ROWS)
    assert [one.p for one in predictions] == one_by_one
    frame = _pandas([{**row, "y": 1} for row in ROWS])  # a label is no feature
    frame = frame[::-1]
    pd.testing.assert_series_equal(client.predict(frame), pd.Series(one_by_one[::-1], frame.index, name="p"))
    assert client.predict(pl.DataFrame(ROWS)).equals(pl.Series("p", one_by_one))
    assert client.predict(pa.Table.from_pylist(ROWS)).equals(pa.array(one_by_one))
    assert [one.p for one in client.predict(iter(ROWS))] == one_by_one


def test_an_iterator_is_read_no_further_than_the_piece_that_is_sent(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logstep, "PIECE_EVENTS", 10)
    read: list[int] = []

    def events() -> Iterator[dict[str, Any]]:
        for i in range(100):
            read.append(i)
            yield {"x": {"a": float(i)}, "y": i % 2}

    ahead: list[int] = []
    client.learn(events(), progress=lambda done, _: ahead.append(len(read) - done))
    assert set(ahead) == {0}
    read.clear()
    predictions = client.predict(event["x"] for event in events())
    assert read == []
    next(predictions)
    assert len(read) == 10


def test_the_first_wrong_event_is_named_by_its_place_among_all_that_were_sent(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logstep, "PIECE_EVENTS", 10)
    monkeypatch.setattr(logstep, "TABLE_ROWS", 10)
    labels = [i % 2 for i in range(60)]
    labels[34] = 7
    for xs, unit in ((ROWS, "line"), (_pandas(ROWS), "row")):
        before = client.model().seq
        with pytest.raises(Problem, match=f"{unit} 35: y") as refused:
            client.learn(xs, labels)
        assert refused.value.members[unit] == 35
        assert refused.value.members["learned"] == client.model().seq - before == 34


@pytest.mark.parametrize(
    ("arguments", "options", "words"),
    [
        ((ROWS, LABELS[:-1]), {}, "there are 60 events, but y has 59 values"),
        ((ROWS, 1), {}, "y=1 is one value for many events"),
        ((ROWS, LABELS), {"weight": 2.0}, "weight=2.0 is one value for many events"),
        ((ROWS, "bought"), {}, "an event has no bought; it has age, country, vip"),
        ((ROWS,), {}, "Rows that hold their label"),
        ((5,), {}, "x is a int, neither features nor events nor a table"),
        ((ROWS, LABELS), {"id": [None, *range(59)]}, "an id is text, a whole number or a UUID, not None"),
        ((_pandas, LABELS), {"id": [*range(59), None]}, "the column of ids has nulls"),
        ((_pandas, "bought"), {}, "no column 'bought'"),
        ((_pandas,), {}, "say which column is the label"),
        ((_pandas, LABELS[:-1]), {}, "there are 60 events, but y has 59 values"),
    ],
)
def test_what_is_not_clear_is_refused_before_anything_is_learned(
    client: Client, arguments: tuple[Any, ...], options: dict[str, Any], words: str
) -> None:
    x = arguments[0](ROWS) if callable(arguments[0]) else arguments[0]
    with pytest.raises((TypeError, ValueError), match=words):
        client.learn(x, *arguments[1:], **options)
    assert client.model().seq == 0


def test_a_table_that_can_be_read_in_two_ways_is_refused_with_the_way_to_say_which(client: Client) -> None:
    frame = _pandas(ROWS)
    for role in ("id", "weight"):
        with pytest.raises(ValueError, match=f"a column '{role}'.* say {role}='{role}'"):
            client.learn(frame.assign(**{role: range(60)}), LABELS)
    with pytest.raises(ValueError, match="another index"):
        client.learn(frame, frame["vip"][::-1])
    with pytest.raises(TypeError, match="make each column numbers, text or truth values"):
        client.learn(frame.assign(country=[1, "FR"] * 30), LABELS)
    assert client.model().seq == 0


# -- without pyarrow


@pytest.mark.parametrize("name", ["pandas", "polars", "numpy"])
def test_without_pyarrow_here_a_table_goes_as_lines(
    client: Client, twin: Client, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    np = pytest.importorskip("numpy")
    table = np.arange(60.0).reshape(20, 3) if name == "numpy" else TABLES[name](ROWS)
    labels = [i % 2 for i in range(len(table))]
    twin.learn(table, labels)
    expected = list(twin.predict(table))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    client.learn(table, labels)
    assert list(client.predict(table)) == expected
    assert sha256(client) == sha256(twin)


@from_checks_on
def test_a_service_without_pyarrow_gets_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pyarrow.py").write_text("raise ModuleNotFoundError('as if it were not installed', name='pyarrow')\n")
    monkeypatch.setattr(logstep, "TABLE_ROWS", 7)
    rows = [{**row, "y": y, "id": i} for i, (row, y) in enumerate(zip(ROWS, LABELS, strict=True))]
    process = Process(tmp_path / "data", told=["env", f"PYTHONPATH={tmp_path}"])
    with process.wait_until_ready() as service, Client(f"http://127.0.0.1:{service.port}") as client:
        twin = Client(client.url, model="twin")
        twin.create()
        twin.learn(ROWS, LABELS)
        expected = [one.p for one in twin.predict(ROWS)]
        for name, table in TABLES.items():
            told = client.learn(table(rows), id="id")
            assert told.learned + told.duplicates == 60, name
            assert list(map(float, client.predict(table(ROWS)))) == expected
        assert sha256(client) == sha256(twin)


# -- models


def test_a_model_is_created_listed_looked_at_and_deleted(client: Client) -> None:
    twin = Client(client.url, model=f"{client.model_name}-twin")
    assert twin.create(logstep.Spec(rule="adagrad"), scale="standard")["created"]
    assert not twin.create({"rule": "adagrad", "scale": "standard"})["created"]
    twin.learn({"a": 1.0}, 1)
    assert twin.weights().keys() == {"a"}
    assert {model["model"] for model in client.models()} >= {client.model_name, twin.model_name}
    assert twin.explain({"a": 1.0})["features"][0]["name"] == "a"
    model = twin.model()
    assert (model.name, model.seq, model.spec["rule"]) == (twin.model_name, 1, "adagrad")
    twin.delete()
    with pytest.raises(Problem, match="There is no model") as refused:
        twin.model()
    assert refused.value.kind == "unknown-model"


class _Tags(html.parser.HTMLParser):
    """The tags of a page, and those that are open at its end."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.seen: list[str] = []
        self.open: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_a_notebook_shows_a_model_with_its_curve_and_no_script(client: Client) -> None:
    pd = pytest.importorskip("pandas")
    client.learn(ROWS[0], LABELS[0])
    assert "The curve begins with the second event." in client.model()._repr_html_()
    client.learn(ROWS[1:], LABELS[1:])
    model = client.model()
    assert len(pd.DataFrame(model.curve)) == len(ROWS)
    assert f"from event 1 to {len(ROWS)}" in model._repr_html_()
    page = logstep.Model("<b>", 60, model.spec, model.state, model.curve)._repr_html_()
    tags = _Tags(page)
    assert tags.open == []
    assert tags.seen.count("polyline") == 2
    assert "script" not in tags.seen
    assert "<b>" not in page
    assert f"{model.log_loss:.4f}" in page
    assert f"{model.base_rate_log_loss:.4f}" in page


def test_a_token_is_sent_and_never_shown_nor_kept_in_a_pickle(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    token = "0123456789abcdef0123456789abcdef"
    service = start(env={"LOGSTEP_TOKEN": token})
    url = f"http://127.0.0.1:{service.port}"
    with pytest.raises(Problem, match="requires a token"):
        Client(url).models()
    with Client(url, token) as client:
        assert client.learn({"a": 1.0}, 1).seq == 1
        assert token not in repr(client)
        pickled = pickle.dumps(client)
        assert token.encode() not in pickled
        assert copy.deepcopy(client) is client
    monkeypatch.setenv("LOGSTEP_TOKEN", token)
    with pickle.loads(pickled) as client:
        assert client.learn({"a": 1.0}, 1).seq == 2


def test_a_url_that_is_none_is_refused() -> None:
    for url in ("localhost:8000", "ftp://localhost", ""):
        with pytest.raises(ValueError, match="is not a URL like"):
            Client(url)


# -- asynchronous


def test_the_asynchronous_client_does_the_same(client: Client, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logstep, "PIECE_EVENTS", 7)

    async def events() -> AsyncIterator[tuple[dict[str, Any], int]]:
        for row, y in zip(ROWS, LABELS, strict=True):
            yield row, y

    async def rows() -> AsyncIterator[dict[str, Any]]:
        for row in ROWS:
            yield row

    async def main() -> None:
        async with AsyncClient(client.url, model=client.model_name) as same:
            told = await same.learn(events())
            assert (told.learned, told.last_seq) == (60, 60)
            assert sha256(client) == expected
            assert await same.predict(ROWS) == client.predict(ROWS)
            assert [one async for one in await same.predict(rows())] == client.predict(ROWS)
            assert (await same.predict(_pandas(ROWS))).equals(client.predict(_pandas(ROWS)))
            assert await same.predict(ROWS[0]) == client.predict(ROWS[0])
            assert (await same.predict(ROWS[0], id="late")).kept
            assert (await same.label("late", 1)).seq == 61
            assert (await same.learn(_pandas(ROWS), LABELS)).last_seq == 121
            assert (await same.model()).seq == 121
            assert (await same.weights()) == client.weights()
            assert await same.models() == client.models()
            assert await same.explain(ROWS[0]) == client.explain(ROWS[0])
            assert not (await same.create())["created"]
            with pytest.raises(Problem, match="y: must be 0, 1"):
                await same.learn(ROWS[0], 7)
            await same.delete()

    asyncio.run(main())


# -- as it is read and installed


@from_checks_on
def test_its_examples_run(shared: Service) -> None:
    pytest.importorskip("sklearn")
    adapters = {"RiverClassifier": logstep.RiverClassifier, "SklearnClassifier": logstep.SklearnClassifier}
    found = doctest.DocTestFinder().find(logstep, globs={**vars(logstep), **adapters})
    tests = {test.name: test for test in found if test.examples}
    for name in adapters:  # their examples are those of _River and _Sklearn
        del tests[f"logstep.{name}"]
    assert {"logstep", "logstep.Client", "logstep.AsyncClient", "logstep._River", "logstep._Sklearn"} <= tests.keys()
    for test in tests.values():
        for example in test.examples:
            example.source = example.source.replace("localhost:8000", f"localhost:{shared.port}")
        assert doctest.DocTestRunner().run(test).failed == 0


def test_alone_in_a_folder_it_needs_httpx_and_says_where_the_learner_is(tmp_path: Path) -> None:
    (tmp_path / "logstep.py").write_text((ROOT / "logstep.py").read_text())
    program = "import sys; sys.path[:] = [p for p in sys.path if p != sys.argv[1]]; import logstep\n"
    program += (
        "assert logstep.Client\ntry:\n    from logstep import Learner\nexcept ImportError as error:\n    print(error)"
    )
    (tmp_path / "core.py").write_text("raise ImportError('not here')\n")
    done = subprocess.run(
        [sys.executable, "-c", program, str(ROOT)], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert "pip install logstep" in done.stdout


def test_a_name_that_it_has_not_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Leaner'"):
        getattr(logstep, "Leaner")  # noqa: B009  # a type checker sees that it is not there


def test_a_reply_that_is_not_logsteps_says_so(shared: Service) -> None:
    with Client(f"http://127.0.0.1:{shared.port}/not-here") as client, pytest.raises(Problem) as refused:
        client.models()
    assert refused.value.status == 404
    json.dumps(refused.value.members)


def test_totals_of_pieces_are_those_of_all() -> None:
    one = LearnedMany("m", 2, 1, 5, 6, 0.5, 1, 0, 0.25)
    two = LearnedMany("m", 6, 0, 7, 12, 0.1, 0, 3, 0.05)
    both = LearnedMany("m").plus(one).plus(two).plus(LearnedMany("m", 0, 4))
    assert both == LearnedMany("m", 8, 5, 5, 12, both.loss, 1, 3, both.served_loss)
    assert [both.loss, both.served_loss] == pytest.approx([0.2, 0.1])
