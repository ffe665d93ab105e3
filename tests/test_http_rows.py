"""Bodies of rows: CSV and flat NDJSON are read as `logstep replay` reads files, compressed or not; weight 0; ids that
are numbers."""

from __future__ import annotations

import gzip
import io
import json
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pyarrow
import pytest
from effort import from_checks_on
from harness import JSON, NDJSON, Model, NewModel, Service, Start, assert_problem
from patience import eventually
from pyarrow import feather, parquet

from service.commands import cli
from service.decode.compression import zstd

CSV = {"content-type": "text/csv"}
ROWS = b"age,country,clicked\n3,FR,1\n4,DE,0\n5,FR,1\n"
PACKED: dict[str, Callable[[bytes], bytes]] = {"gzip": gzip.compress, "zstd": zstd.compress}


def learn(model: Model, body: bytes | str, kind: dict[str, str] = CSV, **asked: Any) -> httpx.Response:
    return model.service.http.post(f"{model.path}/learn", params=asked, headers=kind, content=body)


def predict(model: Model, body: bytes | str, kind: dict[str, str] = CSV, **asked: Any) -> httpx.Response:
    return model.service.http.post(f"{model.path}/predict", params=asked, headers=kind, content=body)


def table(rows: int) -> bytes:
    """Numbers, texts, codes, missing cells, quoted commas and line feeds; labels yes and no."""
    numbers = random.Random(5)
    lines = ["age,zip,note,price,clicked"]
    for _ in range(rows):
        note = numbers.choice(['"a ""b"""', '"x\ny"', "plain", '"co,mma"', ""])
        price = numbers.choice(["NA", f"{numbers.uniform(0, 99):.3f}"])
        zip_ = numbers.choice(["01234", "99999"])
        lines.append(f"{numbers.randint(18, 90)},{zip_},{note},{price},{numbers.choice(['yes', 'no'])}")
    return "\n".join(lines).encode()


# -- the same reading as replay's


@pytest.mark.parametrize("rows", [3, 2_500])
def test_a_csv_body_gives_the_model_that_replay_gives(
    new_model: NewModel, shared: Service, tmp_path: Path, rows: int
) -> None:
    ours, theirs = new_model(rule="auto"), new_model(rule="auto")
    file = tmp_path / "rows.csv"
    file.write_bytes(table(rows))
    url = f"--url=http://127.0.0.1:{shared.port}"
    assert cli.main(["replay", str(file), "--label=clicked", "--positive=yes", f"--model={theirs.name}", url]) == 0
    reply = learn(ours, table(rows), label="clicked", positive="yes").json()
    assert (reply["learned"], reply["unlabelled"]) == (rows, 0)
    assert ours.state()["sha256"] == theirs.state()["sha256"]


def test_the_reply_says_how_each_column_was_read(model: Model) -> None:
    reply = learn(model, b"n,age,country,clicked,w\n7,3,FR,1,2\n8,,FR,,1\n", label="clicked", id="n", weight="w").json()
    assert reply["columns"] == {"n": "id", "age": "number", "country": "text", "w": "weight"}
    assert (reply["learned"], reply["unlabelled"], reply["missing"], reply["notices"]) == (1, 1, 0, [])


def test_rows_of_ndjson_are_read_as_those_of_a_table(new_model: NewModel) -> None:
    ours, theirs = new_model(), new_model()
    lines = b'{"age": 3, "country": "FR", "clicked": 1}\n{"age": 4, "country": "DE", "clicked": false}\n'
    assert learn(ours, lines, NDJSON, label="clicked").json()["learned"] == 2
    assert learn(theirs, b"age,country,clicked\n3,FR,1\n4,DE,0\n", label="clicked").json()["learned"] == 2
    assert ours.weights()["weights"] == theirs.weights()["weights"]


