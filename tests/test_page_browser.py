"""The page in a real Chromium, on a real service: what it shows, that it follows, and that everybody can use it.

Skipped where there is no Chromium or no Playwright. After each test: no error in the console, and no request to another
host.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from effort import from_checks_on
from harness import JSON, Service, Start, Starter
from patience import PATIENCE, eventually
from streams import stream

from service.http import tokens

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed"), from_checks_on]
PATIENCE_MS = 1_000 * PATIENCE
PHONE, DESK = (390, 844), (1280, 800)
SCRIPT = "<script>alert(1)</script>"
"""A feature's name that would be run if the page took names for HTML."""


class Tab:
    """A tab of the browser on a service. What it asks for and complains of is kept."""

    def __init__(self, browser: Any, service: Service, size: tuple[int, int] = DESK, **options: Any) -> None:
        self.origin = f"http://127.0.0.1:{service.port}"
        viewport = {"width": size[0], "height": size[1]}
        self.context = browser.new_context(viewport=viewport, base_url=self.origin, locale="en-GB", **options)
        self.page = self.context.new_page()
        self.page.set_default_timeout(PATIENCE_MS)
        self.complaints: list[str] = []
        self.forgiven: tuple[str, ...] = ()
        self.asked: list[str] = []
        self.page.on("console", self._console)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("dialog", lambda dialog: self.complaints.append(dialog.message))
        self.page.on("request", lambda request: self.asked.append(request.url))

    def _console(self, message: Any) -> None:
        if message.type == "error":
            self.complaints.append(message.text)

    def open(self, path: str) -> Any:
        """Show a page and wait until it is connected."""
        self.page.goto(path)
        self.wait_for("#connection", "live")
        return self.page

    def wait_for(self, selector: str, text: str | re.Pattern[str]) -> None:
        sync_api.expect(self.page.locator(selector).first).to_contain_text(text)

    def forgive(self, *patterns: str) -> None:
        """What the browser itself must say of what a test does."""
        self.forgiven = patterns

    def close(self) -> None:
        self.context.close()
        assert [told for told in self.complaints if not any(re.search(p, told) for p in self.forgiven)] == []
        assert {url for url in self.asked if not url.startswith((self.origin, "data:"))} == set()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    sync_api.expect.set_options(timeout=PATIENCE_MS)
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


class Traffic(threading.Thread):
    """Phishing, over and over until it is stopped: into `default` as predictions whose labels come a little later, into
    `mix`, which is an `auto`, as events."""

    def __init__(self, service: Service) -> None:
        super().__init__(daemon=True)
        self._client = service.another_client()
        self._ends = threading.Event()
        self.failure: Exception | None = None

    def run(self) -> None:
        events = stream("Phishing")
        try:
            for start in range(0, 60 * len(events), 5):
                if self._ends.wait(0.05):
                    return
                piece = [events[i % len(events)] for i in range(start, start + 5)]
                self._post("default/predict", [{"x": x, "id": f"{start + i}"} for i, (x, _) in enumerate(piece)])
                self._post("mix/learn", [{"x": x, "y": y} for x, y in piece])
                self._post("default/learn", [{"id": f"{start + i}", "y": y} for i, (_, y) in enumerate(piece[:-1])])
        except Exception as error:
            self.failure = error

    def _post(self, path: str, body: Any) -> None:
        self._client.post(f"/models/{path}", content=json.dumps(body), headers=JSON).raise_for_status()

    def stop(self) -> None:
        self._ends.set()
        self.join()
        self._client.close()
        assert self.failure is None


