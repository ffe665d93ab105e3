// One model: its numbers now, and their history.

import { Problem, ask, follow, modelPath } from "./api.js";
import { Calibration, SharesChart, TimeChart } from "./charts.js";
import { filler, h, say, segments, throttled } from "./dom.js";
import { count, duration, loss, milliseconds, percent, rate } from "./format.js";
import { firstSteps } from "./overview.js";
import {
  crosscheck,
  facts,
  findings,
  findingsList,
  joins,
  learnerBars,
  movedBars,
  tiles,
  weightBars,
} from "./panels.js";

const RANGES = {
  "15m": { label: "15 min", seconds: 900, every: 3 },
  "1h": { label: "1 h", seconds: 3600, every: 5 },
  "1d": { label: "1 day", seconds: 86_400, every: 60 },
  "30d": { label: "1 month", seconds: 30 * 86_400, every: 300 },
};
const CHOICES = Object.entries(RANGES).map(([key, { label }]) => [key, label]);
const SHORTEST = 60; // seconds, the shortest time axis
const SLOWLY = 500; // ms between two drawings of numbers and bars; nobody can read them faster

/** Show the model in `main`; returns a function that ends it. */
export function model(main, parameters, link) {
  const name = parameters.get("model");
  let range = parameters.get("range") in RANGES ? parameters.get("range") : "15m";
  const path = modelPath(name);
  let view = null; // the layout, from the stream's first message on
  let again = null; // timer of the next request for the series
  let since = 0; // nothing in the range happened before this time, so the axis begins here
  let ended = false;

  main.replaceChildren(h("div", { class: "heading" }, h("h1", { tabindex: "-1" }, name)));

  const show = throttled(SLOWLY, (now) => {
    if (!ended) view.now(now);
  });

  /** Ask for what the stream leaves out, after each connection: the service may have restarted. */
  function askForMore() {
    refresh();
    ask("GET", path).then(view.described, view.undescribed);
  }

  /** Ask for the series, again and again. If this fails, the stream fails too and shows the problem. */
  async function refresh() {
    clearTimeout(again);
    const asked = range;
    try {
      const past = await series(asked);
      if (!ended && asked === range) view.past(past);
    } catch (problem) {
      if (!(problem instanceof Problem)) throw problem;
    } finally {
      if (!ended && asked === range) again = setTimeout(refresh, RANGES[range].every * 1000);
    }
  }

  async function series(asked) {
    const to = Date.now() / 1000;
    const from = Math.max(to - RANGES[asked].seconds, since);
    const past = await ask("GET", `${path}/series?from=${from}&to=${to}`);
    const begins = Math.max(from, Math.min(beginning(past), to - SHORTEST));
    if (asked !== range || begins - from < 0.2 * (to - from)) return past;
    since = begins;
    return series(asked); // in finer steps
  }

  function choose(other) {
    range = other;
    since = 0;
    history.replaceState(null, "", `#/models/${encodeURIComponent(name)}?range=${range}`);
    refresh();
  }

  const stop = follow(`${path}/stream`, {
    onLink(problem) {
      link(problem);
      if (!problem && view) askForMore();
    },
    onNow(now) {
      link(null, now);
      if (!view) {
        view = build(main, now, segments("Time range", CHOICES, range, choose));
        askForMore();
      }
      show(now);
    },
  });
  return () => {
    ended = true;
    clearTimeout(again);
    stop();
    view?.destroy();
  };
}

/** When a series begins to have values, in seconds since 1970. */
function beginning({ t, seq, step, to }) {
  const first = seq.findIndex((value) => value != null);
  return first < 0 ? to : t[first] - step;
}

