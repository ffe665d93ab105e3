// The parts of a model's page that are not charts.

import { ask, modelPath } from "./api.js";
import { h } from "./dom.js";
import { count, duration, loss, milliseconds, number, percent, rate, signed } from "./format.js";

/** The most important numbers. */
export function tiles(now) {
  const { window: last, total } = now.progressive;
  return [
    tile("Learned", rate(now.learned_s), `${count(now.seq)} events`),
    tile(
      `Log loss, last ${count(last.events)}`,
      loss(last.log_loss),
      comparedWithGuessing(last),
      last.events < total.events && `total\u00a0${loss(total.log_loss)}, guessing\u00a0${loss(total.base_rate_log_loss)}`,
    ),
    tile(
      `Accuracy, last ${count(last.events)}`,
      percent(last.accuracy),
      `ROC AUC ${last.roc_auc == null ? "–" : last.roc_auc.toFixed(3)}`,
    ),
    tile("Predicted", rate(now.predicted_s), `${count(now.features)} features known`),
    joins(now)
      ? tile("Waiting for labels", count(now.join.waiting), `mean delay ${duration(now.join.delay_s.mean)}`)
      : tile("Waiting for labels", "–", "no prediction had an id"),
    tile("Commit, p50", milliseconds(now.commit.p50_ms), `p99 ${milliseconds(now.commit.p99_ms)}`),
  ];
}

/** Whether any prediction had an id, so that its label can come later. */
export function joins({ join }) {
  return join.waiting + join.joined + join.expired + join.dropped + join.not_kept > 0;
}

function tile(label, value, ...more) {
  const small = more.filter(Boolean).map((text) => h("small", {}, text));
  return h("div", { class: "tile" }, h("dt", {}, label), h("dd", {}, h("strong", {}, value), small));
}

/** Guessing always predicts the share of label 1; a model that does no better is useless. */
function comparedWithGuessing({ log_loss, base_rate_log_loss: guessing }) {
  const said = `guessing\u00a0${loss(guessing)}`;
  if (log_loss == null || !guessing) return said;
  const ratio = log_loss / guessing;
  if (ratio > 2) return `${said}, ${number(ratio)}\u00a0times that`;
  return `${said}, ${percent(Math.abs(1 - ratio))} ${ratio <= 1 ? "below" : "above"}`;
}

/** Problems of a model, worst first: [tone, text]. Empty if there are none. */
export function findings(now) {
  const found = [];
  if (now.state !== "ready") found.push(["warn", `The service is ${now.state}.`]);
  if (now.breaker?.stopped_at != null && now.seq >= now.breaker.stopped_at) {
    found.push([
      "bad",
      `The breaker stopped this model at seq ${count(now.breaker.stopped_at)}: its log loss passed the limit in its spec. It predicts and learns nothing until POST /models/${now.model}/resume.`,
    ]);
  }
  if (now.not_taken) {
    found.push([
      "warn",
      `${count(now.not_taken)} steps were not taken: they would have left a weight that is not finite. Look for extreme values, or lower the learning rate.`,
    ]);
  }
  if (now.left_out) {
    found.push([
      "warn",
      `${count(now.left_out)} features were left out of events: the model is full (max_features). If one is an id or free text, do not send it, or use a model with hash_bits.`,
    ]);
  }
  if (now.worse_than_guessing) found.push(["warn", `${now.worse_than_guessing.advice}.`]);
  if (now.weights?.length === 0 && now.rule !== "auto" && now.seq >= 100) {
    found.push([
      "warn",
      `Every weight is 0 after ${count(now.seq)} events, so every prediction is the same. Causes: a large l1, or scale: standard with features whose values never vary.`,
    ]);
  }
  if (now.join.not_kept) {
    found.push([
      "warn",
      `${count(now.join.not_kept)} predictions were served but not kept, because too many waited (join.max_waiting). Their labels will get 404.`,
    ]);
  }
  if (now.join.dropped)
    found.push(["note", `${count(now.join.dropped)} predictions were dropped: no label came in time (join.keep).`]);
  if (now.join.expired)
    found.push([
      "note",
      `${count(now.join.expired)} predictions were learned as 0: no label came in time (join.keep).`,
    ]);
  return found;
}

export function findingsList(found) {
  if (!found.length) return h("p", { class: "finding good" }, "Nothing looks wrong.");
  return h(
    "ul",
    { class: "plain" },
    found.map(([tone, text]) => h("li", { class: `finding ${tone}` }, text)),
  );
}

/** Names with bars: [{name, value, more}]; `more` are cells before the bar. Negative values draw to the left of a line. */
export function bars(caption, columns, rows) {
  const largest = Math.max(...rows.map((row) => Math.abs(row.value)));
  const sides = rows.some((row) => row.value < 0) ? "both" : "one";
  return h(
    "table",
    { class: `bars ${sides}` },
    h("caption", { class: "hidden" }, caption),
    h(
      "thead",
      {},
      h(
        "tr",
        {},
        columns.map((name, i) => h("th", { scope: "col", class: i ? "" : "name" }, name)),
        h("td", {}),
      ),
    ),
    h(
      "tbody",
      {},
      rows.map((row) =>
        h(
          "tr",
          {},
          h("th", { scope: "row", title: row.name }, h("span", {}, row.name)),
          (row.more ?? []).map((text) => h("td", { class: "num" }, text)),
          h("td", { class: "num" }, row.text ?? signed(row.value)),
          h("td", { class: "bar", "aria-hidden": "true" }, bar(row.value / (largest || 1), sides)),
        ),
      ),
    ),
  );
}

