// One model: its numbers now, its learning curve, and their history.

import { Problem, ask, follow, modelPath } from "./api.js";
import { Calibration, LineChart, SharesChart } from "./charts.js";
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
const ALONG = [
  ["events", "by events"],
  ["time", "by time"],
];
const CURVE = 3000; // ms between two requests for the curve
const SLOWLY = 500; // ms between two drawings of numbers and bars; nobody can read them faster

/** Show the model in `main`; returns a function that ends it. */
export function model(main, parameters, link) {
  const name = parameters.get("model");
  let range = parameters.get("range") in RANGES ? parameters.get("range") : "15m";
  let along = parameters.get("by") === "time" ? "time" : "events";
  const path = modelPath(name);
  let view = null; // the layout, from the stream's first message on
  let again = null; // timer of the next request for the series
  let since = 0; // nothing in the range happened before this time, so the axis begins here
  let seq = 0;
  let drawn = null; // the seq at which the curve was asked for
  let ended = false;

  main.replaceChildren(h("div", { class: "heading" }, h("h1", { tabindex: "-1" }, name)));

  const show = throttled(SLOWLY, (now) => {
    if (!ended) view.now(now);
  });

  /** Ask for the curve if the model has learned since. If this fails, the stream fails too and shows the problem. */
  const refreshCurve = throttled(CURVE, async (seq) => {
    if (ended || along === "time" || seq === drawn) return;
    drawn = seq;
    try {
      const curve = await ask("GET", `${path}/curve`);
      if (!ended) view.curve(curve);
    } catch (problem) {
      if (!(problem instanceof Problem)) throw problem;
    }
  });

  /** Ask for what the stream leaves out, after each connection: the service may have restarted. */
  function askForMore() {
    drawn = null;
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
    remember();
    refresh();
  }

  function chooseAlong(other) {
    along = other;
    drawn = null;
    remember();
    view.along(along);
    refreshCurve(seq);
  }

  function remember() {
    const query = `range=${range}${along === "time" ? "&by=time" : ""}`;
    history.replaceState(null, "", `#/models/${encodeURIComponent(name)}?${query}`);
  }

  const stop = follow(`${path}/stream`, {
    onLink(problem) {
      link(problem);
      if (!problem && view) askForMore();
    },
    onNow(now) {
      link(null, now);
      if (!view) {
        const choices = segments("Along which the log loss is drawn", ALONG, along, chooseAlong);
        view = build(main, now, segments("Time range", CHOICES, range, choose), choices);
        view.along(along);
        askForMore();
      }
      seq = now.seq;
      show(now);
      refreshCurve(seq);
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

/**
 * Lay the page out. Returns {now(event), past(series), curve(curve), along(choice), described(model),
 * undescribed(problem), destroy()}.
 */
function build(main, { model: name, rule, progressive }, ranges, choices) {
  const auto = rule === "auto";
  const head = h("dl", { class: "tiles" });
  const check = h("div", { class: "findings" });
  const [first, weights, moved, about] = [0, 1, 2, 3].map(() => h("div"));
  const movedTitle = h("h3");
  const charts = chartsOf(auto, progressive, choices);
  const learning = [charts.loss, charts.accuracy]; // drawn by events or over time
  const latest = { events: null, time: null }; // the curve and the series
  let along;

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
      latest.time = series;
      for (const chart of Object.values(charts))
        if (chart !== charts.calibration && !(along === "events" && learning.includes(chart))) chart.update(series);
    },
    curve(curve) {
      latest.events = curve;
      if (along === "events") for (const chart of learning) chart.update(curve);
    },
    along(choice) {
      along = choice;
      if (latest[along]) for (const chart of learning) chart.update(latest[along]);
    },
    described: show.about,
    undescribed: (problem) => about.replaceChildren(h("p", { class: "note" }, problem.detail)),
    destroy: () => Object.values(charts).forEach((chart) => chart?.destroy()),
  };
}

function chartsOf(auto, { window: last }, choices) {
  const recent = (window = Math.max(last.events, 1000)) => `last ${count(window)}`;
  const N = recent();
  return {
    loss: new LineChart({
      title: "Log loss, before each step",
      format: loss,
      wide: true,
      controls: choices,
      marks: true,
      lines: (window) => [
        { key: "loss_window", label: recent(window), tone: "accent" },
        { key: "loss_total", label: "total", tone: "second" },
        { key: "base_rate_loss_window", label: `guessing, ${recent(window)}`, tone: "ink-2", dash: true },
      ],
    }),
    calibration: new Calibration({
      title: "Calibration",
      note: "How often label 1 came, by tenth of the predictions; tenths of fewer than 20 events are left out",
      last: N,
    }),
    rates: new LineChart({
      title: "Learned and predicted",
      passing: true,
      format: rate,
      lines: [
        { key: "learned", label: "learned", tone: "accent", area: true },
        { key: "predicted", label: "predicted", tone: "second" },
      ],
    }),
    accuracy: new LineChart({
      title: "Accuracy",
      format: percent,
      lines: (window) => [{ key: "accuracy_window", label: recent(window), tone: "accent" }],
    }),
    served: new LineChart({
      title: "Log loss, served and before the step",
      passing: true,
      note: "Served: of the predictions that clients got",
      format: loss,
      lines: [
        { key: "served_loss", label: "served", tone: "accent" },
        { key: "loss", label: "before the step", tone: "second" },
      ],
    }),
    waiting: new LineChart({
      title: "Predictions waiting for a label",
      format: count,
      lines: [{ key: "waiting", label: "waiting", tone: "accent", area: true }],
    }),
    delay: new LineChart({
      title: "How late labels came",
      passing: true,
      format: duration,
      lines: [{ key: "delay_s", label: "mean delay", tone: "accent" }],
    }),
    commit: new LineChart({
      title: "Commit to disk",
      passing: true,
      note: "Of the whole service: all models share commits",
      format: milliseconds,
      lines: [
        { key: "commit_p50_ms", label: "p50", tone: "accent" },
        { key: "commit_p99_ms", label: "p99", tone: "second" },
      ],
    }),
    ...(auto ? { shares: new SharesChart({ title: "Which learners carry the weight" }) } : {}),
  };
}
