// One model: the numbers now, and how they came about.

import { ask, follow, modelPath } from "./api.js";
import { Calibration, SharesChart, TimeChart } from "./charts.js";
import { filler, h, segments } from "./dom.js";
import { count, duration, loss, milliseconds, percent, rate } from "./format.js";
import { firstSteps } from "./overview.js";
import { crosscheck, facts, findings, findingsList, learnerBars, movedBars, tiles, weightBars } from "./panels.js";

const RANGES = {
  "15m": { label: "15 min", seconds: 900, every: 3 },
  "1h": { label: "1 h", seconds: 3600, every: 5 },
  "1d": { label: "1 day", seconds: 86_400, every: 60 },
  "30d": { label: "1 month", seconds: 30 * 86_400, every: 300 },
};
const CHOICES = Object.entries(RANGES).map(([key, { label }]) => [key, label]);
const SLOWLY = 1000; // ms between two drawings of tables and bars, which nobody can read faster

/** Show the model in `main`; returns what ends it. */
export function model(main, parameters, link) {
  const name = parameters.get("model");
  let range = parameters.get("range") in RANGES ? parameters.get("range") : "15m";
  const path = modelPath(name);
  let view = null; // what is shown, once the model's spec is known
  let again = null; // when the series is asked for again
  let ended = false;

  main.replaceChildren(h("h1", { tabindex: "-1" }, name), h("p", { class: "note" }, "Loading …"));

  /** After the connection has come (back): everything anew, since the service may be another process. */
  async function begin() {
    try {
      const described = await ask("GET", path);
      if (ended) return;
      view ??= build(main, name, described, segments("Time range", CHOICES, range, choose));
      view.described(described);
      await series();
    } catch (problem) {
      if (!ended) link(problem);
    }
  }

  async function series() {
    clearTimeout(again);
    const to = Date.now() / 1000;
    try {
      const past = await ask("GET", `${path}/series?from=${to - RANGES[range].seconds}&to=${to}`);
      if (!ended) view.past(past);
    } finally {
      if (!ended) again = setTimeout(() => series().catch(() => {}), RANGES[range].every * 1000);
    }
  }

  function choose(other) {
    range = other;
    history.replaceState(null, "", `#/models/${encodeURIComponent(name)}?range=${range}`);
    series().catch(link);
  }

  const stop = follow(path + "/stream", {
    onLink(problem) {
      link(problem);
      if (!problem) begin();
    },
    onNow(now) {
      link(null, now);
      view?.now(now);
    },
  });
  return () => {
    ended = true;
    clearTimeout(again);
    stop();
    view?.destroy();
  };
}

/** Lay the page out. Returns {now(event), past(series), described(model), destroy()}. */
function build(main, name, { spec, progressive }, ranges) {
  const auto = spec.rule === "auto";
  const part = (tag, attributes) => h(tag, attributes);
  const head = part("dl", { class: "tiles" });
  const check = part("div", { class: "findings" });
  const first = part("div", {});
  const weights = part("div", {});
  const moved = part("div", {});
  const about = part("div", {});
  const charts = chartsOf(auto, progressive);

  main.replaceChildren(
    h("div", { class: "heading" }, h("h1", { tabindex: "-1" }, name), h("p", { class: "lead" }, h("span", { class: "rule" }, spec.rule)), ranges),
    first,
    head,
    check,
    h(
      "div",
      { class: "grid" },
      charts.loss.element,
      charts.calibration.element,
      charts.rates.element,
      charts.accuracy.element,
      charts.served.element,
      charts.waiting.element,
      charts.delay.element,
      charts.commit.element,
      charts.learners?.element,
      h("section", { class: "card" }, h("h3", {}, auto ? "Learners that carry the weight now" : "Largest weights"), weights),
      auto ? "" : h("section", { class: "card" }, h("h3", {}, "Moved most in the last minute"), moved),
      auto ? "" : crosscheck(name),
      h("section", { class: "card" }, h("h3", {}, "Spec and state"), about),
    ),
  );

  const show = {
    tiles: filler(head, tiles),
    findings: filler(check, findingsList),
    first: filler(first, (wanted) => wanted && firstSteps(name)),
    weights: filler(weights, auto ? learnerBars : weightBars),
    moved: filler(moved, movedBars),
    about: filler(about, facts),
  };
  let last = 0;
  return {
    now(event) {
      show.first(!event.seq);
      if (event.t * 1000 - last < SLOWLY) return;
      last = event.t * 1000;
      show.tiles(event);
      show.findings(findings(event));
      show.weights((auto ? event.learners : event.weights) ?? []);
      show.moved(event.moved ?? []);
      charts.calibration.update(event.calibration);
    },
    past(series) {
      for (const chart of Object.values(charts)) if (chart !== charts.calibration) chart?.update(series);
    },
    described: show.about,
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
        { key: "entropy", label: "base rate's entropy", tone: "ink-2", dash: true },
      ],
    }),
    calibration: new Calibration({ title: "Calibration", note: "How often label 1 came, by what was predicted", last: N }),
    rates: new TimeChart({
      title: "Learned and predicted",
      format: rate,
      lines: [
        { key: "learned", label: "learned", tone: "accent", area: true },
        { key: "predicted", label: "predicted", tone: "second" },
      ],
    }),
    accuracy: new TimeChart({ title: `Accuracy`, format: percent, lines: [{ key: "accuracy_window", label: N, tone: "accent" }] }),
    served: new TimeChart({
      title: "Log loss, as served and before the step",
      note: "As served: of predictions with an id, by the model as it was then",
      format: loss,
      lines: [
        { key: "served_loss", label: "as served", tone: "accent" },
        { key: "loss", label: "before the step", tone: "second" },
      ],
    }),
    waiting: new TimeChart({ title: "Predictions that wait for a label", format: count, lines: [{ key: "waiting", label: "waiting", tone: "accent", area: true }] }),
    delay: new TimeChart({ title: "How late labels came", format: duration, lines: [{ key: "delay_s", label: "mean delay", tone: "accent" }] }),
    commit: new TimeChart({
      title: "Commit to disk",
      note: "Of the whole service: all models share a commit",
      format: milliseconds,
      lines: [
        { key: "commit_p50_ms", label: "p50", tone: "accent" },
        { key: "commit_p99_ms", label: "p99", tone: "second" },
      ],
    }),
    ...(auto ? { learners: new SharesChart({ title: "Learners that carried the weight" }) } : {}),
  };
}