def test_tabs_semicolons_and_a_file_without_a_header_are_read(model: Model) -> None:
    tabs = {"content-type": "text/tab-separated-values; charset=utf-8"}
    assert learn(model, b"age\tclicked\n3\t1\n", tabs, label="clicked").json()["learned"] == 1
    assert learn(model, b"age;clicked\n3,5;1\n3;0\n", label="clicked", ignore="age").status_code == 422
    assert learn(model, b"age;clicked\n3.5;1\n", label="clicked").json()["columns"] == {"age": "number"}
    assert learn(model, b"3,1\n4,0\n", label="2", header="false").json()["columns"] == {"1": "number"}


def test_kinds_that_the_model_keeps_are_used_and_others_refused(new_model: NewModel) -> None:
    model = new_model(columns={"age": "number", "zip": "text"})
    assert learn(model, b"age,zip,y\n3,1234,1\n", label="y").json()["columns"] == {"age": "number", "zip": "text"}
    assert "zip=1234" in model.weights()["weights"]
    assert_problem(learn(model, b"age,zip,new,y\n3,1,1,1\n", label="y"), 422, "has columns that model", "?number=new")
    assert_problem(learn(model, b"age,zip,y\n3,1,1\n", label="y", number="zip"), 422, "keeps column 'zip' as 'text'")
    predicted = predict(model, b"zip,age\n1234,3\n").json()
    assert "unknown" not in predicted


def test_a_prediction_reads_columns_as_the_model_has_learned_them(model: Model) -> None:
    learn(model, b"zip,age,y\n01234,7,1\n1234,8,0\n", label="y")
    assert "unknown" not in predict(model, b"zip\n1234\n").json()
    assert_problem(predict(model, b"age\nold\n"), 422, "line 2", "column 'age'", "'old' is not one")
    lines = predict(model, b"age,zip,y\n7,1234,1\n\n8,01234,0\n", label="y").text.splitlines()
    assert len(lines) == 2


@pytest.mark.parametrize("rows", [1, 2, 9])
def test_an_id_that_the_first_body_left_out_is_left_out_of_short_ones_too(model: Model, rows: int) -> None:
    first = "id,v,y\n" + "".join(f"u{i},{i % 7},{i % 2}\n" for i in range(100))
    assert learn(model, first, label="y").json()["columns"] == {"id": "ignore", "v": "number"}
    body = "id,v,y\n" + "".join(f"u{200 + i},{i},{i % 2}\n" for i in range(rows))
    reply = learn(model, body, label="y").json()
    assert reply["columns"] == {"id": "ignore", "v": "number"}
    assert [*model.weights()["weights"]] == ["v"]
    (notice,) = reply["notices"]
    assert notice.startswith("column 'id' is left out: the model has not learned it, and too few rows to detect an id")
    assert "?text=id keeps it" in notice
    kept = learn(model, body, label="y", text="id").json()
    assert (kept["columns"]["id"], kept["notices"]) == ("text", [])
    assert "id=u200" in model.weights()["weights"]


@pytest.mark.parametrize("spec", [{}, {"hash_bits": 8}])
def test_a_text_that_may_be_an_id_is_told(new_model: NewModel, spec: dict[str, Any]) -> None:
    model = new_model(**spec)
    bodies = [(b"who,v,y\na,1,1\nb,2,0\n", CSV), (b'{"who": "a", "y": 1}\n{"who": "b", "y": 0}\n', NDJSON)]
    for body, kind in bodies if spec else bodies[:1]:
        (notice,) = learn(model, body, kind, label="y").json()["notices"]
        assert notice.startswith("column 'who' is text: ")
        assert "too few rows to detect an id" in notice
    if not spec:
        assert learn(model, bodies[0][0], label="y").json()["notices"] == []  # as the model has learned it
    assert learn(model, b"who,v,y\na,1,1\na,2,0\n", label="y").json()["notices"] == []


