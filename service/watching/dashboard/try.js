// Ask a model for a prediction and why, and let it learn an event.

import { Problem, ask, modelPath } from "./api.js";
import { h, segments } from "./dom.js";
import { count, loss, number, probability, signed } from "./format.js";
import { bars } from "./panels.js";

const SHOWN = 30;
const HOW = [
  ["rows", "Name and value"],
  ["json", "JSON"],
  ["id", "By id"],
];
const EXAMPLE = [
  ["age", "31"],
  ["country", "FR"],
  ["vip", "true"],
];

/** Show it in `main`. */
export function tryIt(main, parameters, link) {
  const names = h("select", { id: "try-model" });
  const features = featureForm();
  const answer = h(
    "div",
    { class: "answer", role: "status" },
    h("p", { class: "note" }, "The prediction will appear here, with what each feature adds to it."),
  );
  const event = h(
    "textarea",
    { id: "event", rows: "4", spellcheck: "false" },
    '{"x": {"age": 31, "country": "FR", "vip": true}, "y": 1}',
  );
  const learned = h(
    "div",
    { class: "answer", role: "status" },
    h("p", { class: "note" }, "The result will appear here."),
  );

  const predict = async () =>
    answer.replaceChildren(...explanation(await ask("POST", `${modelPath(names.value)}/explain`, features.body())));
  const learn = async () =>
    learned.replaceChildren(
      ...outcome(await ask("POST", `${modelPath(names.value)}/learn`, checked(event.value, "The event"))),
    );

  main.replaceChildren(
    h(
      "div",
      { class: "heading" },
      h("h1", { tabindex: "-1" }, "Try it"),
      h("label", { class: "choice" }, "Model ", names),
    ),
    h(
      "section",
      { class: "card halves" },
      h("div", {}, h("h2", {}, "Predict"), form("Predict and explain", features.element, predict, answer)),
      answer,
    ),
    h(
      "section",
      { class: "card halves" },
      h(
        "div",
        {},
        h("h2", {}, "Learn"),
        h(
          "p",
          { class: "note" },
          "This changes the model by one gradient step, which is on disk when the reply comes. An event with an ",
          h("code", {}, "id"),
          " is learned once, however often you send it.",
        ),
        form(
          "Learn this event",
          [h("label", { for: "event" }, "Event, or an array of events"), event],
          learn,
          learned,
          () => {
            event.value = `{"x": ${features.x()}, "y": 1}`;
          },
        ),
      ),
      learned,
    ),
  );
  names.addEventListener("change", () => fillIn(names, features).catch(link));
  fillModels(names, parameters.get("model"), features).then(() => link(null), link);
}

/** A form that sends its content and shows a problem in place of the answer. */
function form(label, content, send, answer, copy) {
  const button = h("button", { type: "submit", class: "primary" }, label);
  const element = h(
    "form",
    { novalidate: true },
    content,
    h(
      "div",
      { class: "actions" },
      button,
      copy && h("button", { type: "button", onclick: copy }, "Copy the features from above"),
    ),
  );
  element.addEventListener("submit", async (submitted) => {
    submitted.preventDefault();
    button.disabled = true;
    try {
      await send();
    } catch (problem) {
      if (!(problem instanceof Problem)) throw problem;
      answer.replaceChildren(h("p", { class: "finding bad" }, h("strong", {}, `${problem.title}. `), problem.detail));
      if (problem.status === 401) window.dispatchEvent(new Event("tokenwanted"));
    } finally {
      button.disabled = false;
    }
  });
  return element;
}

async function fillModels(select, wanted, features) {
  const { models } = await ask("GET", "models");
  select.replaceChildren(
    ...models.map(({ model, rule }) =>
      h("option", { value: model, selected: model === wanted, "data-rule": rule }, model),
    ),
  );
  await fillIn(select, features);
}

/** Fill the rows with the features of the model's largest weights; "country=FR" is the text FR of country. */
async function fillIn(select, features) {
  const auto = select.selectedOptions[0].dataset.rule === "auto"; // it has no weights of its own
  const { weights } = auto ? { weights: {} } : await ask("GET", `${modelPath(select.value)}/weights?top=8`);
  const rows = new Map();
  for (const name of Object.keys(weights)) {
    const [feature, text] = name.split(/=(.*)/s);
    if (!rows.has(feature)) rows.set(feature, text ?? "1");
  }
  features.set(rows.size ? [...rows] : EXAMPLE);
}

