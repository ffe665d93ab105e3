// The service as this page sees it: requests, problems, and streams that come back by themselves.

const TOKEN = "logstep-token";
const PATIENCE = 45_000; // ms without a byte, heartbeats included, after which a stream counts as cut
const changed = new EventTarget();

export const token = {
  get: () => sessionStorage.getItem(TOKEN) ?? "", // of this tab only
  set(value) {
    if (value) sessionStorage.setItem(TOKEN, value);
    else sessionStorage.removeItem(TOKEN);
    changed.dispatchEvent(new Event("token"));
  },
};

/** What the service refused, or that it did not answer (status 0). */
export class Problem extends Error {
  constructor(status, title, detail) {
    super(detail);
    Object.assign(this, { status, title, detail });
  }
}

/** Ask the service; `body` is JSON as text. Returns what it says, or throws a Problem. */
export async function ask(method, path, body) {
  const response = await send(path, { method, body, headers: body ? { "content-type": "application/json" } : {} });
  return await response.json();
}

export const modelPath = (name) => `models/${encodeURIComponent(name)}`;

async function send(path, options) {
  const headers = token.get() ? { ...options.headers, authorization: `Bearer ${token.get()}` } : options.headers;
  let response;
  try {
    response = await fetch(path, { ...options, headers, cache: "no-store" });
  } catch {
    throw new Problem(0, "No answer", "The service does not answer.");
  }
  if (!response.ok) throw await problemOf(response);
  return response;
}

async function problemOf(response) {
  const said = await response.json().catch(() => ({}));
  return new Problem(
    response.status,
    said.title ?? response.statusText,
    said.detail ?? `It replied ${response.status}.`,
  );
}

/**
 * Follow a stream of server-sent events until `stop()` is called.
 *
 * `onNow(data)` gets each event; `onLink(problem)` is told null when the stream begins, and a Problem when it ends or
 * is refused. It is opened again after the time that the service asked for; after a 401, when there is another token.
 * A hidden tab follows nothing: a browser has six connections to a host, and other tabs need them.
 * (EventSource would do most of this, but it cannot send a token.)
 */
export function follow(path, { onNow, onLink }) {
  const life = new AbortController();
  run().catch((error) => {
    if (error.name !== "AbortError") throw error;
  });
  return () => life.abort();

  async function run() {
    let wait = 500;
    for (;;) {
      await visible(life.signal);
      const problem = await once();
      life.signal.throwIfAborted();
      if (problem) onLink(problem);
      if (problem?.status === 401) await happens(changed, "token", life.signal);
      else if (problem) await sleep(problem.status ? Math.max(wait, 2000) : wait, life.signal);
    }

    /** One connection: why it ended, or null because the tab was hidden. */
    async function once() {
      const link = new AbortController();
      const end = () => link.abort();
      const hide = () => document.hidden && end();
      life.signal.addEventListener("abort", end);
      document.addEventListener("visibilitychange", hide);
      try {
        const response = await send(path, { headers: { accept: "text/event-stream" }, signal: link.signal });
        onLink(null);
        for await (const event of events(response.body, end)) {
          if (event.retry) wait = event.retry;
          if (event.event === "now") onNow(JSON.parse(event.data));
        }
        return new Problem(0, "Ended", "The service ended the stream.");
      } catch (error) {
        if (!(error instanceof Problem)) throw error; // a mistake in this page
        return document.hidden && link.signal.aborted ? null : error;
      } finally {
        life.signal.removeEventListener("abort", end);
        document.removeEventListener("visibilitychange", hide);
      }
    }
  }
}

/** The events of a body: {event, data, retry, ...}. `onSilence` is called when it has been silent for too long. */
async function* events(body, onSilence) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const timer = setTimeout(onSilence, PATIENCE);
    const { value, done } = await read(reader).finally(() => clearTimeout(timer));
    if (done) return;
    const blocks = (text + value).replaceAll("\r\n", "\n").split("\n\n");
    text = blocks.pop();
    for (const block of blocks) yield parsed(block);
  }
}

async function read(reader) {
  try {
    return await reader.read();
  } catch {
    throw new Problem(0, "No answer", "The connection to the service was lost.");
  }
}

/** One event: lines of `name: value`; several lines of data are one text; a line that begins with a colon says nothing. */
function parsed(block) {
  const event = {};
  for (const line of block.split("\n")) {
    const [, name, value] = /^([^:]+):? ?(.*)$/.exec(line) ?? [];
    if (name === "data" && event.data != null) event.data += `\n${value}`;
    else if (name) event[name] = name === "retry" ? Number(value) : value;
  }
  return event;
}

function visible(signal) {
  return document.hidden ? happens(document, "visibilitychange", signal) : null;
}

function happens(target, name, signal) {
  return new Promise((resolve, reject) => {
    target.addEventListener(name, resolve, { once: true });
    signal.addEventListener("abort", () => reject(signal.reason), { once: true });
  });
}

function sleep(ms, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, ms);
    signal.addEventListener("abort", () => (clearTimeout(timer), reject(signal.reason)), { once: true });
  });
}
