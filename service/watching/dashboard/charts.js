// Charts by events and over time, and calibration: uPlot in this page's colours, with a legend in text and a table of the numbers.

import uPlot from "./vendor/uplot-1.6.32/uPlot.esm.js";
import { h, say, svg } from "./dom.js";
import { count, moment, percent, rounds, ticks } from "./format.js";

const HEIGHT = 190;
const FONT = "11px system-ui, sans-serif";
const TABLE_ROWS = 12;
const BRIDGED = 2.5; // steps: a line is drawn across shorter gaps
const FEWEST = 20; // events of a tenth of the calibration; the share of label 1 among fewer is chance
const DAY = 86_400;

/** The colour of a name like "accent" in the current theme, for canvas. */
function colour(name) {
  const probe = h("span", { class: "hidden" });
  probe.style.color = `var(--${name})`;
  document.body.append(probe);
  const found = getComputedStyle(probe).color;
  probe.remove();
  return found;
}

/** The same colour with an alpha: 0 is invisible, 1 is solid. */
function tinted(name, alpha) {
  return colour(name).replace(/^rgb\((.*)\)$/, (_, rgb) => `rgba(${rgb}, ${alpha})`);
}

/**
 * A chart: title, legend with the numbers at the cursor (or the last ones), the plot, and a table of the numbers.
 *
 * `lines` are [{key, label, tone, dash, area}]; `tone` is the name of a colour. `format` turns a number into text.
 */
class Chart {
  constructor({ title, note, lines, format, wide, controls }) {
    this.lines = lines;
    this.format = format;
    this.legend = h("dl", { class: "legend" });
    this.place = h("div", { class: "plot", role: "img", "aria-label": title });
    this.table = h("details", { class: "numbers" }, h("summary", {}, "Numbers"));
    this.table.addEventListener("toggle", () => this.fillTable());
    const heading = h("h3", {}, title);
    this.element = h(
      "figure",
      { class: wide ? "card chart wide" : "card chart" },
      h("figcaption", {}, heading, controls, note && h("p", { class: "note" }, note), this.legend),
      this.place,
      this.table,
    );
    this.title = title;
    this.data = null;
    this.plot = null;
    this.redraw = () => this.draw();
    window.addEventListener("themechange", this.redraw);
    this.observer = new ResizeObserver(() => this.plot?.setSize(this.size()));
    this.observer.observe(this.place);
  }

  destroy() {
    window.removeEventListener("themechange", this.redraw);
    this.observer.disconnect();
    this.plot?.destroy();
  }

  size() {
    return { width: Math.max(this.place.clientWidth, 120), height: Math.max(this.place.clientHeight, HEIGHT) };
  }

  /** Draw from scratch: at first, and when colours or lines change. */
  draw() {
    if (!this.data) return;
    this.plot?.destroy();
    this.makeLegend();
    this.plot = new uPlot({ ...this.size(), ...this.options() }, this.data, this.place);
    this.showNumbers();
  }

  makeLegend() {
    this.values = this.lines.map(() => h("dd", {}));
    this.legend.replaceChildren(
      ...this.lines.map((line, i) => h("div", {}, h("dt", {}, swatch(line), line.label), this.values[i])),
    );
  }

  /** Show the numbers at the cursor, or the last ones. */
  showNumbers() {
    const at = this.plot.cursor.idx;
    this.lines.forEach((_, k) => {
      const numbers = this.numbers(k);
      say(this.values[k], this.format(at == null ? this.latest(numbers) : numbers[at]));
    });
  }

  /** The numbers of line `k`. Lines are drawn from last to first, so that the first lies on top. */
  numbers(k) {
    return this.data[this.lines.length - k];
  }

  latest(numbers) {
    return last(numbers);
  }