def test_a_later_body_is_read_as_the_first_was_though_its_rows_look_otherwise(model: Model) -> None:
    learn(model, b"zip,age,y\nW1A,7,1\n", label="y")
    assert learn(model, b"zip,age,y\n10115,8,0\n", label="y").json()["columns"] == {"zip": "text", "age": "number"}
    assert set(model.weights()["weights"]) == {"zip=W1A", "zip=10115", "age"}
    told = ("line 2", "column 'age' has numbers (as the model has learned it)", "'old' is not one", "?text=age")
    assert_problem(learn(model, b"zip,age,y\nW1A,old,1\n", label="y"), 422, *told)
    assert model.state()["seq"] == 2
    assert learn(model, b"zip,age,y\nW1A,old,1\n", label="y", text="age").json()["learned"] == 1


def test_ids_make_rows_learned_once(model: Model) -> None:
    assert [learn(model, ROWS, label="clicked", id_prefix="day-1").json()["learned"] for _ in range(2)] == [3, 0]
    rows = b"order,age,clicked\n17,3,1\n18,4,0\n"
    assert [learn(model, rows, label="clicked", id="order").json()["duplicates"] for _ in range(2)] == [0, 2]
    assert model.learn({"x": {"age": 3}, "y": 1, "id": 17}).json()["duplicate"]


def test_a_label_of_rows_joins_a_prediction_that_waits(model: Model) -> None:
    assert predict(model, b"order,age\no1,3\n", id="order").json()["kept"]
    reply = learn(model, b"order,age,y\no1,3,1\n", label="y", id="order").json()
    assert (reply["learned"], reply["joined"]) == (1, 1)


# -- what is wrong is refused whole


@pytest.mark.parametrize(
    ("body", "asked", "details"),
    [
        (ROWS, {"label": "clickd"}, ["has no column 'clickd'; it has age, country, clicked"]),
        (ROWS, {}, ["?label=COLUMN"]),
        (ROWS, {"label": "clicked", "id": "order"}, ["has no column 'order'"]),
        (ROWS, {"label": "clicked", "text": "age", "number": "age"}, ["'age' cannot also be"]),
        (ROWS, {"labl": "clicked"}, ["labl", "perhaps label is meant"]),
        (ROWS, {"label": "clicked", "header": "maybe"}, ["header: must be true or false"]),
        (ROWS, {"label": "clicked", "look": "0"}, ["look: must be a whole number from 1 to 10000"]),
        (ROWS, {"label": "clicked", "positive": "yes"}, ["none of the first 3 labels is 'yes'"]),
        (ROWS + b"5,FR", {"label": "clicked"}, ["line 5", "2 cells, but the header has 3"]),
        (ROWS + b'5,F"R,1\n', {"label": "clicked"}, ["line 5", "a quote comes in the middle", "?quoted=false"]),
        (ROWS + b"5,FR,maybe\n", {"label": "clicked"}, ["line 5", "'maybe' is not 0", "?positive=VALUE"]),
        (ROWS + b"5,F\xffR,1\n", {"label": "clicked"}, ["line 5", "not UTF-8"]),
        (b"3,1\n4,0\n", {"label": "2"}, ["line 1", "looks like a row", "?header=false"]),
        (b"", {"label": "y"}, ["The body is empty"]),
        (b"age,y\n", {"label": "y"}, ["has a header but no rows"]),
        (b"age,id,y\n3," + b"x" * 300 + b",1\n", {"label": "y", "id": "id"}, ["line 2", "id must have 1 to 256"]),
        (b"age,w,y\n3,-1,1\n", {"label": "y", "weight": "w"}, ["line 2", "its weight '-1' is not a number, 0 or more"]),
    ],
    ids=lambda value: str(value)[:40],
)
def test_wrong_rows_are_refused_and_nothing_is_learned(
    model: Model, body: bytes, asked: dict[str, Any], details: list[str]
) -> None:
    before = model.mark()
    assert_problem(learn(model, body, **asked), 422, *details)
    assert model.mark() == before


def test_a_wrong_row_after_the_first_leaves_the_rows_before_it_learned(model: Model) -> None:
    body = ROWS + b"1,FR,0\n" * 3_000 + b"5,6\n"
    problem = assert_problem(learn(model, body, label="clicked", look="2"), 422, "line 3005")
    assert problem["learned"] == model.state()["seq"] == 3_003


