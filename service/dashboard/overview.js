// Every model at a glance: is it learning, how well, is anything wrong.

import { follow, modelPath, token } from "./api.js";
import { sparkline } from "./charts.js";
import { filler, h, pasteable } from "./dom.js";
import { count, loss, percent, rate } from "./format.js";

/** Show it in `main`; returns what ends it. `link` is told of the connection. */
export function overview(main, _, link) {
  const summary = h("p", { class: "lead" });
  const table = h("div", { class: "card flush" });
  const first = h("div", {});
  main.replaceChildren(h("div", { class: "heading" }, h("h1", { tabindex: "-1" }, "Models"), summary), first, table);

  const showFirst = filler(first, (wanted) => wanted && firstSteps("default"));
  const showModels = filler(table, modelTable);
  return follow("stream", {
    onLink: link,
    onNow({ t, state, models, more }) {
      link(null, { t, state });
      summary.textContent = inAll(models, more);
      showFirst(models.every((model) => !model.seq));
      showModels(models);
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

const COLUMNS = ["Model", "Events", "Learned", "Predicted", "Log loss", "Accuracy", "Log loss lately", "State"];

function modelTable(models) {
  return h(
    "table",
    { class: "models" },
    h("caption", { class: "hidden" }, "Models: log loss and accuracy over the last events, and in total"),
    h(
      "thead",
      {},
      h(
        "tr",
        {},
        COLUMNS.map((name) => h("th", { scope: "col" }, name)),
      ),
    ),
    h("tbody", {}, models.map(row)),
  );
}

function row(model) {
  const cell = (label, ...content) => h("td", { "data-label": label }, ...content);
  return h(
    "tr",
    {},
    h(
      "th",
      { scope: "row" },
      h("a", { href: `#/models/${encodeURIComponent(model.model)}` }, model.model),
      h("small", {}, model.rule),
    ),
    cell("Events", count(model.seq)),
    cell("Learned", rate(model.learned_s)),
    cell("Predicted", rate(model.predicted_s)),
    cell("Log loss", two(loss, model.loss_window, model.loss)),
    cell("Accuracy", two(percent, model.accuracy_window, model.accuracy)),
    cell(
      "Log loss lately",
      sparkline(model.spark ?? [], `Log loss lately: from ${loss(model.spark?.[0])} to ${loss(model.loss_window)}`),
    ),
    h("td", { class: "state-cell" }, stateOf(model)),
  );
}

/** The last events' number, and the total under it. */
function two(format, lately, total) {
  return h("span", { class: "two" }, format(lately), h("small", {}, lately == null ? "" : `total ${format(total)}`));
}

function stateOf({ state, seq, learned_s }) {
  if (state !== "ready") return h("span", { class: "state warn" }, state);
  if (!seq) return h("span", { class: "state" }, "no events");
  return learned_s > 0 ? h("span", { class: "state good" }, "learning") : h("span", { class: "state" }, "idle");
}

/** What to do with a model that has learned nothing yet. */
export function firstSteps(model) {
  const path = model === "default" ? "learn" : `${modelPath(model)}/learn`;
  const address = new URL(path, document.baseURI);
  const authorized = token.get() ? ` -H "authorization: Bearer $TOKEN"` : "";
  return h(
    "section",
    { class: "card first" },
    h("h2", {}, "Nothing learned yet"),
    h("p", {}, "One event is one gradient step. Paste this in a terminal, and watch it arrive here:"),
    pasteable(
      `curl -s ${address} -H 'content-type: application/json'${authorized} \\\n` +
        `  -d '{"x": {"age": 31, "country": "FR", "vip": true}, "y": 1, "id": "order-77"}'`,
    ),
    h(
      "p",
      {},
      "A whole file: ",
      h("code", {}, "onestep replay FILE.csv --label COLUMN"),
      ". Or ",
      h("a", { href: `#/try?model=${encodeURIComponent(model)}` }, "try it here"),
      ".",
    ),
  );
}