  series() {
    return this.lines.toReversed().map((line) => ({
      label: line.label,
      stroke: colour(line.tone),
      width: line.dash ? 1.25 : 1.75,
      dash: line.dash ? [5, 4] : undefined,
      fill: line.area ? tinted(line.tone, 0.12) : undefined,
      points: { size: 4, fill: colour(line.tone), filter: alone },
      gaps: (plot, _, __, ___, gaps) => gaps.filter(([start, end]) => end - start > this.bridged(plot)),
    }));
  }

  /** The widest gap, in pixels, that a line crosses: the service may have missed one bucket. */
  bridged(plot) {
    const { max, min } = plot.scales.x;
    return (BRIDGED * this.step * plot.bbox.width) / (max - min);
  }

  axis(more) {
    const grid = { stroke: colour("line"), width: 1 };
    return { stroke: colour("ink-2"), font: FONT, grid, ticks: { ...grid, size: 4 }, ...more };
  }

  valueAxis() {
    return this.axis({
      size: (_, values) => Math.max(38, 12 + 6.4 * Math.max(0, ...(values ?? []).map((text) => text.length))),
      ...this.ticks((value) => this.tick(value)),
      space: 32,
    });
  }

  /** The ticks of an axis of numbers: no two read the same. */
  ticks(text) {
    return {
      splits: (_, __, low, high, step) => rounds(low, high, step, text),
      values: (_, splits) => splits.map(text),
    };
  }

  /** A number for an axis, without trailing zeros. */
  tick(value) {
    return value == null
      ? ""
      : this.format(value)
          .replace(/(\.\d*?)0+(?=$|\s|\/)/, "$1")
          .replace(/\.(?=$|\s|\/)/, "");
  }

  fillTable() {
    if (!this.table.open || !this.data) return;
    const head = h(
      "tr",
      {},
      h("th", { scope: "col" }, this.firstColumn),
      this.lines.map((l) => h("th", { scope: "col" }, l.label)),
    );
    const rows = this.tableRows().map((i) =>
      h(
        "tr",
        {},
        h("th", { scope: "row" }, this.first(this.data[0][i])),
        this.lines.map((_, k) => h("td", {}, this.format(this.numbers(k)[i]))),
      ),
    );
    const table = h("table", {}, h("thead", {}, head), h("tbody", {}, rows));
    this.table.replaceChildren(this.table.firstChild, h("div", { class: "scroll", tabindex: "0" }, table));
  }

  /** Some of the times that have numbers, evenly spaced, the last one included. */
  tableRows() {
    const there = this.data[0].map((_, i) => i).filter((i) => this.lines.some((_, k) => this.numbers(k)[i] != null));
    const step = Math.max(1, Math.ceil(there.length / TABLE_ROWS));
    return there.filter((_, place) => (there.length - 1 - place) % step === 0);
  }
}

/** What a chart can be drawn along: the column of the numbers, and the axis. */
const TIME = {
  key: "time",
  name: "Time",
  text: moment,
  of: ({ t, from, to, step, marks }) => ({ x: t, from, to, step, marks }),
  axis: () => ({
    values: ({ scales: { x } }, splits, _, __, step) => ticks(splits, step, x.max - x.min > 1.1 * DAY),
    space: (_, __, from, to) => (to - from > 1.1 * DAY ? 110 : 70),
  }),
};
const EVENTS = {
  key: "events",
  name: "Event",
  text: count,
  of: ({ seq }) => ({ x: seq, from: 0, to: seq.at(-1) ?? 1, step: seq[0], marks: [] }),
  axis: (chart) => ({ ...chart.ticks(count), space: (_, __, ___, to) => 30 + 7 * count(to).length }),
};

/**
 * A chart over time or by events. `update(past)` takes the reply of /models/{model}/series or that of .../curve.
 *
 * `lines` may be a function of the number of events that the windows of a curve cover; undefined over time.
 */