/** Lay the page out. Returns {now(event), past(series), described(model), undescribed(problem), destroy()}. */
function build(main, { model: name, rule, progressive }, ranges) {
  const auto = rule === "auto";
  const head = h("dl", { class: "tiles" });
  const check = h("div", { class: "findings" });
  const [first, weights, moved, about] = [0, 1, 2, 3].map(() => h("div"));
  const movedTitle = h("h3");
  const charts = chartsOf(auto, progressive);

  const facing = h("section", { class: "card" }, h("h3", {}, "Spec and state"), about);
  const learned = [
    head,
    check,
    h(
      "div",
      { class: "grid" },
      Object.values(charts).map((chart) => chart.element),
      h(
        "section",
        { class: "card" },
        h("h3", {}, auto ? "Learners with the largest shares" : "Largest weights"),
        weights,
      ),
      auto ? "" : h("div", { class: "stack" }, crosscheck(name), h("section", { class: "card" }, movedTitle, moved)),
      facing,
    ),
  ];
  main.replaceChildren(
    h(
      "div",
      { class: "heading" },
      h("h1", { tabindex: "-1" }, name),
      h("p", { class: "lead" }, h("span", { class: "rule" }, rule)),
      ranges,
    ),
    first,
    ...learned,
  );
  /** A model that has learned nothing shows only its spec and state. */
  const showEmpty = (empty) => {
    for (const element of [ranges, head, check, ...learned[2].children]) element.hidden = empty && element !== facing;
  };

  const show = {
    tiles: filler(head, tiles),
    findings: filler(check, findingsList),
    first: filler(first, (wanted) => wanted && firstSteps(name)),
    weights: filler(weights, auto ? learnerBars : weightBars),
    moved: filler(moved, movedBars),
    about: filler(about, facts),
  };
  return {
    now(event) {
      show.first(!event.seq);
      showEmpty(!event.seq);
      show.tiles(event);
      show.findings(findings(event));
      show.weights((auto ? event.learners : event.weights) ?? []);
      show.moved(event.moved ?? []);
      say(movedTitle, event.moved_s > 1 ? `Moved most in the last ${duration(event.moved_s)}` : "Moved most recently");
      const late = joins(event);
      for (const chart of [charts.served, charts.waiting, charts.delay]) chart.element.hidden = !late || !event.seq;
      charts.calibration.update(event.calibration);
    },
    past(series) {
      for (const chart of Object.values(charts)) if (chart !== charts.calibration) chart?.update(series);
    },
    described: show.about,
    undescribed: (problem) => about.replaceChildren(h("p", { class: "note" }, problem.detail)),
    destroy: () => Object.values(charts).forEach((chart) => chart?.destroy()),
  };
}

function chartsOf(auto, { window: last }) {
  const N = `last ${count(Math.max(last.events, 1000))}`;
  return {
    loss: new TimeChart({
      title: "Log loss, before each step",
      format: loss,
      wide: true,
      marks: true,
      lines: [
        { key: "loss_window", label: N, tone: "accent" },
        { key: "loss_total", label: "total", tone: "second" },
        { key: "base_rate_loss_window", label: `guessing, ${N}`, tone: "ink-2", dash: true },
      ],
    }),
    calibration: new Calibration({
      title: "Calibration",
      note: "How often label 1 came, by predicted probability",
      last: N,
    }),
    rates: new TimeChart({
      title: "Learned and predicted",
      passing: true,
      format: rate,
      lines: [
        { key: "learned", label: "learned", tone: "accent", area: true },
        { key: "predicted", label: "predicted", tone: "second" },
      ],
    }),
    accuracy: new TimeChart({
      title: "Accuracy",
      format: percent,
      lines: [{ key: "accuracy_window", label: N, tone: "accent" }],
    }),
    served: new TimeChart({
      title: "Log loss, served and before the step",
      passing: true,
      note: "Served: of the predictions that clients got",
      format: loss,
      lines: [
        { key: "served_loss", label: "served", tone: "accent" },
        { key: "loss", label: "before the step", tone: "second" },
      ],
    }),
    waiting: new TimeChart({
      title: "Predictions waiting for a label",
      format: count,
      lines: [{ key: "waiting", label: "waiting", tone: "accent", area: true }],
    }),
    delay: new TimeChart({
      title: "How late labels came",
      passing: true,
      format: duration,
      lines: [{ key: "delay_s", label: "mean delay", tone: "accent" }],
    }),
    commit: new TimeChart({
      title: "Commit to disk",
      passing: true,
      note: "Of the whole service: all models share commits",
      format: milliseconds,
      lines: [
        { key: "commit_p50_ms", label: "p50", tone: "accent" },
        { key: "commit_p99_ms", label: "p99", tone: "second" },
      ],
    }),
    ...(auto ? { learners: new SharesChart({ title: "Shares of the learners" }) } : {}),
  };
}
