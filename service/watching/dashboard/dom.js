// Makes elements from data. Text always becomes a text node, so a feature named "<script>" is shown, never run.

/** An element: `h("a", {href: "#/", class: "quiet", onclick: f}, "text", child)`. Null and false are left out. */
export function h(tag, properties = {}, ...children) {
  return filled(document.createElement(tag), properties, children);
}

/** The same for SVG. */
export function svg(tag, properties = {}, ...children) {
  return filled(document.createElementNS("http://www.w3.org/2000/svg", tag), properties, children);
}

function filled(element, properties, children) {
  for (const [name, value] of Object.entries(properties)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value != null) element.setAttribute(name, value);
  }
  element.append(...children.flat().filter((child) => child != null && child !== false));
  return element;
}

/** Set an element's text if it differs: replacing the same text would drop the reader's selection. */
export function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** Returns a function that fills `element` with `make(value)` whenever the value differs from the last. */
export function filler(element, make) {
  let last;
  return (value) => {
    const now = JSON.stringify(value);
    if (now === last) return;
    last = now;
    element.replaceChildren(...[make(value)].flat().filter((child) => child != null && child !== false));
  };
}

/** Returns a function that calls `show` with the newest value, at most once in `ms`; the last value is always shown. */
export function throttled(ms, show) {
  let value;
  let timer = null;
  let next = 0;
  return (newest) => {
    value = newest;
    timer ??= setTimeout(() => {
      timer = null;
      next = performance.now() + ms;
      show(value);
    }, next - performance.now());
  };
}

/** A text with a button that copies it. */
export function pasteable(text) {
  const code = h("code", {}, text);
  const button = h("button", { type: "button", class: "copy" }, "Copy");
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(text); // only on https and localhost
      button.textContent = "Copied";
    } catch {
      getSelection().selectAllChildren(code);
      button.textContent = "Selected: copy with Ctrl+C";
    }
    setTimeout(() => (button.textContent = "Copy"), 3000);
  });
  return h("div", { class: "paste" }, h("pre", { tabindex: "0" }, code), button);
}

/** A choice of one out of a few: `options` are [value, label]. */
export function segments(legend, options, chosen, onchoice) {
  return h(
    "fieldset",
    { class: "segments" },
    h("legend", { class: "hidden" }, legend),
    options.map(([value, label]) =>
      h(
        "label",
        {},
        h("input", { type: "radio", name: legend, value, checked: value === chosen, onchange: () => onchoice(value) }),
        h("span", {}, label),
      ),
    ),
  );
}