export class LineChart extends Chart {
  constructor(options) {
    super({ ...options, lines: typeof options.lines === "function" ? [] : options.lines });
    this.linesOf = typeof options.lines === "function" ? options.lines : null;
    this.top = options.top;
    this.telling = options.marks; // whether the legend explains the marks
    this.passing = options.passing; // whether a number goes stale when nothing happens
    this.along = TIME;
    this.marks = [];
  }

  get firstColumn() {
    return this.along.name;
  }

  first(x) {
    return this.along.text(x);
  }

  /** Other lines, and another axis, need a new plot. */
  become(lines, along) {
    const labels = (some) => some.map(({ label }) => label).join("\n");
    if (along === this.along && labels(lines) === labels(this.lines)) return;
    Object.assign(this, { lines, along, data: null });
  }

  update(past) {
    const along = past.t ? TIME : EVENTS;
    this.become(this.linesOf?.(past.window) ?? this.lines, along);
    const { x, from, to, step, marks } = along.of(past);
    const first = !this.data;
    this.from = from;
    this.to = to;
    this.step = step;
    this.marks = marks ?? [];
    this.data = [x, ...this.columns(past, x)];
    if (first || !this.plot) this.draw();
    else this.plot.setData(this.data);
    this.showNumbers();
    this.fillTable();
    this.tellMarks();
    this.place.setAttribute("aria-label", this.summary());
  }

  latest(numbers) {
    return last(this.passing ? numbers.slice(-3) : numbers);
  }

  tellMarks() {
    if (!this.telling) return;
    const told = [
      ["start", "service started"],
      ["snapshot", "snapshot"],
    ].filter(([kind]) => this.marks.some((mark) => mark.kind === kind));
    this.legend.querySelectorAll(".marks").forEach((old) => old.remove());
    this.legend.append(
      ...told.map(([kind, label]) => {
        const times = this.marks.filter((mark) => mark.kind === kind).map((mark) => moment(mark.t));
        return h(
          "div",
          { class: "marks", title: times.slice(-5).join("\n") },
          h("dt", {}, h("span", { class: `swatch mark-${kind}`, "aria-hidden": "true" }), label),
          h("dd", { class: "hidden" }, times.slice(-5).join("; ")),
        );
      }),
    );
  }

  columns(past, x) {
    return this.lines.map((line) => past[line.key] ?? x.map(() => null)).toReversed();
  }

  options() {
    return {
      legend: { show: false },
      cursor: { sync: { key: this.along.key }, y: false, drag: { x: false, y: false }, points: { size: 7 } },
      scales: { x: { time: this.along === TIME, range: () => [this.from, this.to] }, y: { range: (_, low, high) => this.range(low, high) } },
      axes: [this.axis({ ...this.along.axis(this), size: 28 }), this.valueAxis()],
      series: [{}, ...this.series()],
      bands: this.bands?.(),
      hooks: { setCursor: [() => this.plot && this.showNumbers()], draw: [(plot) => drawMarks(plot, this.marks)] },
    };
  }

  /** From 0, or from just below the lowest number if all are far from 0 and no area is filled. */
  range(low, high) {
    if (low == null || (low === 0 && high === 0)) return [0, 1];
    if (this.top) return [0, this.top];
    const spread = high - low || Math.abs(high) || 1;
    const bottom = low - spread * 0.6 > 0 && !this.lines.some((line) => line.area) ? low - spread * 0.1 : 0;
    return [bottom, high + spread * 0.1];
  }

  summary() {
    const parts = this.lines.map((line, k) => {
      const there = this.numbers(k).filter((value) => value != null);
      if (!there.length) return `${line.label}: nothing`;
      const [low, high] = [there.reduce((a, b) => Math.min(a, b)), there.reduce((a, b) => Math.max(a, b))];
      return `${line.label}: last ${this.format(there.at(-1))}, lowest ${this.format(low)}, highest ${this.format(high)}`;
    });
    return `${this.title}, ${this.first(this.from)} to ${this.first(this.to)}. ${parts.join(". ")}.`;
  }
}

