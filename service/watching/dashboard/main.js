// Chooses the page, and shows the connection's state and the token dialog.

import { token } from "./api.js";
import { h, say } from "./dom.js";
import { time } from "./format.js";
import { model } from "./model.js";
import { overview } from "./overview.js";
import { tryIt } from "./try.js";

const main = document.getElementById("main");
const notice = document.getElementById("notice");
const connection = document.getElementById("connection");
const dialog = document.getElementById("token-dialog");
let stop = () => {};
let said = null;
let shown = "";

// -- pages: #/  #/models/NAME?range=1h  #/try?model=NAME

function show() {
  const [path, query] = location.hash.replace(/^#/, "").split("?");
  const parameters = new URLSearchParams(query);
  const [, page, name] = path.split("/");
  if (page === "models" && name) parameters.set("model", decodeURIComponent(name));
  const view = page === "models" && name ? model : page === "try" ? tryIt : overview;
  stop();
  said = null;
  link(undefined);
  document.title = [parameters.get("model"), page === "try" ? "Try it" : null, "logstep"].filter(Boolean).join(" · ");
  for (const item of document.querySelectorAll("[data-page]")) {
    const current = item.dataset.page === (page === "try" ? "try" : "models");
    if (current) item.setAttribute("aria-current", "page");
    else item.removeAttribute("aria-current");
  }
  stop = view(main, parameters, link) ?? (() => {});
  if (shown && shown !== path) {
    main.querySelector("h1")?.focus(); // a screen reader announces the new page
    scrollTo(0, 0);
  }
  shown = path;
}

// -- the connection. undefined: not known yet; null: works; a Problem: what is wrong

function link(problem, now) {
  if (now) said = now;
  const recovering = problem?.status === 503 || (said && said.state !== "ready" && !problem);
  const kind = problem === undefined ? "unknown" : recovering ? "recovering" : problem ? "down" : "live";
  document.body.dataset.link = kind;
  main.classList.toggle("stale", Boolean(problem) && said !== null);
  say(connection, problem === undefined ? "connecting" : wordFor(problem));
  const wanted = problem ? explained(problem) : [];
  if (notice.textContent !== wanted.map((part) => part.textContent ?? part).join("")) notice.replaceChildren(...wanted);
  notice.classList.toggle("bad", kind === "down");
}

function wordFor(problem) {
  if (!problem) return said && said.state !== "ready" ? said.state : "live";
  if (problem.status === 401) return "token needed";
  return problem.status ? problem.title.toLowerCase() : "reconnecting";
}

/** What is wrong, and what to do. */
function explained(problem) {
  const last = said ? ` The numbers shown are from ${time(said.t)}.` : "";
  if (problem.status === 0) {
    return [
      h("strong", {}, "The service does not answer. "),
      `This page keeps trying.${last} If the service is not running, start it with `,
      h("code", {}, "logstep serve"),
      ": every event that it acknowledged is on disk.",
    ];
  }
  if (problem.status === 401) {
    const enter = h("button", { type: "button", onclick: askForToken }, "Enter a token");
    return [
      h("strong", {}, token.get() ? "The service does not know this token. " : "The service needs a token. "),
      enter,
    ];
  }
  if (problem.status === 404) {
    return [h("strong", {}, `${problem.title}. `), `${problem.detail} `, h("a", { href: "#/" }, "All models")];
  }
  return [h("strong", {}, `${problem.title}. `), problem.detail + last];
}

// -- the token

function askForToken() {
  document.getElementById("token-value").value = "";
  document.getElementById("token-forget").hidden = !token.get();
  dialog.showModal();
}

document.getElementById("token").addEventListener("click", askForToken);
window.addEventListener("tokenwanted", askForToken);
document
  .getElementById("token-form")
  .addEventListener("submit", () => token.set(document.getElementById("token-value").value.trim()));
document.getElementById("token-cancel").addEventListener("click", () => dialog.close());
document.getElementById("token-forget").addEventListener("click", () => {
  token.set("");
  dialog.close();
  show();
});

window.addEventListener("hashchange", show);
show();
