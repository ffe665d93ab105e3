"""A file streamed into a service: what is read from it, and that each event is learned once, whatever is killed."""

from __future__ import annotations

import csv
import gzip
import io
import itertools
import json
import os
import pty
import re
import select
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
from effort import from_checks_on
from harness import LOGSTEP, Model, NewModel, Service, Start, running
from hypothesis import given
from hypothesis import strategies as st
from patience import PATIENCE, eventually
from streams import stream

from service.commands import cli, files
from service.commands.client import Client, NoAnswer, Refused
from service.commands.files import Source
from service.commands.replay import Replay, learn_side_by_side
from service.commands.rows import Row
from service.commands.tally import Options, Tally
from service.commands.targets import GivenSpec, Target, model_name, model_names
from service.commands.terminal import Failed, WrongUsage
from service.events import MAX_ID, MODEL_NAME, Event

EVENTS = stream("Phishing")
NAMES = list(EVENTS[0][0])

# -- helpers


def as_csv(events: Iterable[Any], delimiter: str = ",") -> str:
    """Events as CSV, the label last."""
    text = io.StringIO()
    writer = csv.writer(text, delimiter=delimiter, lineterminator="\n")
    writer.writerow([*NAMES, "label"])
    writer.writerows([*x.values(), y] for x, y in events)
    return text.getvalue()


@pytest.fixture
def phishing(tmp_path: Path) -> Path:
    """The Phishing stream as a CSV file."""
    path = tmp_path / "phishing.csv"
    path.write_text(as_csv(EVENTS))
    return path


def url(service: Service) -> str:
    return f"--url=http://127.0.0.1:{service.port}"