@pytest.mark.parametrize("verb", ["learn", "predict"])
def test_parameters_of_rows_are_refused_where_there_are_none(model: Model, verb: str) -> None:
    for body in (b'{"x": {"age": 3}}', b'[{"x": {"age": 3}}]'):
        response = model.service.http.post(f"{model.path}/{verb}?label=y", headers=JSON, content=body)
        assert_problem(response, 422, "query", "application/x-ndjson")


def test_rows_are_learned_as_they_come_when_nothing_depends_on_others(model: Model, shared: Service) -> None:
    with shared.connect() as connection:
        path = f"{model.path}/learn?label=y&number=a&look=1"
        connection.send_head(path, transfer_encoding="chunked", **{"content-type": "text/csv"})
        for chunk, seq in ((b"a,y\n1,1\n2,0\n", 2), (b"3,1\n4,0\n5,", 4), (b"1\n", 5)):
            connection.send_chunk(chunk)
            eventually(lambda: model.state()["seq"] == seq, "what came to be learned")  # noqa: B023  # at once
        connection.send_chunk(b"")
        assert connection.reply().json()["learned"] == 5


# -- compressed bodies


@pytest.mark.parametrize("encoding", PACKED)
def test_a_compressed_body_is_what_it_was_before(new_model: NewModel, encoding: str) -> None:
    ours, theirs = new_model(), new_model()
    pack, coded = PACKED[encoding], {"content-encoding": encoding}
    body = table(1_200)
    halves = pack(body[:9_000]) + pack(body[9_000:])  # several frames are one body
    learned = [learn(ours, halves, CSV | coded, label="clicked", positive="yes").json()["learned"]]
    learned.append(learn(theirs, body, label="clicked", positive="yes").json()["learned"])
    event = json.dumps({"x": {"age": 1}, "y": 1}).encode()
    for model, sent, kind in ((ours, pack(event), JSON | coded), (theirs, event, JSON)):
        assert learn(model, sent, kind).json()["seq"] == 1_201
        assert predict(model, pack(b'[{"x": [1]}]'), JSON | coded).json()[0]["seq"] == 1_201
    assert learned == [1_200, 1_200]
    assert ours.weights()["sha256"] == theirs.weights()["sha256"]


@from_checks_on
@pytest.mark.parametrize("encoding", PACKED)
def test_what_comes_out_of_a_compressed_body_is_bounded(model: Model, encoding: str) -> None:
    coded = {"content-encoding": encoding}
    before = model.mark()
    bomb = PACKED[encoding](b" " * 40_000_000)
    assert_problem(learn(model, bomb, JSON | coded), 413, "larger than 16777216 bytes")
    bomb = PACKED[encoding](b"\n" * 40_000_000)
    assert_problem(learn(model, bomb, NDJSON | coded), 413, "expands to more than 16777216 bytes and 200 times")
    assert model.mark() == before


@pytest.mark.parametrize(
    ("encoding", "body", "detail"),
    [
        ("gzip", gzip.compress(ROWS)[:-3], "it ends early"),
        ("zstd", zstd.compress(ROWS)[:-3], "it ends early"),
        ("gzip", zstd.compress(ROWS), "incorrect header check"),
        ("zstd", gzip.compress(ROWS), "not valid zstd"),
        ("gzip", gzip.compress(ROWS) + b"more", "not valid gzip"),
        (
            "zstd",
            zstd.compress(
                bytes(300) * 40_000,
                options={zstd.CompressionParameter.window_log: 24, zstd.CompressionParameter.content_size_flag: 0},
            ),
            "window of more than 8 MiB",
        ),
    ],
    ids=["cut gzip", "cut zstd", "zstd as gzip", "gzip as zstd", "gzip and more", "wide zstd"],
)
def test_what_is_not_that_encoding_is_400(model: Model, encoding: str, body: bytes, detail: str) -> None:
    kind = CSV | {"content-encoding": encoding}
    assert_problem(learn(model, body, kind, label="clicked"), 400, detail)


