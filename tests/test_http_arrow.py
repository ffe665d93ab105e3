"""Arrow streams over HTTP: learned and predicted from like the same rows in NDJSON, to the bit."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from harness import Model, Service, assert_problem

ARROW = {"content-type": "application/vnd.apache.arrow.stream"}
_names = itertools.count(1)


@pytest.fixture
def models(shared: Service) -> tuple[Model, Model]:
    """Two new models of one spec."""
    made = shared.model(f"arrow-{next(_names)}"), shared.model(f"arrow-{next(_names)}")
    for model in made:
        assert model.create({"learning_rate": 0.05}).status_code == 201
    return made


def stream_of(table: pa.Table, rows: int = 1_000) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=rows)
    return bytes(sink.getvalue())


def some_rows(count: int, seed: int = 1) -> dict[str, Any]:
    numbers = np.random.default_rng(seed)
    columns: dict[str, Any] = {f"f{i}": numbers.normal(size=count) for i in range(5)}
    return {**columns, "y": (columns["f0"] + columns["f1"] > 0).astype(np.int8)}


def as_lines(columns: Mapping[str, Sequence[Any]], labelled: bool = True) -> bytes:
    """The same rows as NDJSON."""
    rows = (dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True))
    return b"".join(json.dumps(_event(row, labelled)).encode() + b"\n" for row in rows)


def _event(row: dict[str, Any], labelled: bool) -> dict[str, Any]:
    row = {name: value.item() if isinstance(value, np.generic) else value for name, value in row.items()}
    rest = {name: row.pop(name) for name in ("y", "id", "weight") if row.get(name) is not None}
    if not labelled:
        rest.pop("y", None)
    return {"x": {name: value for name, value in row.items() if value is not None}, **rest}


def in_chunks(body: bytes, size: int = 1_500) -> Iterator[bytes]:
    for start in range(0, len(body), size):
        yield body[start : start + size]


@pytest.mark.parametrize("more", [{}, {"weight": 2.5}, {"id": "i"}, {"country": "FR"}], ids=str)
def test_rows_are_learned_as_the_same_lines_are(models: tuple[Model, Model], more: dict[str, Any]) -> None:
    columns = some_rows(2_500)
    for name, value in more.items():
        columns[name] = [f"{value}-{i}" if name == "id" else value for i in range(2_500)]
    rows, lines = models
    reply = rows.service.http.post(
        f"{rows.path}/learn", content=in_chunks(stream_of(pa.table(columns))), headers=ARROW
    ).json()
    same = lines.service.http.post(
        f"{lines.path}/learn", content=as_lines(columns), headers={"content-type": "application/x-ndjson"}
    ).json()
    assert reply.pop("model") == rows.name
    assert same.pop("model") == lines.name
    assert reply.pop("loss") == pytest.approx(same.pop("loss"), rel=1e-12)
    assert reply == same == {"learned": 2_500, "duplicates": 0, "first_seq": 1, "last_seq": 2_500}
    assert rows.state()["sha256"] == lines.state()["sha256"]
    assert rows.state()["progressive"] == lines.state()["progressive"]


def test_rows_are_predicted_from_as_the_same_lines_are(models: tuple[Model, Model]) -> None:
    rows, _ = models
    rows.service.http.post(f"{rows.path}/learn", content=stream_of(pa.table(some_rows(500))), headers=ARROW)
    columns = some_rows(1_200, seed=2)
    del columns["y"]
    replies = rows.service.http.post(f"{rows.path}/predict", content=stream_of(pa.table(columns)), headers=ARROW)
    assert replies.headers["content-type"] == "application/x-ndjson"
    same = rows.service.http.post(
        f"{rows.path}/predict", content=as_lines(columns), headers={"content-type": "application/x-ndjson"}
    )
    assert replies.text == same.text
    assert len(replies.text.splitlines()) == 1_200


def test_predictions_are_kept_and_their_labels_come_as_rows_among_ordinary_events(models: tuple[Model, Model]) -> None:
    rows, other = models
    columns = some_rows(300)
    labels = columns.pop("y")
    ids = [f"p-{i}" for i in range(300)]
    kept = rows.service.http.post(
        f"{rows.path}/predict", content=stream_of(pa.table({**columns, "id": ids})), headers=ARROW
    ).text.splitlines()
    assert all(json.loads(line)["kept"] for line in kept)
    order = np.random.default_rng(3).permutation(300)
    later = {"id": [ids[i] for i in order], "y": [int(labels[i]) for i in order], "f0": pa.nulls(300, pa.float64())}
    extra = {"id": pa.nulls(1, pa.string()), "y": [1], "f0": [0.5]}
    table = pa.concat_tables([pa.table(later), pa.table(extra)])
    reply = rows.service.http.post(f"{rows.path}/learn", content=stream_of(table), headers=ARROW).json()
    assert (reply["learned"], reply["joined"], reply["late"]) == (301, 300, 0)
    assert rows.state()["join"]["waiting"] == 0
    same = [{"x": {name: column[i].item() for name, column in columns.items()}, "y": int(labels[i])} for i in order]
    assert other.learn([*same, {"x": {"f0": 0.5}, "y": 1}]).status_code == 200
    assert rows.state()["sha256"] == other.state()["sha256"]


def test_a_bad_row_ends_the_stream_and_what_stood_before_it_stays_learned(models: tuple[Model, Model]) -> None:
    rows, _ = models
    columns = some_rows(1_500)
    columns["f3"][1_234] = 1e200
    response = rows.service.http.post(f"{rows.path}/learn", content=stream_of(pa.table(columns)), headers=ARROW)
    problem = assert_problem(response, 422)
    assert (problem["row"], problem["learned"], problem["last_seq"]) == (1_235, 1_234, 1_234)
    assert problem["field"] == "row 1235: x.f3"
    assert rows.state()["seq"] == 1_234


def test_an_unknown_id_among_rows_is_named_with_its_row(models: tuple[Model, Model]) -> None:
    rows, _ = models
    table = pa.table({"a": [1.0, None], "y": [1, 0], "id": ["one", "two"]})
    problem = assert_problem(rows.service.http.post(f"{rows.path}/learn", content=stream_of(table), headers=ARROW), 404)
    assert (problem["title"], problem["row"], problem["learned"]) == ("Unknown id", 2, 1)


def test_a_body_that_is_no_arrow_stream_is_400(models: tuple[Model, Model]) -> None:
    rows, _ = models
    for verb in ("learn", "predict"):
        problem = assert_problem(rows.service.http.post(f"{rows.path}/{verb}", content=b"{}" * 9, headers=ARROW), 400)
        assert problem["title"] == "Malformed Arrow"


def test_a_record_batch_over_the_limit_is_413_and_says_what_to_do(small: Service) -> None:
    table = pa.table({"a": np.zeros(2**23), "y": np.zeros(2**23, np.int8)})
    response = small.http.post("/learn", content=stream_of(table, 2**23), headers=ARROW)
    problem = assert_problem(response, 413)
    assert "max_chunksize" in problem["detail"]
