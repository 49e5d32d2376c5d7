// Charts as SVG: an interval as a bar, and scores over the bins of a grouping.

import {seriesClass} from "./colors.js";
import {h, svg} from "./dom.js";
import {isKnown, number} from "./format.js";

const BAR = { width: 150, height: 18 };

/** A value with its interval on a scale from `from` to `to`; `mark`, another value, is drawn as a line across. */
export function intervalBar(value, low, high, { from, to, mark = null, kind = "" }) {
  if (!isKnown(value)) return null;
  const x = (v) => 4 + ((Math.max(from, Math.min(to, v)) - from) / (to - from)) * (BAR.width - 8);
  const middle = BAR.height / 2;
  return svg(
    "svg",
    { class: `bar ${kind}`, viewBox: `0 0 ${BAR.width} ${BAR.height}`, width: BAR.width, height: BAR.height, "aria-hidden": "true" },
    svg("line", { class: "axis", x1: x(from), x2: x(to), y1: middle, y2: middle }),
    isKnown(mark) ? svg("line", { class: "mark", x1: x(mark), x2: x(mark), y1: 1, y2: BAR.height - 1 }) : null,
    isKnown(low) ? svg("line", { class: "interval", x1: x(low), x2: x(high), y1: middle, y2: middle }) : null,
    svg("circle", { class: "point", cx: x(value), cy: middle, r: 4 }),
  );
}

const CHART = { width: 460, height: 230, left: 40, right: 8, top: 10, bottom: 44 };

/**
 * Scores with intervals over bins, one colour and shape a series.
 *
 * series: {place, label, points: [{bin, value, low, high}]}; bins: their labels, in order.
 */
export function binsChart(title, bins, series) {
  const every = series.flatMap((s) => s.points).filter((p) => isKnown(p.value));
  if (every.length === 0) return h("p", { class: "muted" }, `${title}: nothing is known here.`);
  const ends = every.flatMap((p) => [p.value, p.low, p.high]).filter(isKnown);
  const low = Math.max(-1, Math.min(0, ...ends));
  const high = Math.min(1, Math.max(0.2, ...ends));
  const { width, height, left, right, top, bottom } = CHART;
  const x = (bin, i) => left + ((width - left - right) * (bin + (i + 1) / (series.length + 1))) / bins.length;
  const y = (v) => top + ((high - Math.max(low, Math.min(high, v))) / (high - low)) * (height - top - bottom);
  const ticks = scaleTicks(low, high);
  const points = series.flatMap((s, i) =>
    s.points
      .filter((p) => isKnown(p.value))
      .map((p) => {
        const at = x(bins.indexOf(p.bin), i);
        return svg(
          "g",
          { class: seriesClass(s.place) },
          svg("title", {}, `${s.label}, ${p.bin}: ${number(p.value)} [${number(p.low)}, ${number(p.high)}]`),
          isKnown(p.low) ? svg("line", { class: "interval", x1: at, x2: at, y1: y(p.low), y2: y(p.high) }) : null,
          pointShape(s.place, at, y(p.value)),
        );
      }),
  );
  return svg(
    "svg",
    { class: "chart", viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `${title}: ${described(series)}` },
    ticks.map((tick) => [
      svg("line", { class: tick === 0 ? "zero" : "grid", x1: left, x2: width - right, y1: y(tick), y2: y(tick) }),
      svg("text", { class: "tick", x: left - 6, y: y(tick) + 4, "text-anchor": "end" }, number(tick, 1)),
    ]),
    bins.map((bin, i) => svg("text", { class: "tick", x: x(i, (series.length - 1) / 2), y: height - bottom + 16, "text-anchor": "middle" }, shortened(bin, bins.length))),
    svg("text", { class: "title", x: (left + width) / 2, y: height - 6, "text-anchor": "middle" }, title),
    points,
  );
}

/** Points of a series, told apart without colour too. */
function pointShape(place, x, y) {
  const shapes = [
    () => svg("circle", { class: "point", cx: x, cy: y, r: 4 }),
    () => svg("rect", { class: "point", x: x - 4, y: y - 4, width: 8, height: 8 }),
    () => svg("path", { class: "point", d: `M${x} ${y - 5}L${x + 5} ${y + 4}H${x - 5}Z` }),
    () => svg("path", { class: "point", d: `M${x} ${y - 6}L${x + 5} ${y}L${x} ${y + 6}L${x - 5} ${y}Z` }),
  ];
  return shapes[(place + Math.floor(place / 8)) % shapes.length]();
}

function described(series) {
  return series
    .map((s) => `${s.label} ${s.points.filter((p) => isKnown(p.value)).map((p) => `${p.bin} ${number(p.value)}`).join(", ")}`)
    .join("; ");
}

function scaleTicks(low, high) {
  const step = high - low > 1 ? 0.5 : high - low > 0.5 ? 0.2 : 0.1;
  const ticks = [];
  for (let i = Math.ceil(low / step - 1e-9); i <= high / step + 1e-9; i++) ticks.push(i * step);
  return ticks;
}

function shortened(text, bins) {
  const most = Math.max(4, Math.floor(70 / bins));
  return text.length <= most ? text : `${text.slice(0, most - 1)}…`;
}