# -- weight 0, and ids that are numbers


def test_an_event_of_weight_0_is_checked_and_not_learned(model: Model) -> None:
    event = {"x": {"age": 3}, "y": 1, "id": "a", "weight": 0}
    before = model.mark()
    assert model.learn(event).json() == {"model": model.name, "learned": False}
    assert model.learn([event, {**event, "id": "b"}]).json() == [{"model": model.name, "learned": False}] * 2
    lines = model.learn_lines(b"".join(json.dumps(event).encode() + b"\n" for _ in range(300)))
    assert (lines.json()["learned"], lines.json()["not_learned"]) == (0, 300)
    assert_problem(model.learn({**event, "y": 2}), 422, "y: must be 0, 1")
    assert_problem(model.learn({**event, "x": {"age": 1e200}}), 422, "x.age")
    assert_problem(model.learn({**event, "weight": -1}), 422, "weight")
    assert model.mark() == before
    assert model.learn({**event, "weight": 1}).json()["seq"] == 1
    assert model.learn(event).json()["learned"] is False  # so sending a body again is safe


def test_a_label_of_weight_0_leaves_the_prediction_waiting(model: Model) -> None:
    assert model.predict({"x": {"age": 3}, "id": "p"}).json()["kept"]
    assert model.learn({"id": "p", "y": 1, "weight": 0}).json()["learned"] is False
    assert model.learn({"x": {"age": 3}, "id": "p", "y": 1, "weight": 0}).json()["learned"] is False
    assert model.learn({"id": "p", "y": 1}).json()["served_p"] == 0.5


def test_rows_of_weight_0_are_counted(model: Model) -> None:
    body = b"age,w,y\n3,0,1\n4,1,0\n5,0,1\n"
    reply = learn(model, body, label="y", weight="w").json()
    assert (reply["learned"], reply["not_learned"], reply["last_seq"]) == (1, 2, 1)


def test_an_id_that_is_a_whole_number_is_that_text(model: Model) -> None:
    assert model.learn({"x": {"age": 3}, "y": 1, "id": 17}).json()["seq"] == 1
    assert model.learn({"x": {"age": 3}, "y": 1, "id": "17"}).json()["duplicate"]
    assert model.predict({"x": {"age": 3}, "id": 18}).json()["kept"]
    assert model.learn({"id": 18, "y": 1}).json()["seq"] == 2
    wrong: Any
    for wrong in (True, 1.5, 17.0, []):
        assert_problem(model.learn({"x": {"age": 3}, "y": 1, "id": wrong}), 422, "id: must be a string", "whole number")
    assert_problem(model.learn({"x": {"age": 3}, "y": 1, "id": 10**300}), 422, "id: must have 1 to 256 characters")
    assert_problem(learn(model, b'{"age": 1, "n": 1.5, "y": 1}\n', NDJSON, label="y", id="n"), 422, "its id 1.5 is")


@pytest.mark.parametrize("id_", ["NA", "null", "?", "NaN", " x"])
def test_in_json_a_text_that_csv_takes_for_missing_is_an_id(model: Model, id_: str) -> None:
    body = json.dumps({"age": 1, "n": id_, "y": 1}).encode()
    assert learn(model, body, NDJSON, label="y", id="n").json()["learned"] == 1
    assert model.learn({"x": {"age": 1}, "y": 1, "id": id_}).json()["duplicate"]
    for missing in (b'{"age": 1, "n": "", "y": 1}', b'{"age": 1, "n": null, "y": 1}'):
        assert_problem(learn(model, missing, NDJSON, label="y", id="n"), 422, "it has no id")


def test_spaces_around_a_cell_do_not_count(model: Model) -> None:
    """Also in quotes; docs/api.md says so."""
    assert learn(model, b'age,n,y\n1,"x",1\n1, x ,1\n1," x ",1\n', label="y", id="n").json()["duplicates"] == 2


# -- files of columns