/** Stacked shares of 1: the names with most over the whole time, and all others together. */
export class SharesChart extends LineChart {
  constructor(options) {
    super({ ...options, lines: [], format: percent, top: 1 });
  }

  update(series) {
    const names = Object.keys(series.shares ?? {});
    const size = (name) => series.shares[name].reduce((sum, share) => sum + share, 0);
    const largest = names.toSorted((a, b) => size(b) - size(a)).slice(0, 5);
    const labels = names.length > largest.length ? [...largest, "all others"] : largest;
    this.become(
      labels.map((label, i) => ({ label, tone: `share-${i + 1}` })),
      TIME,
    );
    super.update(series);
  }

  /** The plot draws sums from the bottom; the legend shows the shares themselves. */
  columns({ t, shares }) {
    const there = (i) => Object.values(shares).some((own) => own[i] != null);
    const sum = (lines, i) => lines.reduce((total, { label }) => total + (shares[label][i] ?? 0), 0);
    // Where a share ends is rounded, not the share. So the numbers sum to 100 % too.
    const end = (k, i) =>
      k === this.lines.length - 1 ? 1 : Math.round(1000 * Math.min(1, sum(this.lines.slice(0, k + 1), i))) / 1000;
    const ends = this.lines.map((_, k) => t.map((_, i) => (there(i) ? end(k, i) : null)));
    this.shares = ends.map((own, k) => own.map((to, i) => (to == null ? null : to - (k ? ends[k - 1][i] : 0))));
    return ends;
  }

  series() {
    return this.lines.map((line) => ({
      label: line.label,
      stroke: colour("surface"),
      width: 1,
      fill: colour(line.tone),
      points: { show: false },
    }));
  }

  bands() {
    return this.lines.slice(1).map((line, i) => ({ series: [i + 2, i + 1], fill: colour(line.tone) }));
  }

  numbers(k) {
    return this.shares[k];
  }

  summary() {
    const parts = this.lines.map(({ label }, k) => `${label}: ${percent(last(this.shares[k]))}`);
    return `${this.title}, now. ${parts.join(". ")}.`;
  }
}

/**
 * How often label 1 came where the model predicted p: over the last events, and over all.
 * `update` takes {window, total}, each [{p, ones, count}].
 */
export class Calibration extends Chart {
  constructor(options) {
    const lines = [
      { key: "window", label: options.last, tone: "accent" },
      { key: "total", label: "all events", tone: "second" },
      { label: "as predicted", tone: "ink-2", dash: true },
    ];
    super({ ...options, lines, format: percent });
    this.step = 1; // no line here has gaps
    this.firstColumn = "Mean prediction";
    this.first = percent;
  }

  update(buckets) {
    const filled = (key) => buckets[key].filter((bucket) => bucket.count >= FEWEST);
    const points = [
      ...filled("window").map((b) => ({ ...b, line: 0 })),
      ...filled("total").map((b) => ({ ...b, line: 1 })),
    ];
    points.sort((a, b) => a.p - b.p);
    const column = (line) => [null, ...points.map((point) => (point.line === line ? point.ones : null)), null];
    const x = [0, ...points.map((point) => point.p), 1];
    this.counts = [null, ...points.map((point) => point.count), null];
    this.data = [x, x, column(1), column(0)];
    if (!this.plot) this.draw();
    else this.plot.setData(this.data);
    this.showNumbers();
    this.fillTable();
    const told = filled("window").map(
      ({ p, ones, count }) => `predicted ${percent(p)}, came ${percent(ones)} of ${count}`,
    );
    this.place.setAttribute(
      "aria-label",
      `${this.title}, ${this.lines[0].label}: ${told.join("; ") || "nothing yet"}.`,
    );
  }

