// The list of models: is each learning, how well, and is anything wrong.

import { follow, modelPath, token } from "./api.js";
import { sparkline } from "./charts.js";
import { filler, h, pasteable } from "./dom.js";
import { count, loss, percent, rate } from "./format.js";
import { findingsList } from "./panels.js";

const TOLD = 5; // models worse than guessing that are named

/** Show it in `main`; returns a function that ends it. `link` gets the state of the connection. */
export function overview(main, _, link) {
  const summary = h("p", { class: "lead" });
  const table = h("div", { class: "card flush" });
  const first = h("div", {});
  const wrong = h("div", { class: "findings" });
  const heading = h("div", { class: "heading" }, h("h1", { tabindex: "-1" }, "Models"), summary);
  main.replaceChildren(heading, first, table, wrong);

  const showFirst = filler(first, (wanted) => wanted && firstSteps("default"));
  const showModels = modelTable(table);
  const showWrong = filler(wrong, worse);
  return follow("stream", {
    onLink: link,
    onNow({ t, state, models, more }) {
      link(null, { t, state });
      summary.textContent = inAll(models, more);
      showFirst(models.every((model) => !model.seq));
      showModels(models);
      showWrong(models.filter((model) => model.worse_than_guessing).map(named));
    },
  });
}

function inAll(models, more) {
  const sum = (key) => models.reduce((total, model) => total + (model[key] ?? 0), 0);
  const shown = more
    ? `the ${count(models.length)} of ${count(models.length + more)} models that learned last`
    : modelsIn(models.length);
  return `${shown} · ${rate(sum("learned_s"))} learned · ${rate(sum("predicted_s"))} predicted`;
}

const modelsIn = (n) => `${count(n)} ${n === 1 ? "model" : "models"}`;

const COLUMNS = [
  { label: "Events", of: (model) => [model.seq], show: count },
  { label: "Learned", of: (model) => [model.learned_s], show: rate },
  { label: "Predicted", of: (model) => [model.predicted_s], show: rate },
  { label: "Log loss", of: (model) => [model.loss_window, model.loss], show: two(loss) },
  { label: "Guessing", of: (model) => [model.base_rate_loss_window, model.base_rate_loss], show: two(loss) },
  { label: "Accuracy", of: (model) => [model.accuracy_window, model.accuracy], show: two(percent) },
  { label: "Log loss by event", of: (model) => [model.spark], show: curveOf },
  {
    label: "State",
    of: (model) => [model.state, model.seq > 0, model.learned_s > 0, model.worse_than_guessing?.over],
    show: stateOf,
  },
];

/** Put a table into `place`. Returns a function that shows models in it; it reuses rows, so that they keep the focus. */
function modelTable(place) {
  const body = h("tbody");
  const head = ["Model", ...COLUMNS.map((column) => column.label)].map((label) => h("th", { scope: "col" }, label));
  const caption = h("caption", { class: "hidden" }, "Models with their log loss, the log loss of always predicting the share of label 1, and accuracy; over the last events and in total");
  const table = h("table", { class: "models" }, caption, h("thead", {}, h("tr", {}, head)), body);
  let rows = new Map();
  return (models) => {
    rows = new Map(models.map((model) => [key(model), rows.get(key(model)) ?? newRow(model)]));
    const elements = [...rows.values()].map((row) => row.element);
    if (elements.length !== body.children.length || elements.some((element, i) => element !== body.children[i])) {
      body.replaceChildren(...elements);
    }
    for (const model of models) rows.get(key(model)).show(model);
    if (!table.isConnected) place.replaceChildren(table);
  };
}

const key = ({ model, rule }) => `${model} ${rule}`; // a model created again with another rule gets a new row

function newRow({ model, rule }) {
  const link = h("a", { href: `#/models/${encodeURIComponent(model)}` }, model);
  const cells = COLUMNS.map(({ label, show }) => {
    const element = h("td", { "data-label": label });
    return { element, fill: filler(element, (values) => show(...values)) };
  });
  const name = h("th", { scope: "row" }, link, h("small", {}, rule));
  return {
    element: h(
      "tr",
      {},
      name,
      cells.map((cell) => cell.element),
    ),
    show: (now) => cells.forEach((cell, i) => cell.fill(COLUMNS[i].of(now))),
  };
}

/** The value over the last events, and the total below it. */
function two(format) {
  return (recent, total) =>
    h("span", { class: "two" }, format(recent), h("small", {}, recent == null ? "" : `total ${format(total)}`));
}

const named = ({ model, worse_than_guessing: { advice } }) => [model, advice];

/** Advice on models that are worse than guessing (always predicting the share of label 1). */
function worse(models) {
  if (!models.length) return null;
  return findingsList(models.slice(0, TOLD).map(([name, advice]) => ["warn", `${name}: ${advice}.`]));
}

function curveOf(losses) {
  return sparkline(losses, `Log loss by event: from ${loss(losses[0])} to ${loss(losses.at(-1))}`);
}

function stateOf(state, learned, learning, worseOver) {
  if (state !== "ready") return h("span", { class: "state warn" }, state);
  if (!learned) return h("span", { class: "state" }, "no events");
  if (worseOver === "window") return h("span", { class: "state bad" }, "worse than guessing");
  if (worseOver) return h("span", { class: "state warn" }, "worse in total");
  return learning ? h("span", { class: "state good" }, "learning") : h("span", { class: "state" }, "idle");
}

/** First steps for a model that has learned nothing yet. */
export function firstSteps(model) {
  const path = model === "default" ? "learn" : `${modelPath(model)}/learn`;
  const address = new URL(path, document.baseURI);
  const authorized = token.get() ? ` -H "authorization: Bearer $TOKEN"` : "";
  return h(
    "section",
    { class: "card first" },
    h("h2", {}, "Nothing learned yet"),
    h("p", {}, "One event is one gradient step. Paste this into a terminal and watch the event arrive here:"),
    pasteable(
      `curl -s ${address} -H 'content-type: application/json'${authorized} \\\n` +
        `  -d '{"x": {"age": 31, "country": "FR", "vip": true}, "y": 1, "id": "order-77"}'`,
    ),
    h(
      "p",
      {},
      "For a whole file: ",
      h("code", {}, "logstep replay FILE.csv --label COLUMN"),
      ". Or ",
      h("a", { href: `#/try?model=${encodeURIComponent(model)}` }, "try it here"),
      ".",
    ),
  );
}