PARQUET = {"content-type": "application/vnd.apache.parquet"}
FILES = {
    "parquet": (PARQUET, parquet.write_table),
    "arrow, compressed": ({"content-type": "application/vnd.apache.arrow.file"}, feather.write_feather),
}
COLUMNS: dict[str, list[Any]] = {
    "age": [*range(20, 60)],
    "country": ["FR", "DE", None, "FR"] * 10,
    "price": [0.5, None, 1e3, -2.0] * 10,
    "y": [0, 1] * 20,
}


def file_of(write: Any, columns: dict[str, Any] = COLUMNS) -> bytes:
    sink = io.BytesIO()
    write(pyarrow.table(columns), sink)
    return sink.getvalue()


def objects_of(columns: dict[str, list[Any]]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in pyarrow.table(columns).to_pylist())


@pytest.mark.parametrize("kind", FILES)
def test_a_file_of_columns_is_learned_as_its_rows(new_model: NewModel, kind: str) -> None:
    headers, write = FILES[kind]
    as_arrays, as_rows, as_objects = new_model(), new_model(), new_model()
    assert learn(as_arrays, file_of(write), headers).json()["learned"] == 40
    reply = learn(as_rows, file_of(write), headers, label="y").json()
    assert (reply["learned"], reply["columns"]) == (40, {"age": "number", "country": "text", "price": "number"})
    learn(as_objects, objects_of(COLUMNS), NDJSON, label="y")
    assert as_arrays.weights() | {"model": ""} == as_rows.weights() | {"model": ""}
    assert as_arrays.weights() | {"model": ""} == as_objects.weights() | {"model": ""}
    asked = {name: column for name, column in COLUMNS.items() if name != "y"}
    assert len(predict(as_arrays, file_of(write, asked), headers).text.splitlines()) == 40


def test_a_file_says_what_its_labels_ids_and_weights_are(model: Model) -> None:
    columns = {
        "order": [7, 8, 8],
        "n": [1.0, 2.0, 2.0],
        "w": [1, 2, 2],
        "clicked": ["yes", "no", "no"],
        "at": [[1]] * 3,
    }
    asked: dict[str, Any] = {"label": "clicked", "positive": "yes", "id": "order", "weight": "w", "ignore": "at"}
    reply = learn(model, file_of(parquet.write_table, columns), PARQUET, **asked).json()
    assert (reply["learned"], reply["duplicates"], list(model.weights()["weights"])) == (2, 1, ["n"])
    del asked["ignore"]
    assert_problem(learn(model, file_of(parquet.write_table, columns), PARQUET, **asked), 422, "line 1", "?ignore=at")


@pytest.mark.parametrize("kind", FILES)
def test_the_index_of_a_data_frame_is_no_feature_of_rows_either(model: Model, kind: str) -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"a": range(40), "y": [0, 1] * 20}).sample(frac=0.9, random_state=1)
    (headers, write), sink = FILES[kind], io.BytesIO()
    write(pyarrow.Table.from_pandas(frame), sink)
    reply = learn(model, sink.getvalue(), headers, label="y").json()
    assert (reply["learned"], reply["columns"]) == (36, {"__index_level_0__": "ignore", "a": "number"})
    (notice,) = reply["notices"]
    assert notice.startswith("column '__index_level_0__' is left out: the index of a data frame; ?number=__index")
    assert [*model.weights()["weights"]] == ["a"]
    assert learn(model, sink.getvalue(), headers, label="y", number="__index_level_0__").json()["notices"] == []
    assert [*model.weights()["weights"]] == ["a", "__index_level_0__"]
    asked = io.BytesIO()
    write(pyarrow.Table.from_pandas(frame[["a"]]), asked)
    assert len(predict(model, asked.getvalue(), headers, header="true").text.splitlines()) == 36


def test_an_arrow_stream_of_rows_is_read_like_that_too(model: Model) -> None:
    sink = io.BytesIO()
    with pyarrow.ipc.new_stream(sink, (rows := pyarrow.table({"a": [1, 2], "clicked": [1, 0]})).schema) as writer:
        writer.write_table(rows)
    headers = {"content-type": "application/vnd.apache.arrow.stream"}
    assert learn(model, sink.getvalue(), headers, label="clicked").json()["columns"] == {"a": "number"}