Run = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    """Start `logstep replay` with arguments; whatever still runs is killed at the end."""
    processes: list[subprocess.Popen[str]] = []

    def start_replay(*arguments: str | Path) -> subprocess.Popen[str]:
        command = [LOGSTEP, "replay", *map(str, arguments)]
        pipe = subprocess.PIPE
        processes.append(subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True))
        return processes[-1]

    yield start_replay
    for process in processes:
        process.kill()
        process.communicate()


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Wait for a command: exit code, standard output, standard error."""
    output, error = process.communicate(timeout=PATIENCE)
    assert "Traceback" not in error
    assert "\x1b" not in output + error, "control codes, and no terminal"
    return process.returncode, output, error


def counts(output: str) -> dict[str, str]:
    """The table at the end of a replay."""
    rows = [line.strip().split("  ", 1) for line in output.splitlines() if line.startswith("  ")]
    return {name: value.strip() for name, value in rows}


def call(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    """The command in this process: exit code, standard output, standard error."""
    code = cli.main([*map(str, arguments)])
    output, error = capsys.readouterr()
    assert "\x1b" not in output
    return code, output, error


# -- interruptions


@from_checks_on
def test_the_service_is_killed_in_the_middle_and_started_again(start: Start, run: Run, phishing: Path) -> None:
    service = start()
    replay = run(phishing, "--label=label", url(service), "--model=default", "--batch=50", "--rate=800")
    eventually(lambda: service.model().state()["seq"] >= 300, "a part to be learned")
    service.kill()
    assert replay.poll() is None
    again = start("--port", str(service.port), folder=service.folder)
    code, output, error = finish(replay)
    assert code == 0, error
    assert "trying again" in error
    assert again.model().state()["seq"] == len(EVENTS)
    found = counts(output)
    assert found["events"] == f"{len(EVENTS):,}"
    assert int(found["learned"].replace(",", "")) + int(found["duplicates"]) == len(EVENTS)
    report = again.model().crosscheck().json()
    assert report["equal"]
    assert report["replay_equal"]


@from_checks_on
def test_the_replay_is_killed_in_the_middle_and_the_same_command_goes_on(
    start: Start, run: Run, phishing: Path
) -> None:
    service = start()
    command = (phishing, "--label", "label", url(service), "--model", "default")
    first = run(*command, "--rate", "800")
    eventually(lambda: service.model().state()["seq"] >= 300, "a part to be learned")
    first.send_signal(signal.SIGKILL)
    first.wait()
    before = service.model().state()["seq"]
    assert before < len(EVENTS)
    code, output, _ = finish(run(*command))
    assert code == 0
    assert service.model().state()["seq"] == len(EVENTS)
    found = counts(output)
    assert 300 <= int(found["duplicates"]) <= before + 1000
    assert int(found["learned"]) == len(EVENTS) - int(found["duplicates"])
    assert service.model().crosscheck().json()["equal"]


@from_checks_on
def test_ctrl_c_says_that_the_same_command_goes_on(shared: Service, model: Model, run: Run, phishing: Path) -> None:
    replay = run(phishing, "--label", "label", url(shared), "--model", model.name, "--rate", "100")
    eventually(lambda: model.state()["seq"] >= 30, "several parts to be learned")
    replay.send_signal(signal.SIGINT)
    code, _, error = finish(replay)
    assert code == 130
    assert "the same command continues from there" in error


def test_a_second_replay_learns_nothing(
    shared: Service, model: Model, phishing: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ("replay", phishing, "--label", "label", url(shared), "--model", model.name)
    code, first, _ = call(capsys, *command)
    assert code == 0
    mark = model.mark()
    code, second, _ = call(capsys, *command)
    assert code == 0
    assert (counts(first)["learned"], counts(first)["duplicates"]) == ("1,250", "0")
    assert (counts(second)["learned"], counts(second)["duplicates"]) == ("0", "1,250")
    assert counts(second)["progressive log loss"] == "-"
    assert model.mark() == mark
    scores = model.state()["progressive"]["total"]
    assert counts(first)["progressive log loss"] == f"{scores['log_loss']:.4f}"
    assert counts(first)["model's accuracy"] == f"{scores['accuracy']:.4f}"
    assert counts(first)["model's ROC AUC"] == f"{scores['roc_auc']:.4f}"


def test_another_prefix_and_no_ids_learn_again(
    shared: Service, model: Model, phishing: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ("replay", phishing, "--label", "label", url(shared), "--model", model.name)
    for times, flags in enumerate([(), ("--id-prefix", "second epoch"), ("--no-ids",), ("--no-ids",)], 1):
        assert call(capsys, *command, *flags)[0] == 0
        assert model.state()["seq"] == times * len(EVENTS)


# -- which events of a file are the same


def lines_learned(output: str) -> tuple[str, str]:
    found = counts(output)
    return found["learned"], found["duplicates"]


def test_of_a_file_that_grew_moved_or_was_compressed_only_the_new_rows_are_learned(
    shared: Service, model: Model, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    to = ("--label", "y", url(shared), "--model", model.name)
    path = tmp_path / "clicks.csv"
    path.write_bytes(b"a,y\n1,1")  # one line, without an end
    assert lines_learned(call(capsys, "replay", path, *to)[1]) == ("1", "0")
    path.write_bytes(b"a,y\n1,1\n2,0\n")
    code, output, error = call(capsys, "replay", path, *to)
    assert lines_learned(output) == ("1", "1")
    assert "1 event(s) were learned before" in error
    assert "--id-prefix" in error
    (tmp_path / "elsewhere").mkdir()
    moved = path.rename(tmp_path / "elsewhere" / "clicks.csv")
    assert lines_learned(call(capsys, "replay", moved, *to)[1]) == ("0", "2")
    for name, content in (
        ("clicks.csv.gz", gzip.compress(b"a,y\n1,1\n2,0\n3,1\n")),
        ("clicks.csv", b"\xef\xbb\xbfa,y\r\n\r\n1,1\r\n2,0\r\n3,1\r\n4,0\r\n"),  # as a spreadsheet saves it
    ):
        (tmp_path / name).write_bytes(content)
        code, output, error = call(capsys, "replay", tmp_path / name, *to)
        assert code == 0, error
        assert counts(output)["learned"] == "1"
    assert model.state()["seq"] == 4


@pytest.mark.parametrize(
    ("name", "one", "another"),
    [
        ("clicks.csv", "a,y\n1,1\n2,0\n", "a,y\n1,0\n2,0\n"),
        ("clicks.csv", "a,y\n1,1\n2,0\n", "b,y\n1,1\n2,0\n"),
        ("clicks.tsv", "a\ty\n1\t1\n2\t0\n", "a\ty\n7\t1\n2\t0\n"),
        ("clicks.ndjson", '{"a": 1, "y": 1}\n{"a": 2, "y": 0}\n', '{"a": 3, "y": 1}\n{"a": 2, "y": 0}\n'),
        ("clicks.libsvm", "# Monday\n1 1:1\n0 1:2\n", "# Monday\n1 1:3\n0 1:2\n"),
    ],
)
def test_another_days_file_of_the_same_name_is_learned_whole(
    shared: Service,
    model: Model,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    one: str,
    another: str,
) -> None:
    label = () if name.endswith("libsvm") else ("--label", "y")
    for day, content in enumerate((one, another), 1):
        (tmp_path / name).write_text(content)
        code, output, error = call(capsys, "replay", tmp_path / name, *label, url(shared), "--model", model.name)
        assert code == 0, error
        assert lines_learned(output) == ("2", "0")
        assert model.state()["seq"] == 2 * day


def test_another_row_further_down_is_refused_with_its_line_and_what_to_do(
    shared: Service, model: Model, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "clicks.csv"
    command = ("replay", path, "--label", "y", url(shared), "--model", model.name)
    path.write_text("a,y\n1,1\n2,0\n3,1\n")
    assert call(capsys, *command)[0] == 0
    path.write_text("a,y\n1,1\n2,0\n4,1\n")
    code, _, error = call(capsys, *command)
    assert code == 1
    assert re.search(
        r"clicks\.csv line 4 \(event 3\): id: the id 'clicks\.csv:[0-9a-f]{16}:3' was learned before", error
    )
    assert "another file has this name" in error
    assert "--id-prefix TEXT" in error
    assert "the same command continues" not in error, "it would not"
    code, output, _ = call(capsys, *command, "--id-prefix", "tuesday")
    assert (code, *lines_learned(output)) == (0, "3", "0")


@from_checks_on
def test_standard_input_is_told_by_its_first_lines_too(shared: Service, model: Model, run: Run) -> None:
    for file, content, learned in (
        ("-", "a,y\n1,1\n", "1"),
        ("/dev/stdin", "a,y\n1,1\n2,0\n", "1"),
        ("/dev/fd/0", "a,y\n3,1\n2,0\n", "2"),
    ):
        replay = run(file, "--format", "csv", "--label", "y", url(shared), "--model", model.name)
        output, error = replay.communicate(content, timeout=PATIENCE)
        assert counts(output)["learned"] == learned, error


LINES = st.lists(st.binary(min_size=1, max_size=9).filter(lambda line: not {10, 13} & set(line)), max_size=4)


@given(LINES, st.booleans(), st.sampled_from([b"\n", b"\r\n"]), st.booleans())
def test_what_tells_a_file_is_its_header_and_its_first_line(
    lines: list[bytes], header: bool, end: bytes, bom: bool
) -> None:
    def prefix(content: list[bytes], end: bytes = b"\n", bom: bool = False) -> str:
        text = io.BytesIO(b"\xef\xbb\xbf" * bom + end + b"".join(line + end for line in content))
        read = files.Lines(text, header)
        assert list(read) == text.getvalue().splitlines(keepends=True)
        return read.id_prefix("a.csv")

    told = [b"a,b", b"1,2"] if header else [b"1,2"]
    assert prefix([*told, *lines], end, bom) == prefix(told)
    assert prefix([*told[:-1], told[-1] + b"3"]) != prefix(told)
    assert prefix([b"sep=;", *told]) == prefix(told)


@pytest.mark.parametrize("name", ["a.csv", "ä" * 255, "x" * 252 + ".gz", "surrogate-\udc80.csv"])
def test_ids_are_no_longer_than_they_may_be(name: str) -> None:
    prefix = files.Lines([b"1 1:1"], header=False).id_prefix(name)
    assert len(f"{prefix}:{10**18}") <= MAX_ID
    assert prefix.encode()
    assert prefix != files.Lines([b"1 1:1"], header=False).id_prefix("y" + name)


# -- what is wrong with a file, found by the service


def test_a_refusal_names_the_line_of_the_file_and_what_was_learned(
    shared: Service, model: Model, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [json.dumps({"x": x, "y": y}) + "\n\n" for x, y in EVENTS[:400]]  # every second line is blank
    lines[350] = '{"x": {"a": 1e200}, "y": 1}\n'
    path = tmp_path / "events.ndjson"
    path.write_text("".join(lines))
    command = ("replay", path, url(shared), "--model", model.name, "--batch", "100", "--look", "10")
    code, _, error = call(capsys, *command)
    assert code == 1
    assert "events.ndjson line 701 (event 351): x.a: must be within" in error
    assert "350 event(s) were learned" in error
    assert model.state()["seq"] == 350
    lines[350] = lines[0]
    path.write_text("".join(lines))
    code, output, _ = call(capsys, *command)
    assert code == 0
    assert counts(output)["duplicates"] == "350"


def test_another_event_under_the_same_id_is_refused_with_its_line(
    shared: Service, model: Model, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "events.csv"
    command = ("replay", path, "--label", "y", "--id-column", "id", url(shared), "--model", model.name)
    path.write_text("id,a,y\none,1,1\ntwo,2,0\n")
    assert call(capsys, *command)[0] == 0
    path.write_text("id,a,y\none,1,1\ntwo,3,0\n")
    code, _, error = call(capsys, *command)
    assert code == 1
    assert "events.csv line 3 (event 2): id: the id 'two' was learned before" in error


def test_no_service_is_one_clear_line(phishing: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, error = call(capsys, "replay", phishing, "--label", "label", "--url=http://127.0.0.1:1")
    assert code == 1
    assert error.startswith("logstep: no service answers at http://127.0.0.1:1; start one with `logstep serve`")
    assert error.count("\n") == 1


# -- other ways in and out


@from_checks_on
def test_standard_input_and_predictions_before_learning(
    shared: Service, model: Model, run: Run, phishing: Path
) -> None:
    command = ("-", "--format", "csv", "--label", "label", url(shared), "--model", model.name, "--predict-first")
    replay = run(*command, "--batch", "1")
    output, error = replay.communicate(as_csv(EVENTS[:100]), timeout=PATIENCE)
    assert replay.returncode == 0, error
    found = counts(output)
    assert found["predictions served first"] == "100"
    # In pieces of one event, what was served before each is what progressive validation scores.
    assert found["their log loss"] == found["progressive log loss"]
    assert found["their accuracy"] == found["model's accuracy"]
    again = run(*command)
    output, _ = again.communicate(as_csv(EVENTS[:100]), timeout=PATIENCE)
    assert counts(output)["predictions served first"] == "0", "an event learned before is not predicted"


@from_checks_on
def test_a_terminal_gets_a_bar_and_a_table(shared: Service, model: Model, phishing: Path) -> None:
    output = on_a_terminal(phishing, "--label", "label", url(shared), "--model", model.name, "--batch=50")
    assert "events/s, log loss" in output
    assert "╭" in output


@from_checks_on
def test_a_terminal_shows_the_best_model_so_far(shared: Service, stem: str, specs: list[str], tmp_path: Path) -> None:
    output = on_a_terminal(tmp_path / f"{stem}.csv", "--label", "label", url(shared), "--batch=50", *specs)
    assert re.search(rf"events/s, best log loss 0\.\d{{4}} \({stem}-(sgd|scaled|auto)\)", output)
    assert "│ best │" in output
    assert re.search(r"log loss of the last 1,000, event 4 to 1,250\s+stem-", output.replace(stem, "stem"))


def on_a_terminal(*arguments: str | Path) -> str:
    """What `logstep replay` writes to a terminal of 120 columns."""
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "120"}
    command = [LOGSTEP, "replay", *map(str, arguments)]
    with running(command, stdout=theirs, stderr=subprocess.STDOUT, env=environment) as replay:
        os.close(theirs)
        output = b"".join(_read(ours)).decode()
        replay.wait(PATIENCE)
    os.close(ours)
    assert replay.returncode == 0, output
    return output


def _read(descriptor: int) -> Iterator[bytes]:
    """What is written to a terminal until the other side closes."""
    while select.select([descriptor], [], [], PATIENCE)[0]:
        try:
            yield os.read(descriptor, 65_536)
        except OSError:  # Linux's way to say that nobody has the other side open
            return


@from_checks_on
def test_a_rate_is_kept(shared: Service, model: Model, phishing: Path, capsys: pytest.CaptureFixture[str]) -> None:
    phishing.write_text(as_csv(EVENTS[:200]))
    command = ("replay", phishing, "--label", "label", url(shared), "--model", model.name)
    started = time.monotonic()
    assert call(capsys, *command, "--rate", "200")[0] == 0
    assert time.monotonic() - started > 0.9, "200 events at 200 a second"
    started = time.monotonic()
    assert call(capsys, *command, "--rate", "10")[0] == 0
    assert time.monotonic() - started < 15, "what was learned before passes at once"


# -- into which model


def test_a_file_goes_into_a_new_model_named_after_it_with_auto(
    shared: Service, stem: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ("replay", tmp_path / f"{stem}.csv", "--label", "label", url(shared))
    before = shared.model("default").state()["seq"]
    code, output, error = call(capsys, *command)
    assert code == 0
    assert f"\n{stem}.csv -> {stem}\n" in output
    assert f"{stem}.csv goes into the new model {stem}, rule auto; --model NAME learns into another" in error
    assert "--spec SPEC" in error
    state = shared.model(stem).state()
    assert (state["spec"]["rule"], state["seq"]) == ("auto", len(EVENTS))
    assert shared.model("default").state()["seq"] == before
    code, output, error = call(capsys, *command)
    assert code == 0
    assert f"goes into the model {stem}, which exists with this spec: rule auto, 1,250 events learned" in error
    assert lines_learned(output) == ("0", "1,250")


def test_a_model_of_that_name_with_another_spec_is_told_with_the_difference(
    shared: Service, stem: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert shared.model(stem).create({"rule": "adam", "join": {"keep": "1h"}}).status_code == 201
    command = ("replay", tmp_path / f"{stem}.csv", "--label", "label", url(shared))
    code, _, error = call(capsys, *command)
    assert code == 1
    assert f"Model '{stem}' exists with another spec" in error
    assert 'rule is "adam" in the model and "auto" in the request' in error
    assert 'join.keep is "1h" in the model and "24h" in the request' in error
    assert f"--model {stem} learns into it unchanged" in error
    assert _seq(shared, stem) == 0
    code, _, error = call(capsys, *command, "--model", stem)
    assert code == 0
    assert f"goes into the model {stem}, which exists: rule adam, 0 events learned" in error
    assert _seq(shared, stem) == len(EVENTS)


def test_a_name_that_no_model_has_yet_is_taken(
    shared: Service, stem: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ("replay", tmp_path / f"{stem}.csv", "--label", "label", url(shared), "--model", f"{stem}-mine")
    code, _, error = call(capsys, *command)
    assert code == 0
    assert f"goes into the new model {stem}-mine, rule auto" in error


def test_several_files_are_learned_one_after_the_other(
    shared: Service, model: Model, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, part in enumerate((EVENTS[:600], EVENTS[600:]), 1):
        (tmp_path / f"part-{number}.csv").write_text(as_csv(part))
    files = [tmp_path / f"part-{number}.csv" for number in (1, 2)]
    command: list[str | Path] = ["replay", *files, "--label", "label", url(shared)]
    code, _, error = call(capsys, *command)
    assert code == 2
    assert "several files need --model NAME" in error
    code, output, _ = call(capsys, *command, "--model", model.name)
    assert code == 0
    assert [line for line in output.splitlines() if "->" in line] == [f"{file.name} -> {model.name}" for file in files]
    alone = shared.model(f"{model.name}-alone")
    assert alone.create({}).status_code == 201
    alone.learn_lines(as_ndjson(EVENTS))
    assert model.state()["sha256"] == alone.state()["sha256"]
    alone.delete()


def test_the_columns_of_every_file_are_checked_before_the_first_is_learned(
    shared: Service, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, other = tmp_path / "one.csv", tmp_path / "other.csv"
    one.write_text("a,y\n1,1\n2,0\n")
    other.write_text("a,b,y\n1,1,1\n")
    command = ("replay", one, other, "--label=y", "--model=two-files", url(shared))
    code, _, error = call(capsys, *command)
    assert code == 2
    assert "other.csv has columns that one.csv does not know: b. --number b, --text b or --ignore b" in error
    other.write_text("a,z\n1,1\n")
    code, _, error = call(capsys, *command)
    assert code == 2
    assert "other.csv has no column 'y'; it has a, z" in error
    assert shared.http.get("/models/two-files").status_code == 404, "nothing was learned"


@from_checks_on
def test_several_specs_take_their_names_from_the_one_that_is_given(
    shared: Service, stem: str, specs: list[str], run: Run
) -> None:
    replay = run("-", "--format", "csv", "--label", "label", url(shared), "--model", stem, *specs)
    output, error = replay.communicate(as_csv(EVENTS[:50]), timeout=PATIENCE)
    assert replay.returncode == 0, error
    assert list(comparison(output)) == [f"{stem}-sgd", f"{stem}-scaled", f"{stem}-auto"]


# -- several models side by side


SPECS: dict[str, dict[str, Any]] = {
    "sgd": {"learning_rate": 0.1},
    "scaled": {"rule": "adagrad", "scale": "standard"},
    "auto": {"rule": "auto"},
}


@pytest.fixture
def specs(tmp_path: Path) -> list[str]:
    """The flags for SPECS: a file for each."""
    for name, spec in SPECS.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(spec))
    return [f"--spec={tmp_path / name}.json" for name in SPECS]


@pytest.fixture
def stem(shared: Service, tmp_path: Path) -> Iterator[str]:
    """The stem of `<stem>.csv`, the Phishing stream, after which models are named; they are deleted at the end."""
    name = f"phishing-{next(_numbers)}"
    (tmp_path / f"{name}.csv").write_text(as_csv(EVENTS))
    yield name
    for found in shared.get("/models")["models"]:
        if found["model"].startswith(name):
            assert shared.model(found["model"]).delete().status_code == 204


_numbers = itertools.count(1)


def comparison(output: str) -> dict[str, dict[str, str]]:
    """The table that compares models: columns by model. Who guesses stands below them."""
    lines = output[output.index(" models: ") :].splitlines()
    _, header, *rows = (re.split(r"  +", line.strip()) for line in lines if not line.startswith("  guessing"))
    return {row[0]: dict(zip([*header, ""], row, strict=False)) for row in rows}


def test_one_pass_teaches_every_model_what_it_would_learn_alone(
    shared: Service,
    new_model: NewModel,
    stem: str,
    specs: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    command: tuple[str | Path, ...] = (
        "replay",
        tmp_path / f"{stem}.csv",
        "--label",
        "label",
        url(shared),
        "--batch",
        "300",
        *specs,
    )
    code, output, error = call(capsys, *command)
    assert code == 0
    assert error.splitlines() == [
        f"logstep: {stem}.csv goes into the new model {stem}-{name}, rule {rule}"
        for name, rule in (("sgd", "sgd"), ("scaled", "adagrad, standard"), ("auto", "auto"))
    ]
    assert f"\n{stem}.csv -> 3 models: 1,250 events in " in output
    found = comparison(output)
    alone = {name: new_model(**spec) for name, spec in SPECS.items()}
    for name, other in alone.items():
        other.learn_lines(as_ndjson(EVENTS))
        state, row = other.state(), found[f"{stem}-{name}"]
        assert shared.model(f"{stem}-{name}").state()["sha256"] == state["sha256"]
        total, window = state["progressive"]["total"], state["progressive"]["window"]
        scores = total["log_loss"], window["log_loss"], total["accuracy"], total["roc_auc"]
        columns = ("log loss", "in window", "accuracy", "ROC AUC")
        assert [row[column] for column in columns] == [f"{score:.4f}" for score in scores]
        assert (row["learned"], row["duplicates"]) == ("1,250", "0")
    assert [row["rule"] for row in found.values()] == ["sgd", "adagrad, standard", "auto"]
    losses = {name: other.state()["progressive"]["total"]["log_loss"] for name, other in alone.items()}
    assert [name for name, row in found.items() if row.get("") == "best"] == [
        f"{stem}-{min(losses, key=losses.__getitem__)}"
    ]

    code, output, _ = call(capsys, *command)
    assert code == 0
    again = comparison(output)
    assert {(row["learned"], row["duplicates"]) for row in again.values()} == {("0", "1,250")}
    assert [row["log loss"] for row in again.values()] == [row["log loss"] for row in found.values()]


def as_ndjson(events: Iterable[Any]) -> bytes:
    return "".join(json.dumps({"x": x, "y": y}) + "\n" for x, y in events).encode()


@from_checks_on
def test_models_side_by_side_survive_a_kill_of_the_service(
    start: Start, run: Run, specs: list[str], phishing: Path
) -> None:
    service = start()
    replay = run(phishing, "--label", "label", url(service), "--batch", "50", "--rate", "800", *specs)
    eventually(lambda: _seq(service, "phishing-auto") >= 300, "a part to be learned")
    service.kill()
    again = start("--port", str(service.port), folder=service.folder)
    code, output, error = finish(replay)
    assert code == 0, error
    assert "trying again" in error
    for name, row in comparison(output).items():
        assert again.model(name).state()["seq"] == len(EVENTS)
        assert int(row["learned"].replace(",", "")) + int(row["duplicates"]) == len(EVENTS)
    for name in ("phishing-sgd", "phishing-scaled"):
        assert again.model(name).crosscheck().json()["equal"]


def _seq(service: Service, name: str) -> int:
    """A model's seq; 0 while it is not there."""
    found = service.http.get(f"/models/{name}").json()
    return int(found.get("seq", 0))