@pytest.fixture(scope="module")
def busy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service that learns while the tests look, with a past of a few seconds, and an empty model."""
    starter = Starter(tmp_path_factory.mktemp("busy"))
    service = starter()
    assert service.model("mix").create({"rule": "auto"}).status_code == 201
    assert service.model("empty").create({"rule": "ftrl"}).status_code == 201
    odd = service.model("odd")
    assert odd.create({}).status_code == 201
    assert odd.learn({"x": {SCRIPT: 2.0, "age": 3.0}, "y": 1}).status_code == 200
    traffic = Traffic(service)
    traffic.start()
    eventually(lambda: told(service, "default"), "a point of the series")
    yield service
    traffic.stop()
    starter.close()


def told(service: Service, model: str) -> list[float]:
    """The windowed log losses that the series has."""
    series = service.get(f"/models/{model}/series?from={time.time() - 900}")
    return [loss for loss in series["loss_window"] if loss is not None]


@pytest.fixture
def tab(browser: Any, busy: Service) -> Iterator[Tab]:
    opened = Tab(browser, busy)
    yield opened
    opened.close()


def number(text: str) -> int:
    """The first number in a text like "45,312 events"."""
    found = re.search(r"[\d,]+", text)
    assert found, text
    return int(found[0].replace(",", ""))


# -- what it shows


def test_an_empty_service_shows_a_line_to_paste_that_works(browser: Any, start: Start) -> None:
    service = start()
    tab = Tab(browser, service)
    page = tab.open("/")
    tab.wait_for("h2", "Nothing learned yet")
    subprocess.run(["bash", "-c", page.locator("pre").inner_text()], timeout=PATIENCE, check=True, capture_output=True)
    sync_api.expect(page.locator("pre")).to_have_count(0)
    tab.wait_for("tbody tr", re.compile(r"default.*1"))
    assert service.get("/models/default")["seq"] == 1
    tab.close()


def test_the_overview_has_every_model_and_its_numbers_move(tab: Tab, busy: Service) -> None:
    page = tab.open("/")
    rows = page.locator("tbody tr")
    sync_api.expect(rows).to_have_count(4)
    assert [rows.nth(i).locator("a").inner_text() for i in range(4)] == ["default", "mix", "empty", "odd"]
    tab.wait_for("tbody tr .state", "learning")
    assert "no events" in rows.nth(2).inner_text()
    events = rows.nth(0).locator("td").first
    before = number(events.inner_text())
    rows.nth(1).locator("a").focus()
    eventually(lambda: number(events.inner_text()) > before, "the events to be more")
    assert page.evaluate("document.activeElement.textContent") == "mix"  # who reads on there is not thrown out
    assert number(events.inner_text()) <= busy.get("/models/default")["seq"]


@pytest.mark.parametrize("size", [DESK, PHONE])
def test_a_model_that_is_worse_than_guessing_has_a_badge_and_is_told_what_to_try(
    browser: Any, start: Start, size: tuple[int, int]
) -> None:
    service = start()
    events = [{"x": {"income": 1e4 * (i % 7)}, "y": int(i % 3 == 0)} for i in range(300)]
    assert service.model().learn(events).status_code == 200
    state = service.model().state()
    guessing = f"{state['progressive']['total']['base_rate_log_loss']:.4f}"
    advice = state["worse_than_guessing"]["advice"]
    tab = Tab(browser, service, size)
    page = tab.open("/")
    tab.wait_for("tbody tr .state", "worse than guessing")
    cell = page.locator("tbody td[data-label=Guessing]")
    assert cell.inner_text().split()[-3:] == [guessing, "total", guessing]
    tab.wait_for(".finding", f"default: {advice}.")
    page.get_by_role("link", name="default").click()
    tab.wait_for(".tile:nth-child(2)", f"guessing\u00a0{guessing}")
    tab.wait_for(".finding", f"{advice}.")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    tab.close()


def test_a_model_is_drawn_and_moves(tab: Tab, busy: Service) -> None:
    page = tab.open("/#/models/default")
    tab.wait_for(".tile", "events")
    drawing = page.locator("figure [role=img]").first
    sync_api.expect(drawing).to_have_attribute("aria-label", re.compile(r"last 1,0\d\d: last 0\.\d{4}, lowest"))
    eventually(lambda: inked(page) > 40, "the line to be drawn")
    before = number(page.locator(".tile").first.locator("small").inner_text())
    eventually(
        lambda: number(page.locator(".tile").first.locator("small").inner_text()) > before, "the events to be more"
    )
    shown = page.locator(".tile", has_text="Waiting for labels").locator("strong").inner_text()
    waiting = busy.get("/models/default")["join"]["waiting"]
    assert 0 < number(shown) <= waiting + 5  # of the piece that was being predicted then
    weights = {row.split("\t")[0] for row in page.locator("table.bars").first.inner_text().splitlines()[1:]}
    assert weights & set(stream("Phishing")[0][0])


def inked(page: Any) -> int:
    """Pixels that the line of the first chart takes."""
    count: int = page.evaluate(
        """() => {
            const canvas = document.querySelector("figure canvas");
            const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
            let found = 0;
            for (let i = 0; i < data.length; i += 4) if (data[i + 3] > 200 && data[i + 2] - data[i] > 60) found++;
            return found;
        }"""
    )
    return count


def test_the_numbers_of_a_chart_are_there_as_a_table(tab: Tab, busy: Service) -> None:
    page = tab.open("/#/models/default?by=time")
    page.locator("summary").first.click()
    rows = page.locator("figure").first.locator("tbody tr")
    sync_api.expect(rows.first).to_contain_text(re.compile(r"\d{2}:\d{2}:\d{2}\s*0\.\d{4}"))
    losses = {f"{loss:.4f}" for loss in told(busy, "default")}
    assert all(rows.nth(i).locator("td").first.inner_text() in losses for i in range(rows.count()))


def test_a_file_that_is_learned_at_once_has_a_curve_by_events_and_one_dot_by_time(browser: Any, start: Start) -> None:
    service = start()
    assert service.model().learn([{"x": x, "y": y} for x, y in stream("Phishing", 1_200)]).status_code == 200
    curve = service.get("/models/default/curve")
    tab = Tab(browser, service)
    page = tab.open("/")
    last = f"{curve['loss_window'][-1]:.4f}"
    sync_api.expect(page.locator("svg.spark")).to_have_attribute("aria-label", re.compile(f"from .* to {last}"))
    assert len(page.locator("svg.spark polyline").get_attribute("points").split()) > 40

    page.get_by_role("link", name="default").click()
    loss, accuracy = (page.get_by_role("img", name=re.compile(name)) for name in ("^Log loss, before", "^Accuracy"))
    drawn = f"0 to 1,200. last 1,000: last {last}, lowest {min(curve['loss_window']):.4f}"
    sync_api.expect(loss).to_have_attribute("aria-label", re.compile(drawn))
    sync_api.expect(accuracy).to_have_attribute(
        "aria-label", re.compile(f"0 to 1,200. last 1,000: last {100 * curve['accuracy_window'][-1]:.1f} %")
    )
    assert page.get_by_label("by events").is_checked()
    by_events = inked(page)

    page.get_by_label("by events").focus()
    page.keyboard.press("ArrowRight")
    assert page.get_by_label("by time").is_checked()
    assert page.evaluate("document.activeElement.value") == "time"
    assert page.url.endswith("?range=15m&by=time")
    eventually(lambda: "0 to 1,200" not in loss.get_attribute("aria-label"), "the chart over time")
    assert "0 to 1,200" not in accuracy.get_attribute("aria-label")
    eventually(lambda: inked(page) < by_events / 4, "one dot")
    page.reload()
    tab.wait_for("#connection", "live")
    assert page.get_by_label("by time").is_checked()
    page.keyboard.press("Tab")
    page.get_by_label("by time").press("ArrowLeft")
    sync_api.expect(loss).to_have_attribute("aria-label", re.compile(drawn))

    service.model().learn([{"x": x, "y": y} for x, y in stream("Phishing", 50)])
    sync_api.expect(loss).to_have_attribute("aria-label", re.compile("0 to 1,250"))
    tab.close()


WRITTEN = """
    const drawn = new Map(), write = CanvasRenderingContext2D.prototype.fillText;
    const clear = CanvasRenderingContext2D.prototype.clearRect;
    CanvasRenderingContext2D.prototype.clearRect = function (...rectangle) {
        drawn.set(this.canvas, []);
        clear.apply(this, rectangle);
    };
    CanvasRenderingContext2D.prototype.fillText = function (text, ...place) {
        drawn.get(this.canvas).push([this.textAlign, text]);
        write.call(this, text, ...place);
    };
    window.ticks = () => [...drawn].filter(([canvas]) => canvas.isConnected).map(([, texts]) => texts);
