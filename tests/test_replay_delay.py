"""A file played as a real stream: predictions first, labels later; each row is learned once, whatever is killed."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import effort
import httpx
import pytest
from effort import from_checks_on
from harness import LOGSTEP, Model, NewModel, Service, Start
from patience import eventually
from processes import logged_events
from river import linear_model
from streams import stream
from test_replay import as_csv, call, comparison, counts, finish, url

from service import events
from service.commands.client import Client, NoAnswer
from service.commands.late import LateReplay
from service.commands.rows import Row
from service.commands.tally import Delay, Options, Tally
from service.commands.targets import AUTO, Target
from service.commands.terminal import WrongUsage

EVENTS = stream("Phishing")
Event = tuple[dict[str, float], int, float]

# -- helpers


def command(path: Path, service: Service, model: Model, *flags: str) -> tuple[str | Path, ...]:
    return ("replay", path, "--label=label", url(service), f"--model={model.name}", "--predict-first", *flags)


@pytest.fixture
def few(tmp_path: Path) -> Path:
    """The first 300 events of Phishing."""
    path = tmp_path / "few.csv"
    path.write_text(as_csv(EVENTS[:300]))
    return path


Play = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def play(tmp_path: Path) -> Iterator[Play]:
    """Start the replay of all of Phishing into `default` in a process of its own, about a second and a half long."""
    processes: list[subprocess.Popen[str]] = []
    path = tmp_path / "phishing.csv"
    path.write_text(as_csv(EVENTS))

    def start_replay(service: Service, *flags: str) -> subprocess.Popen[str]:
        arguments = command(path, service, service.model(), "--rate=1250", "--delay=exp(300ms)", *flags)
        pipe = subprocess.PIPE
        processes.append(subprocess.Popen([LOGSTEP, *map(str, arguments)], stdout=pipe, stderr=pipe, text=True))
        return processes[-1]

    yield start_replay
    for process in processes:
        process.kill()
        process.communicate()


def plain(events: Iterable[Any]) -> list[tuple[dict[str, float], int]]:
    """Events without their weights, x as the log has it."""
    return [({name: float(value) for name, value in x.items()}, int(y)) for x, y, *_ in events]


def in_any_order(events: Iterable[Any]) -> list[Any]:
    return sorted((sorted(x.items()), y) for x, y in plain(events))


def river_weights(events: Sequence[Event]) -> dict[str, float]:
    """What river comes to, learning these events in this order."""
    model = linear_model.LogisticRegression()
    for x, y, weight in events:
        model.learn_one(x, bool(y), w=weight)
    return dict(model.weights)


# -- what a stream is


def test_each_row_is_predicted_at_once_and_learned_in_the_order_in_which_labels_come(
    shared: Service, model: Model, few: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, output, error = call(capsys, *command(few, shared, model, "--delay=exp(300ms)", "--seed=7"))
    assert (code, error.count("\n")) == (0, 2), "that it keeps no columns and learns is said, and no more"
    logged = logged_events(shared.folder, model.name)
    delays = [Delay.parse("exp(300ms)", seed=7).of(row) for row in range(1, 301)]
    by_delay = sorted(range(300), key=delays.__getitem__)  # all were predicted in one piece
    assert plain(logged) == plain(EVENTS[row] for row in by_delay)
    assert model.weights()["weights"] == river_weights(logged)
    state, found = model.state(), counts(output)
    assert state["join"]["waiting"] == 0
    assert sum(delays) / 300 <= state["join"]["delay_s"]["mean"] < sum(delays) / 300 + 0.5
    assert (found["learned"], found["predictions served"], found["model's labels joined"]) == ("300", "300", "300")
    # All were served by a model that had learned nothing, p = 0.5; before each step it had.
    assert found["model's log loss as served"] == "0.6931"
    assert found["progressive log loss"] == f"{state['progressive']['total']['log_loss']:.4f}" != "0.6931"


def test_a_second_replay_learns_nothing(
    shared: Service, model: Model, few: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = "--delay=uniform(0s,100ms)", "--batch=100"
    assert call(capsys, *command(few, shared, model, *flags))[0] == 0
    mark = model.mark()
    code, output, _ = call(capsys, *command(few, shared, model, *flags))
    found = counts(output)
    assert (code, found["learned"], found["duplicates"], found["predictions served"]) == (0, "0", "300", "0")
    assert model.mark() == mark


def test_faster_than_real_time_both_the_rate_and_the_delays_are(
    shared: Service, model: Model, few: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    started = time.monotonic()
    flags = "--rate=50", "--delay=10s", "--speed-up=20"  # 6 s of predictions, and labels 10 s later
    assert call(capsys, *command(few, shared, model, *flags))[0] == 0
    assert 0.7 < time.monotonic() - started < 6
    assert 0.5 <= model.state()["join"]["delay_s"]["mean"] < 1
    assert plain(logged_events(shared.folder, model.name)) == plain(EVENTS[:300]), "all come equally late: in order"


def test_models_side_by_side_get_the_same_labels_in_the_same_order(
    shared: Service, few: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    specs = ('--spec={"learning_rate": 0.05}', '--spec={"rule": "adagrad"}')
    flags = ("--predict-first", "--delay=uniform(0s,400ms)", "--batch=50", "--rate=1000", *specs)
    code, output, _ = call(capsys, "replay", few, "--label=label", url(shared), *flags)
    assert code == 0
    logs = [logged_events(shared.folder, name) for name in ("few-sgd", "few-adagrad")]
    assert logs[0] == logs[1]
    assert in_any_order(logs[0]) == in_any_order(EVENTS[:300])
    for name, row in comparison(output).items():
        assert (row["learned"], row["served"], row["joined"], row["too late"]) == ("300", "300", "300", "0")
        assert row["loss as served"] == f"{shared.model(name).state()['served']['total']['log_loss']:.4f}"
        assert shared.model(name).delete().status_code == 204


# -- interruptions


@from_checks_on
def test_the_service_is_killed_in_the_middle_and_started_again(start: Start, play: Play) -> None:
    service = start()
    replay = play(service)
    eventually(lambda: service.model().state()["seq"] >= 200, "a part to be learned")
    service.kill()
    again = start("--port", str(service.port), folder=service.folder)
    code, output, error = finish(replay)
    assert code == 0, error
    assert "trying again" in error
    state, logged = again.model().state(), logged_events(service.folder)
    assert (state["seq"], state["join"]["joined"], state["join"]["waiting"]) == (1250, 1250, 0)
    assert in_any_order(logged) == in_any_order(EVENTS)
    assert again.model().weights()["weights"] == river_weights(logged)
    assert counts(output)["events"] == "1,250"


@from_checks_on
def test_the_replay_is_killed_in_the_middle_and_the_same_command_goes_on(start: Start, play: Play) -> None:
    service = start()
    first = play(service)
    eventually(lambda: service.model().state()["seq"] >= 300, "a part to be learned")
    first.kill()
    first.wait()
    before = service.model().mark()[0]
    waiting = service.model().state()["join"]["waiting"]
    code, output, error = finish(play(service))
    assert code == 0, error
    found = counts(output)
    assert int(found["duplicates"]) == before
    assert int(found["learned"]) == 1250 - before
    assert 1250 - before - waiting <= int(found["predictions served"]) <= 1250 - before
    state, logged = service.model().state(), logged_events(service.folder)
    assert (state["seq"], state["join"]["joined"]) == (1250, 1250)
    assert in_any_order(logged) == in_any_order(EVENTS)
    assert service.model().weights()["weights"] == river_weights(logged)


@from_checks_on
def test_ctrl_c_says_how_many_wait_and_that_the_same_command_goes_on(
    shared: Service, model: Model, few: Path, tmp_path: Path
) -> None:
    arguments = [LOGSTEP, *map(str, command(few, shared, model, "--delay=1h", "--rate=100"))]
    replay = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    eventually(lambda: model.state()["join"]["waiting"] >= 50, "predictions")
    replay.send_signal(2)
    code, _, error = finish(replay)
    assert code == 130
    told = re.search(
        r"0 event\(s\) were learned and stay learned, (\d+) prediction\(s\) wait for their labels; the same", error
    )
    assert told is not None
    assert 40 <= int(told[1]) <= 300


class Counted(Client):
    """Counts its requests; with `loses`, the reply to each is lost the first time."""

    def __init__(self, service: Service, loses: bool = False) -> None:
        super().__init__(f"http://127.0.0.1:{service.port}")
        self.requests = 0
        self._loses = loses
        self._lost: set[bytes | None] = set()

    def _send(self, method: str, path: str, body: bytes | None = None, *more: Any, **options: Any) -> httpx.Response:
        self.requests += 1
        try:
            return super()._send(method, path, body, *more, **options)
        finally:
            if self._loses and body is not None and body not in self._lost:
                self._lost.add(body)
                raise NoAnswer(self.url, httpx.ReadError("it went away"))


def run(client: Client, model: Model, count: int, delay: str = "0s", **options: Any) -> tuple[Tally, list[str]]:
    """The first rows of Phishing into a model, in this process; what people are told."""
    tally, notices = Tally(), []  # type: tuple[Tally, list[str]]
    made = Options("few.csv", predict_first=True, delay=Delay.parse(delay), **options)
    rows = (Row(n, n + 1, events.Event(dict(x), y)) for n, (x, y) in enumerate(EVENTS[:count], 1))
    with client:
        LateReplay(client, Target(model.name, AUTO, as_it_is=True), made, tally, notice=notices.append).run(rows)
    return tally, notices[1:]  # the first says which model learns


def test_rows_that_were_learned_before_cost_no_request_each(shared: Service, model: Model) -> None:
    run(Counted(shared), model, count=1000)
    client = Counted(shared)
    tally, _ = run(client, model, count=1250, batch=100)
    assert (tally.duplicates, tally.learned) == (1000, 250)
    assert client.requests < 25


def test_a_reply_that_is_lost_is_asked_for_again(shared: Service, model: Model) -> None:
    tally, notices = run(Counted(shared, loses=True), model, count=90, batch=30)
    assert tally.events == model.state()["seq"] == 90
    assert in_any_order(logged_events(shared.folder, model.name)) == in_any_order(EVENTS[:90])
    assert "trying again" in notices[0]


def test_rows_learned_here_and_there_before_are_learned_once(
    shared: Service, model: Model, few: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    learned = [0, 1, 50, *range(60, 90), 200, 202, 204, 299]
    rows = [{"x": dict(EVENTS[i][0]), "y": EVENTS[i][1], "id": f"few.csv:{i + 1}"} for i in learned]
    assert model.learn(rows).status_code == 200
    waiting = [{"x": dict(EVENTS[i][0]), "id": f"few.csv:{i + 1}"} for i in (10, 190, 201, 298)]
    assert model.predict(waiting).status_code == 200
    code, output, error = call(
        capsys, *command(few, shared, model, "--delay=50ms", "--batch=100", "--id-prefix=few.csv")
    )
    assert code == 0, error
    assert int(counts(output)["duplicates"]) == len(learned)
    # Event 202 waited, between two that were learned: it got its label at once, and the others were predicted again.
    assert int(counts(output)["predictions served"]) == 300 - len(learned) - 1
    assert in_any_order(logged_events(shared.folder, model.name)) == in_any_order(EVENTS[:300])


# -- what is not kept


@from_checks_on
@effort.few(1)
@pytest.mark.parametrize("on_timeout", ["drop", "negative"])
def test_labels_that_come_too_late_are_counted_and_it_goes_on(
    shared: Service,
    new_model: NewModel,
    few: Path,
    capsys: pytest.CaptureFixture[str],
    on_timeout: str,
) -> None:
    model = new_model(join={"keep": "1s", "on_timeout": on_timeout})
    code, output, error = call(capsys, *command(few, shared, model, "--delay=uniform(0s,3s)"))
    assert code == 0, error
    found, join = counts(output), model.state()["join"]
    too_late = int(found["labels too late"])
    assert 0 < too_late < 300
    assert int(found["learned"]) == join["joined"] == 300 - too_late
    assert found["model's expired, dropped"] == f"{join['expired']}, {join['dropped']}"
    assert join["expired" if on_timeout == "negative" else "dropped"] == too_late
    # Given again, what was dropped is predicted anew; what was learned as 0 stays learned.
    code, output, _ = call(capsys, *command(few, shared, model, "--delay=0s", "--batch=10"))
    assert (code, model.state()["seq"]) == (0, 300)
    assert int(counts(output)["labels too late"]) == (too_late if on_timeout == "negative" else 0)


def test_a_label_that_corrects_an_expired_prediction_is_learned(
    shared: Service, new_model: NewModel, few: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = new_model(join={"keep": "0.1s", "on_timeout": "negative", "late": "learn"})
    code, output, _ = call(capsys, *command(few, shared, model, "--delay=500ms"))
    positive = sum(y for _, y in EVENTS[:300])
    assert (code, model.state()["seq"]) == (0, 300 + positive)
    assert (counts(output)["model's late corrections"], counts(output)["labels too late"]) == (str(positive), "0")


def test_what_the_service_does_not_keep_is_sent_whole_when_its_label_is_due(
    shared: Service, new_model: NewModel, few: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = new_model(join={"max_waiting": 20})
    code, output, error = call(capsys, *command(few, shared, model, "--delay=uniform(0s,300ms)", "--seed=1"))
    assert code == 0
    assert "does not keep the prediction of event 21" in error
    assert "max_waiting" in error
    assert error.count("\n") == 3, "that it keeps no columns, that it learns, and this"
    delay = Delay.parse("uniform(0s,300ms)", seed=1)
    by_delay = sorted(range(300), key=lambda row: delay.of(row + 1))
    assert plain(logged_events(shared.folder, model.name)) == plain(EVENTS[row] for row in by_delay)
    assert (counts(output)["learned"], counts(output)["model's labels joined"]) == ("300", "20")


def test_another_row_under_the_same_id_is_refused_with_its_line(
    shared: Service, model: Model, few: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    x, y = EVENTS[4]
    model.learn({"x": dict(x), "y": 1 - y, "id": "few.csv:5"})
    code, _, error = call(capsys, *command(few, shared, model, "--delay=0s", "--id-prefix=few.csv"))
    assert code == 1
    assert "few.csv line 6 (event 5): id: the id 'few.csv:5' was learned before" in error


# -- what can be asked for


@pytest.mark.parametrize(
    ("text", "times"),
    [
        ("30s", (30,)),
        ("1.5ms", (0.0015,)),
        ("exp(2m)", (120,)),
        ("exp( 6h )", (21600,)),
        ("uniform(1s, 1d)", (1, 86400)),
        ("uniform(0s,0s)", (0, 0)),
    ],
)
def test_a_delay_is_read(text: str, times: tuple[float, ...]) -> None:
    assert Delay.parse(text).times == times


@pytest.mark.parametrize(
    "text",
    [
        "",
        "30",
        "-1s",
        "s",
        "1w",
        "exp",
        "exp()",
        "exp(30)",
        "exp(1s,2s)",
        "uniform(1s)",
        "normal(1s,2s)",
        "1s 2s",
        "٣s",
    ],
)
def test_what_is_no_delay_is_refused(text: str) -> None:
    with pytest.raises(WrongUsage, match=re.escape(f"--delay {text!r} is not a delay like exp(30s)")):
        Delay.parse(text)


def test_the_shorter_time_comes_first() -> None:
    with pytest.raises(WrongUsage, match="the first time must be the shorter one"):
        Delay.parse("uniform(60s,1s)")


def test_delays_have_their_mean_and_are_the_same_each_time() -> None:
    for text, mean in (("exp(30s)", 30), ("uniform(1s,59s)", 30), ("30s", 30)):
        delays = [Delay.parse(text).of(row) for row in range(4000)]
        assert sum(delays) / 4000 == pytest.approx(mean, rel=0.05)
        assert min(delays) >= 0
        assert delays[17] == Delay.parse(text).of(17) == 10 * Delay.parse(text, speed_up=10).of(17)
    assert Delay.parse("exp(30s)", seed=1).of(1) != Delay.parse("exp(30s)", seed=2).of(1)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--delay=30s"], "--delay needs --predict-first"),
        (["--predict-first", "--delay=30s", "--no-ids"], "--delay needs ids"),
        (["--predict-first", "--delay=soon"], "--delay 'soon' is not a delay like exp(30s), uniform(1s,60s) or 30s"),
        (["--predict-first", "--seed=1"], "--seed and --speed-up need --delay"),
        (["--speed-up=2"], "--seed and --speed-up need --delay"),
    ],
)
def test_wrong_usage_is_told(flags: list[str], message: str, few: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, error = call(capsys, "replay", few, "--label=label", "--url=http://127.0.0.1:1", *flags)
    assert code == 2
    assert message in error