  options() {
    const share = () => [0, 1];
    return {
      legend: { show: false },
      cursor: { y: false, drag: { x: false, y: false }, points: { size: 7 } },
      scales: { x: { time: false, range: share }, y: { range: share } },
      axes: [this.axis({ ...this.ticks((share) => this.tick(share)), space: 40, size: 28 }), this.valueAxis()],
      series: [{}, ...this.series()],
      hooks: { setCursor: [() => this.plot && this.showNumbers()] },
    };
  }

  series() {
    const all = super
      .series()
      .map((line) => ({ ...line, spanGaps: true, points: { show: true, size: 5, fill: line.stroke } }));
    return [{ ...all[0], points: { show: false } }, all[1], all[2]];
  }

  /** Show the share of label 1 at the cursor, and of how many events. */
  showNumbers() {
    const at = this.plot.cursor.idx;
    [0, 1].forEach((line) => {
      const share = at == null ? null : this.numbers(line)[at];
      say(this.values[line], share != null ? `${percent(share)} of ${count(this.counts[at])}` : "");
    });
    say(this.values[2], at == null ? "" : percent(this.data[0][at]));
  }
}

/** A small line without axes; `label` says in words what it shows. */
export function sparkline(values, label) {
  const there = values.map((value, i) => [i, value]).filter(([, value]) => value != null);
  if (there.length < 2) return h("span", { class: "faint" }, "–");
  const [low, high] = [Math.min(...there.map(([, v]) => v)), Math.max(...there.map(([, v]) => v))];
  const x = (i) => (2 + (116 * i) / (values.length - 1)).toFixed(1);
  const y = (value) => (high > low ? 24 - (20 * (value - low)) / (high - low) : 14).toFixed(1);
  const [endX, endY] = [x(there.at(-1)[0]), y(there.at(-1)[1])];
  return svg(
    "svg",
    { class: "spark", viewBox: "0 0 120 28", role: "img", "aria-label": label, preserveAspectRatio: "none" },
    svg("polyline", { points: there.map(([i, value]) => `${x(i)},${y(value)}`).join(" ") }),
    svg("circle", { cx: endX, cy: endY, r: 2.2 }),
  );
}

/** A sample of a chart's line, for the legend. */
function swatch(line) {
  return h("span", { class: `swatch ${line.dash ? "dashed" : ""} tone-${line.tone}`, "aria-hidden": "true" });
}

/** Draw starts as vertical lines, and snapshots as small diamonds at the bottom. */
function drawMarks(plot, marks) {
  const { ctx, bbox } = plot;
  const pixel = devicePixelRatio;
  ctx.save();
  ctx.strokeStyle = ctx.fillStyle = colour("mark");
  ctx.lineWidth = pixel;
  for (const { t, kind } of marks) {
    const x = Math.round(plot.valToPos(t, "x", true));
    if (x < bbox.left || x > bbox.left + bbox.width) continue;
    const bottom = bbox.top + bbox.height;
    ctx.beginPath();
    if (kind === "start") {
      ctx.setLineDash([2 * pixel, 3 * pixel]);
      ctx.moveTo(x, bbox.top);
      ctx.lineTo(x, bottom);
      ctx.stroke();
    } else {
      const r = 3.5 * pixel;
      ctx.moveTo(x, bottom - r);
      ctx.lineTo(x + r, bottom);
      ctx.lineTo(x, bottom + r);
      ctx.lineTo(x - r, bottom);
      ctx.fill();
    }
  }
  ctx.restore();
}

/** Points without neighbours, which no line would show. */
function alone(plot, seriesIndex) {
  const values = plot.data[seriesIndex];
  const [first, final] = plot.series[0].idxs;
  const found = [];
  for (let i = first; i <= final; i++) {
    const near = [i - 2, i - 1, i + 1, i + 2].some((k) => values[k] != null);
    if (values[i] != null && !near) found.push(i);
  }
  return found;
}

function last(values) {
  return values.findLast((value) => value != null) ?? null;
}