"""
"""Keeps what stands at the axes of each chart: the ticks of the x axis are centred."""


@pytest.mark.parametrize("query", ["", "?by=time"])
def test_no_axis_has_a_tick_twice(browser: Any, busy: Service, query: str) -> None:
    tab = Tab(browser, busy)
    tab.page.add_init_script(WRITTEN)
    for name in ("default", "mix"):
        page = tab.open(f"/#/models/{name}{query}")
        page.locator(".facts").wait_for()
        eventually(lambda: len(page.evaluate("ticks()")) >= 5, "the charts")  # noqa: B023
        for texts in page.evaluate("ticks()"):
            labels = [(align, text) for align, text in texts if text]
            assert len(set(labels)) == len(labels)
    tab.close()


def test_ticks_are_as_far_apart_as_it_takes_to_read_differently(tab: Tab) -> None:
    page = tab.open("/")
    rounds = """async ([low, high, least, format]) => {
        const all = await import("/dashboard/format.js");
        return all.rounds(low, high, least, all[format]).map(all[format]);
    }"""
    for asked, expected in {
        (0, 2.2, 0.2, "count"): ["0", "1", "2"],
        (0, 1, 0.25, "percent"): ["0.0 %", "50.0 %", "100.0 %"],
        (0.69311, 0.69342, 0.00005, "loss"): ["0.6932", "0.6933", "0.6934"],
        (0.2, 0.21, 0.5, "loss"): [],
        (0, 45_312, 10_000, "count"): ["0", "10,000", "20,000", "30,000", "40,000"],
        (0, 3e7, 1e7, "number"): ["0", "1e7", "2e7", "3e7"],
        (15_190, 15_225, 10, "number"): ["15,190", "15,200", "15,210", "15,220"],
    }.items():
        assert page.evaluate(rounds, list(asked)) == expected
    assert page.evaluate("import('/dashboard/format.js').then(all => all.loss(15220.47))") == "15220"


def test_the_same_hour_of_several_days_is_told_with_the_day(tab: Tab) -> None:
    page = tab.open("/")
    ticks = """async ([hours, step]) => {
        const { ticks } = await import("/dashboard/format.js");
        const noon = new Date(2026, 0, 1, 12).getTime() / 1000;
        const times = Array.from({ length: hours / step + 1 }, (_, k) => noon + 3600 * k * step);
        return ticks(times, 3600 * step, hours > 24);
    }"""
    assert page.evaluate(ticks, [24, 6]) == ["", "18:00", "2 Jan", "06:00", "12:00"]
    assert page.evaluate(ticks, [36, 12]) == ["1 Jan 12:00", "2 Jan", "2 Jan 12:00", "3 Jan"]
    assert page.evaluate(ticks, [48, 24]) == ["1 Jan", "2 Jan", "3 Jan"]


def test_the_calibration_leaves_out_tenths_of_few_events(browser: Any, start: Start) -> None:
    service = start()
    assert service.model().learn([{"x": x, "y": y} for x, y in stream("Phishing", 100)]).status_code == 200
    buckets = service.model().state()["progressive"]["calibration"]["total"]
    counts = [bucket["count"] for bucket in buckets if bucket["count"]]
    assert min(counts) < 20 < max(counts)
    tab = Tab(browser, service)
    page = tab.open("/#/models/default")
    plot = page.get_by_role("img", name=re.compile("^Calibration"))
    sync_api.expect(plot).to_have_attribute("aria-label", re.compile("predicted"))
    drawn = [number(part.split(" of ")[1]) for part in plot.get_attribute("aria-label").split("; ")]
    assert drawn == [count for count in counts if count >= 20]
    tab.close()


def test_the_shares_of_the_groups_sum_to_100_percent(tab: Tab) -> None:
    page = tab.open("/#/models/mix?by=time")
    shares = page.locator("figure", has_text="Which learners carry the weight")
    shares.locator("summary").click()
    rows = shares.locator("tbody tr")
    sync_api.expect(rows.first).to_contain_text("%")
    for row in rows.all():
        told = [float(cell.inner_text().removesuffix(" %")) for cell in row.locator("td").all()]
        assert len(told) > 2
        assert sum(told) == pytest.approx(100, abs=1e-9)


def test_auto_shows_the_learners_that_carry_the_weight(tab: Tab) -> None:
    page = tab.open("/#/models/mix")
    tab.wait_for("table.bars", re.compile(r"(sgd|adagrad|ftrl|kalman|vw) .* %"))
    sync_api.expect(page.locator("figure [role=img]").last).to_have_attribute("aria-label", re.compile(r"now\. .*%"))
    assert page.get_by_role("button", name="Check against river").count() == 0


def test_a_model_that_learned_nothing_shows_how_to_begin(tab: Tab) -> None:
    page = tab.open("/#/models/empty")
    tab.wait_for("pre", "/models/empty/learn")
    sync_api.expect(page.locator("figure").first).to_be_hidden()


def test_a_model_that_is_not_there_is_said_to_be_unknown(tab: Tab) -> None:
    tab.page.goto("/#/models/nosuch")
    tab.wait_for("#notice", "There is no model 'nosuch'")
    tab.page.get_by_role("link", name="All models").click()
    tab.wait_for("#connection", "live")
    tab.forgive("404")


def test_a_feature_named_like_a_script_is_text(tab: Tab) -> None:
    page = tab.open("/#/models/odd")
    tab.wait_for("table.bars", SCRIPT)
    tab.open("/#/try?model=odd")
    page.get_by_role("button", name="Predict and explain").click()
    tab.wait_for(".answer table", SCRIPT)


# -- what it does


def test_a_prediction_is_explained(tab: Tab, busy: Service) -> None:
    page = tab.open("/#/try?model=odd")
    page.locator("table.rows input").nth(1).fill("5")
    page.get_by_role("button", name="Predict and explain").click()
    x = {row.locator("input").first.input_value(): 1.0 for row in page.locator("table.rows tbody tr").all()}
    x[next(iter(x))] = 5.0
    said = busy.http.post("/models/odd/explain", json={"x": x}).json()
    tab.wait_for(".answer .result", f"{100 * said['p']:.1f} %")
    largest = max(said["features"], key=lambda feature: abs(feature["contribution"]))
    row = page.locator(".answer tbody tr").first
    assert row.locator("th").inner_text() == largest["name"]
    assert float(row.locator("td").nth(2).inner_text()) == pytest.approx(largest["contribution"], rel=1e-3)


def test_what_is_wrong_with_json_is_said(tab: Tab) -> None:
    page = tab.open("/#/try?model=odd")
    page.get_by_text("JSON", exact=True).click()
    page.locator("#x").fill('{"age": }')
    page.get_by_role("button", name="Predict and explain").click()
    tab.wait_for(".answer", "Malformed JSON")
    page.locator("#x").fill('{"age": []}')
    page.get_by_role("button", name="Predict and explain").click()
    tab.wait_for(".answer", "age")
    tab.forgive("422")


def test_an_event_is_learned_once(tab: Tab, busy: Service) -> None:
    page = tab.open("/#/try?model=odd")
    seq = busy.get("/models/odd")["seq"]
    page.locator("#event").fill('{"x": {"age": 2, "country": "FR"}, "y": 0, "id": "pasted"}')
    page.get_by_role("button", name="Learn this event").click()
    tab.wait_for("section:last-child .answer", f"Learned as event {seq + 1}")
    page.get_by_role("button", name="Learn this event").click()
    tab.wait_for("section:last-child .answer", f"Already learned as event {seq + 1}")
    assert busy.get("/models/odd")["seq"] == seq + 1


def test_the_cross_check_says_in_words_what_came_out(tab: Tab) -> None:
    page = tab.open("/#/models/default")
    page.get_by_role("button", name="Check against river").click()
    tab.wait_for(".finding strong", re.compile(r"Equal to the last bit on [\d,]+ events"))
    tab.wait_for("main", "A replay of the log gives these weights, bit for bit.")


def test_a_token_is_asked_for_sent_and_kept_in_the_tab(browser: Any, start: Start) -> None:
    """With one that may only predict, looking works and learning says why not; taken back, another is asked for."""
    admin = "a-token-for-the-page-0123456789abcdef"
    service = start(env={"LOGSTEP_TOKEN": admin})
    service.http.headers["authorization"] = f"Bearer {admin}"
    assert service.model().learn({"x": {"age": 3.0}, "y": 1}).status_code == 200
    token, made = tokens.create(service.folder, ["predict"], None, None)
    known = {"authorization": f"Bearer {token}"}
    eventually(lambda: service.http.get("/models", headers=known).status_code == 200, "the token")
    tab = Tab(browser, service)
    tab.page.goto("/")
    enter = tab.page.get_by_role("button", name="Enter a token")

    def use(text: str) -> None:
        enter.click()
        tab.page.get_by_role("textbox", name="Token").fill(text)
        tab.page.get_by_role("button", name="Use token").click()

    tab.wait_for("#notice", "The service needs a token.")
    use("none-of-its-tokens-0123456789abcdefg")
    tab.wait_for("#notice", "The service does not know this token.")
    use(token)
    tab.wait_for("#connection", "live")
    assert tab.page.evaluate("[JSON.stringify(localStorage), document.cookie]") == ["{}", ""]
    assert [url for url in tab.asked if token in url] == []

    tab.open("/#/try?model=default")
    tab.page.locator("#event").fill('{"x": {"age": 2}, "y": 0}')
    tab.page.get_by_role("button", name="Learn this event").click()
    tab.wait_for("section:last-child .answer", "This token may only predict, but this request needs learn.")

    tab.open("/#/models/default")
    tokens.revoke(service.folder, made.id)

    def ended() -> bool:
        """Whether its stream did, at the first message after the service has seen that the token is gone."""
        service.http.post("/learn", json={"x": {"age": 1}, "y": 0}).raise_for_status()
        return bool(enter.is_visible())

    eventually(ended, "another token to be asked for")
    use(admin)
    tab.wait_for("#connection", "live")
    tab.open("/#/try?model=default")
    tab.page.locator("#event").fill('{"x": {"age": 2}, "y": 0}')
    tab.page.get_by_role("button", name="Learn this event").click()
    tab.wait_for("section:last-child .answer", "Learned as event")
    tab.forgive("401", "403")
    tab.close()


def test_a_model_that_its_breaker_has_stopped_says_so(tab: Tab, busy: Service) -> None:
    model = busy.model("stopped")
    assert model.create({"breaker": {"events": 10, "log_loss": 0.5}}).status_code == 201
    assert model.learn([{"x": {"age": 1}, "y": i % 2} for i in range(20)]).status_code == 200
    tab.open("/#/models/stopped")
    tab.wait_for(".finding", "The breaker stopped this model at seq")
    assert busy.http.post("/models/stopped/resume").status_code == 200


def test_it_comes_back_after_a_kill_and_shows_the_past(browser: Any, start: Start) -> None:
    service = start()
    events = [{"x": x, "y": y} for x, y in stream("Bananas", 400)]
    assert service.model().learn(events).status_code == 200
    eventually(lambda: told(service, "default"), "a point of the series")
    tab = Tab(browser, service)
    page = tab.open("/#/models/default")
    tab.wait_for(".tile", "400 events")
    service.kill()
    tab.wait_for("#notice", "The service does not answer.")
    tab.wait_for("#connection", "reconnecting")
    again = start("--port", str(service.port), folder=service.folder)
    tab.wait_for("#connection", "live")
    sync_api.expect(page.locator("#notice")).to_be_empty()
    sync_api.expect(page.locator("figure [role=img]").first).to_have_attribute(
        "aria-label", re.compile(rf"last 1,000: .*{told(again, 'default')[0]:.4f}")
    )
    again.model().learn({"x": {"1": 0.5}, "y": 1})
    tab.wait_for(".tile", "401 events")
    tab.forgive("ERR_CONNECTION_REFUSED", "ERR_INCOMPLETE_CHUNKED_ENCODING", "ERR_CONNECTION_RESET", "503")
    tab.close()


def test_the_documentation_of_the_api_is_drawn(tab: Tab) -> None:
    tab.page.goto("/docs")
    tab.wait_for("#docs", "/livez")
    paths = httpx.get(f"{tab.origin}/openapi.json", trust_env=False).json()["paths"]
    assert tab.page.locator(".opblock").count() == sum(map(len, paths.values()))


# -- for everybody

PLACES = ["/", "/#/models/default", "/#/models/mix", "/#/models/empty", "/#/try?model=odd"]


@pytest.mark.parametrize(("size", "colours"), [(PHONE, "light"), (DESK, "dark")])
def test_axe_finds_nothing_serious_and_nothing_is_wider_than_the_screen(
    browser: Any, busy: Service, size: tuple[int, int], colours: str
) -> None:
    tab = Tab(browser, busy, size, color_scheme=colours, bypass_csp=True)  # axe itself is run inline
    for place in PLACES:
        page = tab.open(place)
        page.locator("main h1").wait_for()
        if "models/" in place:
            page.locator(".facts").wait_for()
        found = axe.Axe().run(page).response["violations"]
        serious = [(v["id"], v["nodes"][0]["html"]) for v in found if v["impact"] in ("serious", "critical")]
        assert serious == [], place
        assert page.evaluate("document.documentElement.scrollWidth") <= size[0], place
    tab.close()


@pytest.mark.parametrize("size", [PHONE, DESK])
def test_the_longest_numbers_fit_in_their_card(browser: Any, busy: Service, size: tuple[int, int]) -> None:
    """Those of the weights that moved, three in a row; they are set and looked at before the page draws others."""
    tab = Tab(browser, busy, size)
    page = tab.open("/#/models/default")
    moved = page.get_by_role("table", name="The weights that moved most")
    moved.wait_for()
    fill_and_look = """(table) => {
        for (const cell of table.querySelectorAll("td.num")) cell.textContent = "\u22128.888e\u2212888";
        const card = table.closest(".card");
        return [table.querySelectorAll("td.num").length, card.scrollWidth - card.clientWidth];
    }"""
    cells, too_wide = moved.evaluate(fill_and_look)
    assert cells >= 3
    assert too_wide == 0
    tab.close()


def test_the_keyboard_is_enough(tab: Tab) -> None:
    page = tab.open("/#/models/default")
    page.locator(".tile").first.wait_for()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"
    page.get_by_label("15 min").focus()
    page.keyboard.press("ArrowRight")
    assert page.url.endswith("?range=1h")
    sync_api.expect(page.get_by_label("1 h", exact=True)).to_be_checked()


def test_the_chosen_colours_stay(tab: Tab) -> None:
    page = tab.open("/")
    colour = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(colour)
    page.get_by_label("Colours").select_option("dark")
    dark = page.evaluate(colour)
    assert dark != light
    page.reload()
    assert page.evaluate(colour) == dark
