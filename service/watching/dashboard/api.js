// Requests to the service, its problems, and streams that reconnect by themselves.

const TOKEN = "logstep-token";
const PATIENCE = 45_000; // ms without a byte (not even a heartbeat) after which a stream counts as cut
const changed = new EventTarget();

export const token = {
  get: () => sessionStorage.getItem(TOKEN) ?? "", // this tab only
  set(value) {
    if (value) sessionStorage.setItem(TOKEN, value);
    else sessionStorage.removeItem(TOKEN);
    changed.dispatchEvent(new Event("token"));
  },
};

/** The service refused a request, or did not answer (status 0). */
export class Problem extends Error {
  constructor(status, title, detail) {
    super(detail);
    Object.assign(this, { status, title, detail });
  }
}

/** Send a request; `body` is JSON as text. Returns the reply, or throws a Problem. */
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
 * `onNow(data)` gets each event. `onLink(problem)` gets null when the stream begins, and a Problem when it ends or is
 * refused. The stream reopens after the time that the service asked for; after a 401, once the token changes.
 * A hidden tab closes it: a browser has six connections per host, and other tabs need them.
 * (EventSource does most of this, but cannot send a token.)
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

    /** One connection: returns why it ended, or null if the tab was hidden. */
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

/** The events of a body: {event, data, retry, ...}. Calls `onSilence` after too long a silence. */
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

/** Parse one event: lines of `name: value`. Several data lines are joined; a line that begins with a colon is ignored. */
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