function bar(share, sides) {
  const element = h("div", { class: share < 0 ? "negative" : "positive" });
  element.style.width = `${(sides === "both" ? 50 : 100) * Math.abs(share)}%`;
  return element;
}

export function weightBars(weights) {
  if (!weights.length) return h("p", { class: "note" }, "Every weight is 0.");
  return bars(
    "The largest weights",
    ["Feature", "Weight"],
    weights.map(({ name, weight }) => ({ name, value: weight })),
  );
}

export function movedBars(moved) {
  const rows = moved.filter(({ weight, before }) => weight !== before);
  if (!rows.length) return h("p", { class: "note" }, "No weight moved.");
  return bars(
    "The weights that moved most",
    ["Feature", "Before", "Now", "Moved"],
    rows.map(({ name, weight, before }) => ({ name, value: weight - before, more: [number(before), number(weight)] })),
  );
}

export function learnerBars(learners) {
  const heavy = learners.filter(({ weight }) => weight >= 0.001).slice(0, 12);
  const rest = learners.length - heavy.length;
  const share = 1 - heavy.reduce((sum, { weight }) => sum + weight, 0);
  return [
    bars(
      "The learners with the largest shares now",
      ["Learner", "Share"],
      heavy.map((learner) => ({ name: learnerName(learner), value: learner.weight, text: percent(learner.weight) })),
    ),
    h("p", { class: "note" }, `The other ${count(rest)} have ${percent(Math.max(0, share))} together.`),
  ];
}

/** "again": a second copy, started anew when the stream changed suddenly. */
function learnerName({ group, rule, learning_rate, view, bank }) {
  return `${group === "single" ? view : group} ${rule} ${learning_rate}${bank > 1 ? " again" : ""}`;
}

/** The cross-check with river, by a button. */
export function crosscheck(name) {
  const result = h("div", { role: "status" });
  const button = h("button", { type: "button", class: "primary" }, "Check against river");
  button.addEventListener("click", async () => {
    button.disabled = true;
    const began = performance.now();
    const tick = () =>
      (result.textContent = `River is learning the log, in a separate process … ${Math.round((performance.now() - began) / 1000)} s`);
    tick();
    const timer = setInterval(tick, 1000);
    try {
      result.replaceChildren(...verdict(await ask("GET", `${modelPath(name)}/crosscheck`)));
    } catch (problem) {
      result.replaceChildren(h("p", { class: "finding warn" }, `${problem.title}: ${problem.detail}`));
    } finally {
      clearInterval(timer);
      button.disabled = false;
    }
  });
  return h(
    "section",
    { class: "card" },
    h("h3", {}, "Is it right?"),
    h(
      "p",
      { class: "note" },
      "Replays the log, gives river the same events and compares every weight. The service keeps running.",
    ),
    button,
    result,
  );
}

/** The result of a cross-check in words. */
function verdict(report) {
  const since = report.from_seq ? `, from the snapshot at seq ${count(report.from_seq)} on` : "";
  const weights = `${count(report.features)} ${report.features === 1 ? "weight" : "weights"} and the bias`;
  const equal = report.equal
    ? h(
        "p",
        { class: "finding good" },
        h("strong", {}, `Equal to the last bit on ${count(report.events)} events`),
        ` (${weights}; river ${report.river}${since}).`,
      )
    : h(
        "p",
        { class: "finding bad" },
        h("strong", {}, `Not equal on ${count(report.events)} events: `),
        `the largest difference is ${number(report.max_abs_diff)} (${count(report.max_ulp)} ULP), at ${report.feature ?? "the bias"} (${weights}; river ${report.river}${since}).`,
      );
  const replay = report.replay_equal
    ? h("p", { class: "finding good" }, "A replay of the log gives these weights, bit for bit.")
    : h(
        "p",
        { class: "finding bad" },
        h("strong", {}, "A replay of the log gives other weights. "),
        "Run `logstep inspect` on the data folder.",
      );
  const seq = report.equal && report.replay_equal ? null : report.bits_may_differ_from;
  const elsewhere = h(
    "p",
    { class: "finding" },
    `Events from seq ${count(seq ?? 0)} on were learned on a machine that rounds exp, log or pow otherwise. So last bits may differ, and nothing need be damaged.`,
  );
  return seq === null ? [equal, replay] : [equal, replay, elsewhere];
}

/** The model's spec and state. */
export function facts({ spec, seq, snapshot_seq, sha256, alarms }) {
  const told = flat(spec).filter(([, value]) => value !== null);
  const written = (value) => (typeof value === "number" ? number(value) : String(value));
  return [
    h(
      "dl",
      { class: "facts" },
      [
        told.map(([name, value]) => [h("dt", {}, name), h("dd", {}, written(value))]),
        h("dt", {}, "newest snapshot at"),
        h("dd", {}, snapshot_seq ? `seq ${count(snapshot_seq)}` : "none yet"),
        alarms == null ? [] : [h("dt", {}, "sudden changes"), h("dd", {}, count(alarms))],
        h("dt", {}, `sha256 at seq ${count(seq)}`),
        h("dd", { class: "hash" }, sha256),
      ].flat(3),
    ),
  ];
}

/** {join: {keep: "24h"}} as [["join.keep", "24h"]]. */
function flat(values, before = "") {
  return Object.entries(values).flatMap(([name, value]) =>
    value !== null && typeof value === "object" ? flat(value, `${before}${name}.`) : [[before + name, value]],
  );
}