@from_checks_on
def test_a_file_that_would_become_gigabytes_is_413(model: Model) -> None:
    before = model.mark()
    words = pyarrow.DictionaryArray.from_arrays(pyarrow.repeat(pyarrow.scalar(0, "int32"), 20_000), ["x" * 200_000])
    body = file_of(parquet.write_table, {"s": words, "y": pyarrow.repeat(1, 20_000)})
    assert len(body) < 2**20
    assert_problem(learn(model, body, PARQUET, label="y"), 413, "more than 1073741824 bytes of memory")
    sink = io.BytesIO()
    million = pyarrow.table({"a": pyarrow.repeat(1.0, 10**6)})
    with parquet.ParquetWriter(sink, million.schema) as writer:
        for _ in range(100):
            writer.write_table(million)
    assert_problem(predict(model, sink.getvalue(), PARQUET), 413, "expands to more than 67108864 bytes")
    assert model.mark() == before


@pytest.mark.parametrize(
    ("body", "detail"),
    [
        (b"", "it does not begin like one"),
        (ROWS, "it does not begin like one"),
        (file_of(parquet.write_table)[:-50], "not a Parquet or Arrow file"),
        (file_of(feather.write_feather)[:-50], "not a Parquet or Arrow file"),
        (b"PAR1" + bytes(500) + b"PAR1", "not a Parquet or Arrow file"),
    ],
    ids=["nothing", "csv", "half a Parquet", "half an Arrow", "zeros"],
)
def test_what_is_no_such_file_is_400(model: Model, body: bytes, detail: str) -> None:
    assert_problem(learn(model, body, PARQUET), 400, detail)
    assert model.state()["seq"] == 0


def spooled(service: Service) -> int:
    """The size of the largest file without a name that a service has open."""
    files = Path(f"/proc/{service.process.pid}/fd").iterdir()
    sizes = [file.stat().st_size for file in files if str(file.readlink()).endswith("(deleted)")]
    return max(sizes, default=0)


@pytest.mark.skipif(sys.platform != "linux", reason="looks at the service's open files in /proc")
def test_files_have_a_limit_and_leave_nothing_on_the_disk(start: Start) -> None:
    service = start("--max-files-bytes", str(2**20))
    model = service.model()
    assert_problem(learn(model, bytes(2**20 + 1), PARQUET), 413, "larger than 1048576 bytes")
    with service.connect() as other:
        other.send_head("/learn", **PARQUET, content_length=900_000)
        other.send(bytes(800_000))
        eventually(lambda: spooled(service) > 700_000, "the body to be spooled")
        assert_problem(learn(model, bytes(900_000), PARQUET), 503, "fill the 1048576 bytes allowed for all")
    eventually(lambda: learn(model, file_of(parquet.write_table), PARQUET).status_code == 200, "the place to be free")
    assert not service.children()


def test_a_refused_file_leaves_its_place_to_the_next(start: Start) -> None:
    service = start()
    model = service.model()
    times = {"when": pyarrow.array([0, 1], pyarrow.timestamp("us")), "y": [0, 1]}
    labels = {"a": [1.0, 2.0], "y": [0, 2]}
    for _ in range(3):  # there are two places
        assert_problem(learn(model, file_of(parquet.write_table, times), PARQUET), 422, "x.when")
        assert_problem(predict(model, file_of(parquet.write_table, {"when": times["when"]}), PARQUET), 422, "x.when")
        assert_problem(learn(model, file_of(parquet.write_table, labels), PARQUET), 422, "row 2")
        assert_problem(learn(model, file_of(parquet.write_table, labels), PARQUET, label="y"), 422, "line 2")
    good = {"a": [1.0, 2.0], "y": [0, 1]}
    assert learn(model, file_of(parquet.write_table, good), PARQUET).json()["learned"] == 2
    eventually(lambda: not service.children() and not spooled(service), "the files to be closed")
