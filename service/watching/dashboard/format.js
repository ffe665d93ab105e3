// Numbers as text, with their units. A missing number is an en dash.

const NONE = "–";
const whole = new Intl.NumberFormat("en-US", { maximumFractionDigits: 0 });
const date = new Intl.DateTimeFormat("en-GB", { day: "numeric", month: "short" });
const clock = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit" });
const seconds = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit" });

const orNone = (format) => (number) => (number == null ? NONE : format(number));

/** 45,312 */
export const count = orNone((n) => whole.format(n));

/** 1,234/s and 0.4/s */
export const rate = orNone(
  (n) => `${n === 0 ? "0" : n < 0.1 ? n.toPrecision(1) : n < 10 ? n.toFixed(1) : whole.format(n)}/s`,
);

/** 0.4321: nats */
export const loss = orNone((n) => (n < 100 ? n.toFixed(4) : number(n)));

/** 86.1 % */
export const percent = orNone((n) => `${(100 * n).toFixed(1)} %`);

/** A probability: 86.1 %, and 99.987 % where one digit would round to certainty. */
export const probability = orNone((p) => {
  const rarer = Math.min(p, 1 - p);
  return `${(100 * p).toFixed(rarer > 0 ? Math.min(8, Math.max(1, Math.ceil(-Math.log10(rarer)))) : 0)} %`;
});

/** 0.314 ms, 12.3 ms, 1.20 s */
export const milliseconds = orNone((n) => (n < 1000 ? `${significant(n, 3)} ms` : `${significant(n / 1000, 3)} s`));

/** 0.31 s, 31 s, 4.2 min, 3 h, 2 d */
export const duration = orNone((n) => {
  const [size, unit] = n < 120 ? [1, "s"] : n < 7200 ? [60, "min"] : n < 172800 ? [3600, "h"] : [86400, "d"];
  return `${significant(n / size, 2)} ${unit}`;
});

/** A weight, score or value: up to four significant digits; very small and large ones with an exponent. */
export const number = orNone((n) => {
  if (n === 0) return "0";
  const size = Math.abs(n);
  if (Number.isInteger(n) && size < 1e7) return whole.format(n).replace("-", "−");
  if (size < 1e-4 || size >= 1e6)
    return n
      .toExponential(2)
      .replace(/\.?0+e/, "e")
      .replace("e+", "e")
      .replace(/^-/, "−");
  return significant(n, 4)
    .replace(/\.0+$|(\.\d*?)0+$/, "$1")
    .replace("-", "−");
});

/** The same with its sign. */
export const signed = orNone((n) => (n > 0 ? `+${number(n)}` : number(n)));

function significant(n, digits) {
  if (n === 0) return "0";
  const decimals = Math.max(0, digits - 1 - Math.floor(Math.log10(Math.abs(n))));
  return n.toFixed(Math.min(decimals, 8));
}

/** Time of day to the second; `t` in seconds since 1970. */
export const time = (t) => seconds.format(t * 1000);

/** Date and time. */
export const moment = (t) => `${date.format(t * 1000)}, ${seconds.format(t * 1000)}`;

/** Labels for a time axis with ticks `step` seconds apart; `days`: whether it covers more than one. */
export function ticks(times, step, days) {
  const labels = times.map((t) => {
    const [day, hour] = [date.format(t * 1000), (step < 60 ? seconds : clock).format(t * 1000)];
    if (step >= 86400 || new Date(t * 1000).toTimeString().startsWith("00:00:00")) return day;
    return days ? `${day} ${hour}` : hour;
  });
  return labels.map((label, i) => (labels.lastIndexOf(label) > i ? "" : label)); // the same hour a day later
}

/** Round numbers from `low` to `high`, `least` apart or as far as it takes for no two to read the same. */
export function rounds(low, high, least, text) {
  for (let power = 10 ** Math.floor(Math.log10(least)); ; power *= 10) {
    for (const step of [power, 2 * power, 5 * power].filter((step) => step > 0.999 * least)) {
      const first = Math.ceil(low / step - 1e-9);
      const found = Array.from({ length: Math.floor(high / step + 1e-9) - first + 1 }, (_, k) => (first + k) * step);
      if (new Set(found.map(text)).size === found.length) return found;
    }
  }
}