@from_checks_on
def test_after_ctrl_c_the_same_command_goes_on_with_every_model(
    shared: Service, run: Run, stem: str, specs: list[str], tmp_path: Path
) -> None:
    command = (tmp_path / f"{stem}.csv", "--label", "label", url(shared), *specs)
    replay = run(*command, "--rate", "400")
    eventually(lambda: _seq(shared, f"{stem}-auto") > 0, "a part to be learned")
    replay.send_signal(signal.SIGINT)
    code, _, error = finish(replay)
    assert code == 130
    assert "event(s) were learned by each model and stay learned; the same command continues from there" in error
    code, output, _ = finish(run(*command))
    assert code == 0
    for name, row in comparison(output).items():
        assert shared.model(name).state()["seq"] == len(EVENTS)
        assert int(row["duplicates"]) > 0


def test_one_spec_makes_one_model_with_the_name_that_is_asked_for(
    shared: Service, stem: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ("replay", tmp_path / f"{stem}.csv", "--label", "label", url(shared), "--spec", '{"rule": "adam"}')
    for flags, name in (((), f"{stem}-adam"), (("--model", f"{stem}.own"), f"{stem}.own")):
        code, output, _ = call(capsys, *command, *flags)
        assert code == 0
        assert f"\n{stem}.csv -> {name}\n" in output
        assert counts(output)["learned"] == "1,250"
        assert shared.model(name).state()["spec"]["rule"] == "adam"


@from_checks_on
def test_predictions_before_learning_are_scored_for_every_model(
    shared: Service, stem: str, specs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / f"{stem}.csv").write_text(as_csv(EVENTS[:100]))
    command: tuple[str | Path, ...] = ("replay", tmp_path / f"{stem}.csv", "--label", "label", url(shared), *specs)
    code, output, _ = call(capsys, *command, "--predict-first", "--batch", "1")
    assert code == 0
    for row in comparison(output).values():
        assert row["served first"] == "100"
        assert row["their accuracy"] == row["accuracy"]


def test_none_is_best_where_the_models_have_not_learned_the_same(
    shared: Service, stem: str, specs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command: tuple[str | Path, ...] = ("replay", tmp_path / f"{stem}.csv", "--label", "label", url(shared))
    assert call(capsys, *command, specs[0])[0] == 0
    code, output, error = call(capsys, *command, *specs, "--id-prefix", "second epoch")
    assert code == 0
    assert "best" not in output
    assert "different numbers of events (1,250 to 2,500)" in error


def test_a_name_that_has_another_spec_is_told(
    shared: Service, stem: str, specs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shared.model(f"{stem}-scaled").create({"rule": "adam"})
    code, _, error = call(capsys, "replay", tmp_path / f"{stem}.csv", "--label", "label", url(shared), *specs)
    assert code == 1
    assert f"scaled.json: Model '{stem}-scaled' exists with another spec" in error
    assert "Nothing was learned" in error
    assert shared.http.get(f"/models/{stem}-sgd").status_code == 404, "none is made where another is refused"


@pytest.mark.parametrize(
    ("content", "code", "message"),
    [
        ('{"learning_rate": 0}', 1, "wrong.json: learning_rate: must be a number above 0"),
        ('{"rule": "magic"}', 1, "wrong.json: rule: must be 'sgd', 'momentum'"),
        ('{"speed": 1}', 1, "wrong.json: speed: is not a field"),
        ("[1]", 1, "wrong.json: body: must be an object"),
        ("{learning_rate: 1}", 2, "wrong.json is not JSON"),
        ("[" * 100_000, 2, "wrong.json is not JSON"),
        (None, 2, "wrong.json: No such file"),
    ],
)
def test_a_wrong_spec_is_told_with_its_file(
    shared: Service,
    stem: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    content: str | None,
    code: int,
    message: str,
) -> None:
    if content is not None:
        (tmp_path / "wrong.json").write_text(content)
    command = ("replay", tmp_path / f"{stem}.csv", "--label", "label", url(shared))
    found, _, error = call(capsys, *command, "--spec", "{}", "--spec", tmp_path / "wrong.json")
    assert found == code
    assert message in error
    assert error.count("\n") == 1
    assert shared.http.get(f"/models/{stem}-sgd").status_code == 404, "none is made where another is wrong"


@pytest.mark.parametrize(
    ("text", "code", "message"),
    [
        ('{"learning_rate": 0}', 1, '{"learning_rate": 0}: learning_rate: must be a number above 0'),
        ('{"learning_rate": }', 2, "--spec is not JSON"),
        ("[]", 1, "[]: body: must be an object"),
    ],
)
def test_a_wrong_spec_of_the_command_line_is_told(
    shared: Service, phishing: Path, capsys: pytest.CaptureFixture[str], text: str, code: int, message: str
) -> None:
    found, _, error = call(capsys, "replay", phishing, "--label", "label", url(shared), "--model=m", "--spec", text)
    assert found == code
    assert message in error


@pytest.mark.parametrize(
    ("stem", "specs", "names"),
    [
        ("a", ["sgd", "auto"], ["a-sgd", "a-auto"]),
        ("a.b", ["my spec"], ["a.b-my-spec"]),
        ("a", ["sgd", "sgd", "sgd-2", "sgd"], ["a-sgd", "a-sgd-2", "a-sgd-2-2", "a-sgd-3"]),
        ("_é_", ["ü"], ["e_-u"]),
        ("_я_", ["ж"], ["model-c3cc6784"]),
        ("a" * 80, ["sgd", "auto"], ["a" * 64, "a" * 62 + "-2"]),
    ],
)
def test_names_are_names_and_no_two_are_equal(stem: str, specs: list[str], names: list[str]) -> None:
    assert model_names(stem, [GivenSpec("", spec, b"{}") for spec in specs]) == names


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("elec.csv", "elec"),
        ("elec.CSV.GZ", "elec"),
        ("clicks 2024-01-31.csv", "clicks-2024-01-31"),
        ("clicks.2024-01.tsv.gz", "clicks.2024-01"),
        ("clicks.2024-01", "clicks.2024-01"),
        ("adult.data", "adult"),
        (".hidden.jsonl", "hidden"),
        ("_é_.csv", "e_"),
        ("данные.csv", "model-db92f998"),
        ("été.csv", "ete"),
        (".csv", "csv"),
        ("default.csv", "default-file"),
        ("default.csv.gz", "default-file"),
        ("Default.csv", "Default"),
        (f"{'a' * 80}.libsvm", "a" * 64),
    ],
)
def test_the_model_of_a_file_is_named_after_it(file: str, name: str) -> None:
    assert model_name(file) == name
    assert MODEL_NAME.fullmatch(name)


# -- a service that fails in every way, made up


_EMPTY = {"seq": 0, "spec": {"rule": "sgd", "scale": "none"}}


class Script:
    """A client whose replies are written down; it remembers what was sent, and to which models."""

    def __init__(self, *replies: Any, creations: Iterable[Any] = ()) -> None:
        self.replies = list(replies)
        self.creations = list(creations)
        self.sent: list[list[str | None]] = []
        self.models: list[str] = []

    def model(self, name: str) -> dict[str, Any]:
        return _EMPTY

    def create(self, name: str, spec: bytes) -> dict[str, Any]:
        if self.creations and isinstance(reply := self.creations.pop(0), Exception):
            raise reply
        return {**_EMPTY, "created": True}

    def learn(self, name: str, events: Iterable[Event]) -> dict[str, Any]:
        batch = list(events)
        self.sent.append([event.id for event in batch])
        self.models.append(name)
        reply = self.replies.pop(0) if self.replies else {"learned": len(batch), "duplicates": 0, "loss": 0.5}
        if isinstance(reply, Exception):
            raise reply
        return reply


def lost(kind: type[httpx.TransportError] = httpx.ReadError) -> NoAnswer:
    return NoAnswer("http://service", kind("it went away"))


def refused(status: int, kind: str = "", retry_after: str | None = None, **members: Any) -> Refused:
    problem = {"type": f"urn:logstep:{kind}", "detail": "it does not go", "status": status, **members}
    headers = {} if retry_after is None else {"retry-after": retry_after}
    return Refused("http://service", httpx.Response(status, json=problem, headers=headers))


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Time that passes only where the replay sleeps; how long it slept each time."""
    pauses: list[float] = []
    monkeypatch.setattr("service.commands.replay.time.sleep", pauses.append)
    monkeypatch.setattr("service.commands.replay.time.monotonic", lambda: sum(pauses))
    return pauses


def rows(count: int) -> Iterator[Row]:
    return (Row(n, n + 1, Event({"a": float(n)}, 1)) for n in range(1, count + 1))


def play(script: Script, count: int = 6, **options: Any) -> Tally:
    tally = Tally()
    made = Options("stream", **{"batch": 3, **options})
    target = Target("default", GivenSpec("{}", "sgd", b"{}"), as_it_is=True)
    Replay(cast("Client", script), target, made, tally, notice=lambda _: None).run(rows(count))
    return tally


def play_two(script: Script, shown: list[str] | None = None, count: int = 6, **options: Any) -> tuple[Tally, Tally]:
    """Two models, `a` and `b`; `shown` gets the name of the one whose progress is shown, each time."""
    tallies = Tally("a"), Tally("b")
    made = Options("stream", **{"batch": 3, **options})
    spec = GivenSpec("spec.json", "spec", b"{}")

    def show(tally: Tally) -> None:
        if shown is not None:
            shown.append(tally.model)

    targets = [Target(tally.model, spec) for tally in tallies]
    replays = [
        Replay(cast("Client", script), target, made, tally, show, lambda _: None)
        for target, tally in zip(targets, tallies, strict=True)
    ]
    learn_side_by_side(replays, rows(count), made)
    return tallies


FIRST = ["stream:1", "stream:2", "stream:3"]
SECOND = ["stream:4", "stream:5", "stream:6"]


def test_a_piece_without_a_reply_is_sent_again(slept: list[float]) -> None:
    script = Script(lost(), lost(httpx.ConnectError), {"learned": 1, "duplicates": 2, "loss": 0.25})
    tally = play(script)
    assert script.sent == [FIRST, FIRST, FIRST, SECOND]
    assert (tally.learned, tally.duplicates) == (4, 2)
    assert tally.loss.value == (0.25 + 3 * 0.5) / 4
    assert slept[:2] == [0.1, 0.2]


@pytest.mark.parametrize(("status", "kind"), [(503, "not-ready"), (507, "disk-full"), (503, "storage-failed")])
def test_after_a_refusal_that_passes_it_goes_on_where_the_service_stopped(
    slept: list[float], status: int, kind: str
) -> None:
    script = Script(refused(status, kind, "7", learned=1, duplicates=1), refused(status, kind, "7", learned=0))
    tally = play(script)
    assert script.sent == [FIRST, FIRST[2:], FIRST[2:], SECOND]
    assert (tally.learned, tally.duplicates) == (5, 1)
    assert slept[0] == 7, "Retry-After"


def test_it_gives_up_after_a_time_without_progress(slept: list[float]) -> None:
    script = Script({"learned": 3, "duplicates": 0, "loss": 0.5}, *[lost(httpx.ConnectError) for _ in range(100)])
    with pytest.raises(Failed, match="Tried for 20 s"):
        play(script, retry_seconds=20)
    assert sum(slept) == pytest.approx(20)
    assert slept == sorted(slept[:-1]) + slept[-1:], "the pauses grow"


def test_without_ids_a_piece_that_may_have_been_learned_is_not_sent_again(slept: list[float]) -> None:
    for failure in (lost(), refused(503, "storage-failed"), refused(502)):
        script = Script(failure)
        with pytest.raises(Failed, match="might be learned twice"):
            play(script, ids=False)
        assert script.sent == [[None] * 3]


def test_without_ids_a_piece_that_was_not_learned_is_sent_again(slept: list[float]) -> None:
    script = Script(lost(httpx.ConnectError), refused(507, "disk-full", learned=1), refused(503, "not-ready"))
    assert play(script, ids=False).learned == 6
    assert [len(piece) for piece in script.sent] == [3, 3, 2, 2, 3]


@pytest.mark.parametrize("status", [400, 404, 409, 413, 422, 500])
def test_other_errors_end_it_at_once(slept: list[float], status: int) -> None:
    script = Script(refused(status, line=2, learned=1))
    with pytest.raises(Refused, match=r"stream line 3 \(event 2\): it does not go"):
        play(script)
    assert len(script.sent) == 1


def test_a_rate_sends_no_more_than_a_tenth_of_a_second_at_once(slept: list[float]) -> None:
    script = Script()
    play(script, count=100, rate=50.0, batch=1000)
    assert {len(piece) for piece in script.sent} == {5}
    assert sum(slept) == pytest.approx(95 / 50)


def test_a_rate_is_not_caught_up_after_a_pause(slept: list[float]) -> None:
    script = Script(lost(), refused(503, "not-ready", "5"))
    play(script, count=20, rate=50.0, batch=1000)
    assert slept == pytest.approx([0.1, 5, 0.1, 0.1, 0.1])


def test_every_model_has_a_piece_before_the_next_is_read(slept: list[float]) -> None:
    script = Script(*[{"learned": 3, "duplicates": 0, "loss": loss} for loss in (0.4, 0.5, 0.4, 0.1)])
    shown: list[str] = []
    tallies = play_two(script, shown)
    assert list(zip(script.models, script.sent, strict=True)) == [
        ("a", FIRST),
        ("b", FIRST),
        ("a", SECOND),
        ("b", SECOND),
    ]
    assert [tally.learned for tally in tallies] == [6, 6]
    assert shown == ["a", "b"], "the best so far"


def test_a_model_that_falls_behind_gets_each_piece_once(slept: list[float]) -> None:
    part = refused(503, "not-ready", learned=1)
    script = Script({"learned": 3, "duplicates": 0, "loss": 0.5}, lost(httpx.ConnectError), part)
    tallies = play_two(script, ids=False)
    assert script.models == ["a", "b", "b", "b", "a", "b"]
    assert [len(piece) for piece in script.sent] == [3, 3, 3, 2, 3, 3]
    assert [tally.learned for tally in tallies] == [6, 6]


def test_a_refusal_names_the_model_where_there_are_two(slept: list[float]) -> None:
    script = Script({"learned": 3, "duplicates": 0, "loss": 0.5}, refused(422, line=2, learned=1))
    with pytest.raises(Refused, match=r"model b: stream line 3 \(event 2\): it does not go"):
        play_two(script)
    assert script.models == ["a", "b"]


def test_without_ids_the_model_that_may_have_learned_is_named(slept: list[float]) -> None:
    script = Script({"learned": 3, "duplicates": 0, "loss": 0.5}, lost())
    with pytest.raises(Failed, match="`logstep models show b` tells"):
        play_two(script, ids=False)


def test_a_creation_without_a_reply_is_asked_for_again(slept: list[float]) -> None:
    play_two(Script(creations=[lost(), refused(503, "not-ready", "3"), None]), ids=False)
    assert slept[:2] == [0.1, 3]
    with pytest.raises(Refused, match=r"spec\.json: it does not go"):
        play_two(Script(creations=[None, refused(422)]))


def test_a_rate_is_of_the_events_of_the_file_however_many_models_there_are(slept: list[float]) -> None:
    script = Script()
    play_two(script, count=100, rate=50.0, batch=1000)
    assert {len(piece) for piece in script.sent} == {5}
    assert sum(slept) == pytest.approx(95 / 50)


# -- reading


def read(tmp_path: Path, name: str, content: str | bytes, **how: Any) -> list[Event]:
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with Source(str(path), **how).open() as opened:
        return [row.event for row in opened.rows()]


def plain(events: Iterable[Event]) -> list[Any]:
    return [(event.x, event.y) for event in events]


def test_every_format_reads_the_same_events(tmp_path: Path) -> None:
    expected = [({name: float(value) for name, value in x.items()}, y) for x, y in EVENTS]
    flat = "".join(json.dumps({**x, "label": bool(y)}) + "\n" for x, y in EVENTS)
    nested = "".join(json.dumps({"x": x, "y": y}) + "\n" for x, y in EVENTS)
    files: dict[str, tuple[str, dict[str, str]]] = {
        "a.csv": (as_csv(EVENTS), {"label": "label"}),
        "a.tsv": (as_csv(EVENTS, "\t"), {"label": "label"}),
        "a.jsonl": (flat, {"label": "label"}),
        "a.ndjson": (nested, {}),
        "a": (as_csv(EVENTS), {"label": "label", "format": "csv"}),
    }
    for name, (content, how) in files.items():
        assert plain(read(tmp_path, name, content, **how)) == expected, name
        if "." in name:
            assert plain(read(tmp_path, name + ".gz", gzip.compress(content.encode()), **how)) == expected, name
    numbered = "".join(
        ("+1" if y else "-1") + "".join(f" {i}:{value!r}" for i, value in enumerate(x.values())) + " # note\n"
        for x, y in EVENTS
    )
    expected = [({str(i): value for i, value in enumerate(x.values())}, y) for x, y in expected]
    assert plain(read(tmp_path, "a.libsvm", "# a comment\n" + numbered)) == expected


def test_objects_keep_their_types_and_null_is_left_out(tmp_path: Path) -> None:
    (event,) = read(tmp_path, "a.ndjson", '{"a": 1, "b": "1", "c": true, "d": null, "k": 17, "y": 0}', **KEYS)
    assert event.x == {"a": 1, "b": "1", "c": True}
    assert (event.y, event.id) == (0, "17")


KEYS: dict[str, Any] = {"label": "y", "asked": {"k": "id"}}


@pytest.mark.parametrize(
    ("labels", "positive", "expected"),
    [
        ("0 1 1.0 0.0 +1 true False", [], [0, 1, 1, 0, 1, 1, 0]),
        ("-1 1 1.0 -1.0 +1 true", [], [0, 1, 1, 0, 1, 1]),
        ("up down UP up", ["up"], [1, 0, 1, 1]),
        ("1 2 3 2.0", ["2"], [0, 1, 0, 1]),
        ("1 2 3 2.0", ["2", "1"], [1, 1, 0, 1]),
    ],
)
def test_labels(tmp_path: Path, labels: str, positive: list[str], expected: list[int]) -> None:
    content = "y,a\n" + "".join(f"{label},1\n" for label in labels.split())
    assert [event.y for event in read(tmp_path, "a.csv", content, label="y", positive=positive)] == expected


@pytest.mark.parametrize(
    ("name", "content", "how", "message"),
    [
        ("a.csv", "a,y\n1,1\n1,perhaps\n", {"label": "y"}, "a.csv line 3: the label 'perhaps' is not 0, 1"),
        ("a.csv", "a,y\n1,1\n1\n", {"label": "y"}, "a.csv line 3: it has 1 cells, but the header has 2"),
        ("a.csv", "a,y\n1,1\n", {"label": "z"}, "a.csv has no column 'z'; it has a, y"),
        ("a.csv", "a,y\n1,1\n", KEYS, "a.csv has no column 'k'"),
        ("a.csv", "a,k,y\n1,,1\n", KEYS, "a.csv line 2: it has no id"),
        ("a.csv", "a,y\n1,1\n", {}, "--label COLUMN says which column of a.csv"),
        ("a.csv", "", {"label": "y"}, "a.csv is empty"),
        ("a.csv", "a,,y\n1,1,1\n", {"label": "y"}, "a.csv has no name for column 2"),
        ("a.csv", "a,a,y\n1,1,1\n", {"label": "y"}, "a.csv has two columns with the name 'a'"),
        ("a.csv", b"a,y\n\xff,1\n", {"label": "y"}, "a.csv line 2: it is not UTF-8 text"),
        ("a.csv.gz", gzip.compress(as_csv(EVENTS).encode())[:-9], {"label": "label"}, "its compression is broken"),
        ("a.parquet", "PAR1", {"label": "y"}, "a.parquet is not a Parquet or Arrow file that can be read"),
        ("a.ndjson", '{"a": 1, "y": 1}\n{"a": \n', {"label": "y"}, "a.ndjson line 2: it is not JSON"),
        ("a.ndjson", '{"a": 1, "y": 1}\n\n[1]\n', {"label": "y"}, "a.ndjson line 3: it is not a JSON object"),
        ("a.ndjson", '{"a": 1}\n', {"label": "y"}, "a.ndjson line 1: it has no 'y'"),
        ("a.ndjson", '{"a": [1], "y": 1}\n', {"label": "y"}, "a.ndjson line 1: a: must be a number"),
        ("a.ndjson", '{"a": 1, "y": 1}\n', {}, "a.ndjson line 1: a: is not a field"),
        ("a.ndjson", '{"x": {}, "y": 1}\n', {"asked": {"k": "id"}}, "--id-column needs"),
        ("a.ndjson", "nonsense\n", {}, "a.ndjson line 1: it is not valid JSON"),
        ("a.libsvm", "1 1:1\n1 1:2 b\n", {}, "a.libsvm line 2: 'b' is not index:value"),
        ("a.libsvm", "1 qid:1\n", {}, "a.libsvm line 1: 'qid:1' is not index:value"),
        ("a.libsvm", "7 1:1\n", {}, "a.libsvm line 1: the label '7' is not"),
    ],
)
def test_what_is_wrong_is_told_with_its_line(
    tmp_path: Path, name: str, content: str | bytes, how: dict[str, Any], message: str
) -> None:
    with pytest.raises(WrongUsage) as wrong:
        read(tmp_path, name, content, **how)
    assert message in str(wrong.value)


@pytest.mark.parametrize(
    "arguments",
    [
        ["absent.csv", "--label", "y"],
        [".", "--label", "y", "--format", "csv"],
        ["-", "--label", "y"],
        ["a.csv", "--label", "y", "--format", "xml"],
        ["a.csv", "--label", "y", "--batch", "0"],
        ["a.csv", "--label", "y", "--rate", "0"],
        ["a.csv", "--label", "y", "--retry-seconds", "long"],
        ["a.csv", "--label", "y", "--url", "localhost:8000"],
        ["a.csv", "--label", "y", "--no-ids", "--id-prefix", "a"],
        ["-", "--format", "csv", "--label", "y"],
        ["-", "--format", "csv", "--label", "y", "--spec", "{}"],
        ["/dev/fd/0", "--format", "csv", "--label", "y"],
        [__file__, __file__, "--format", "csv", "--label", "y"],
        [__file__, __file__, "--format", "csv", "--label", "y", "--spec", "{}", "--spec", "{}"],
        [__file__, __file__, "--format", "csv", "--label", "y", "--model", "m", "--id-prefix", "p"],
        [__file__, "absent.csv", "--format", "csv", "--label", "y", "--model", "m"],
        ["a.csv", "--label", "y", "--id-prefix", ""],
        ["a.csv", "--label", "y", "--id-prefix", "p" * 237],
        ["a.csv", "--label", "y", "--spec", "absent.json"],
        ["a.csv", "--label", "y", "--spec", "{"],
    ],
)
def test_wrong_usage_is_exit_code_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    try:
        code: object = cli.main(["replay", *arguments])
    except SystemExit as left:  # argparse's way
        code = left.code
    assert code == 2
    assert capsys.readouterr().err


def test_a_piece_with_something_wrong_in_it_is_not_sent(
    shared: Service, model: Model, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.csv"
    path.write_text("a,y\n" + "1,1\n" * 250 + "1,2\n")
    command = ("replay", path, "--label", "y", url(shared), "--model", model.name, "--batch", "100")
    code, _, error = call(capsys, *command)
    assert code == 2
    assert "a.csv line 252: the label '2'" in error
    assert "Nothing was learned" in error, "it stands among the rows that are looked at"
    code, _, error = call(capsys, *command, "--look", "100")
    assert code == 2
    assert "a.csv line 252: the label '2'" in error
    assert "200 event(s) were learned and stay learned; the same command continues" in error
    assert model.state()["seq"] == 200


def test_the_client_says_when_what_answers_is_no_logstep(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(httpx.HTTPTransport, "handle_request", lambda *_: httpx.Response(200, text="<html>"))
    client = Client("http://127.0.0.1:1")
    with client, pytest.raises(Refused, match="not like a logstep service"):
        client.alive()


def test_rows_are_numbered_without_blank_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("a,y\n\n1,1\n\n\n2,0\n")
    with Source(str(path), label="y").open() as opened:
        assert [(row.number, row.line) for row in itertools.islice(opened.rows(), 5)] == [(1, 3), (2, 6)]