/** Features as rows, as JSON, or the id of a waiting prediction. `body()` is the request body for /explain. */
function featureForm() {
  const rows = h("tbody", {});
  const json = h("textarea", { id: "x", rows: "8", spellcheck: "false", "aria-label": "Features as JSON" });
  const id = h("input", { id: "waiting-id", autocomplete: "off", spellcheck: "false" });
  const add = (name = "", value = "") => {
    const row = h(
      "tr",
      {},
      h("td", {}, field("Name", name)),
      h("td", {}, field("Value", value)),
      h("td", {}, remover()),
    );
    rows.append(row);
    return row;
  };
  const pages = {
    rows: h(
      "div",
      {},
      h(
        "table",
        { class: "rows" },
        h(
          "thead",
          {},
          h("tr", {}, h("th", { scope: "col" }, "Feature"), h("th", { scope: "col" }, "Value"), h("td", {})),
        ),
        rows,
      ),
      h(
        "button",
        { type: "button", class: "quiet", onclick: () => add().querySelector("input").focus() },
        "Add a feature",
      ),
      h(
        "p",
        { class: "note" },
        'Numbers like 31 and the words true and false are read as such; everything else is text, "31" in quotes too.',
      ),
    ),
    json: h("div", {}, json),
    id: h("div", {}, h("label", { for: "waiting-id" }, "Id of a waiting prediction"), id),
  };
  let shown = "rows";
  const show = (page) => {
    if (page === "json" && shown === "rows") json.value = fromRows(rows);
    shown = page;
    for (const [name, element] of Object.entries(pages)) element.hidden = name !== page;
  };
  const x = () => (shown === "rows" ? fromRows(rows) : checked(json.value || fromRows(rows), "The features"));
  show("rows");
  return {
    element: [segments("How to give the features", HOW, "rows", show), ...Object.values(pages)],
    body: () => (shown === "id" ? `{"id": ${JSON.stringify(id.value)}}` : `{"x": ${x()}}`),
    x,
    set(pairs) {
      rows.replaceChildren();
      for (const [name, value] of pairs) add(name, value);
      json.value = fromRows(rows);
    },
  };
}

const field = (label, value) => h("input", { "aria-label": label, value, autocomplete: "off", spellcheck: "false" });

function remover() {
  return h(
    "button",
    {
      type: "button",
      class: "quiet",
      "aria-label": "Remove this feature",
      onclick: (click) => click.target.closest("tr").remove(),
    },
    "×",
  );
}

/** JSON as text, in the order of the rows, which is the order of summing; an object would put names like "0" first. */
function fromRows(rows) {
  const pairs = [...rows.children].map((row) => [...row.querySelectorAll("input")].map((input) => input.value.trim()));
  return `{${pairs
    .filter(([name]) => name)
    .map(([name, value]) => `${JSON.stringify(name)}: ${typed(value)}`)
    .join(", ")}}`;
}

/** A value as JSON: numbers, true, false and quoted texts stay; everything else becomes text. */
function typed(value) {
  try {
    if (["number", "boolean", "string"].includes(typeof JSON.parse(value))) return value;
  } catch {
    // not JSON, so text
  }
  return JSON.stringify(value);
}

/** The text unchanged if it is JSON, else a Problem. Parsing and printing could change its numbers. */
function checked(text, what) {
  try {
    JSON.parse(text);
  } catch (error) {
    throw new Problem(400, "Malformed JSON", `${what}: ${error.message}.`);
  }
  return text;
}

/** Show the reply of /explain. */
function explanation(said) {
  const scaled = said.features.some(({ value, seen }) => seen !== null && seen !== value);
  const weighted = said.features.some(({ weight }) => weight !== null);
  const columns = ["Feature", "Value", scaled && "As seen", weighted && "Weight", "Adds"].filter(Boolean);
  const sorted = said.features.toSorted((a, b) => Math.abs(b.contribution) - Math.abs(a.contribution));
  const rows = sorted.slice(0, SHOWN).map(({ name, value, seen, weight, contribution }) => ({
    name,
    value: contribution,
    more: [number(value), scaled && number(seen), weighted && number(weight)].filter((text) => text !== false),
  }));
  const bias = { name: "(bias)", value: said.bias, more: columns.slice(2).map(() => "") };
  return [
    h(
      "p",
      { class: "result" },
      h("strong", {}, probability(said.p)),
      ` for label 1 · score ${signed(said.score)} · seq ${count(said.seq)}`,
    ),
    said.served_p != null &&
      h("p", { class: "note" }, `Served as ${probability(said.served_p)} at seq ${count(said.served_seq)}.`),
    bars("What each feature adds to the score", columns, [...rows, bias]),
    sorted.length > SHOWN && h("p", { class: "note" }, `… and ${count(sorted.length - SHOWN)} more, which add less.`),
    said.unknown.length > 0 &&
      h(
        "p",
        { class: "finding note" },
        `The model has not learned these features yet, so they have no part: ${said.unknown.join(", ")}.`,
      ),
    h("p", { class: "note" }, said.method),
  ].filter(Boolean);
}

/** Show the reply of /learn to one event or an array. */
function outcome(said) {
  const events = Array.isArray(said) ? said : [said];
  return [
    h(
      "ul",
      { class: "plain" },
      events.slice(0, SHOWN).map((event) => h("li", { class: "finding good" }, told(event))),
    ),
    events.length > SHOWN && h("p", { class: "note" }, `… and ${count(events.length - SHOWN)} more.`),
  ].filter(Boolean);
}

function told({ seq, p, loss: before, duplicate }) {
  if (duplicate) return `Already learned as event ${count(seq)}; nothing changed.`;
  if (before == null)
    return `Event ${count(seq)} is in the log, but its step was not taken: it would have left a weight that is not finite.`;
  return `Learned as event ${count(seq)}, and on disk. Before the step the model predicted ${probability(p)}: log loss ${loss(before)}.`;
}
