// The student's success probability along a rollout.

import {svg} from "./dom.js";
import {isKnown, number} from "./format.js";

const SIZE = { width: 1000, height: 120, left: 34, right: 8, top: 8, bottom: 18 };
const MOST_POINTS = 1000;

/** The line over positions; `onSelect` is given the place of the node nearest to a click. */
export class ValueLine {
  constructor(length, nodes, correct, onSelect) {
    const { width, height, left, right, top, bottom } = SIZE;
    this.x = (position) => left + ((width - left - right) * (position + 0.5)) / Math.max(1, length);
    this.nodes = nodes;
    const y = (value) => top + (1 - value) * (height - top - bottom);
    const points = nodes.filter((n) => isKnown(n.value)).map((n) => [this.x(n.position), y(n.value)]);
    const end = [this.x(length - 0.5), y(correct ? 1 : 0)];
    this.marker = svg("line", { class: "marker", y1: top, y2: height - bottom, visibility: "hidden" });
    this.element = svg(
      "svg",
      {
        class: "values",
        viewBox: `0 0 ${width} ${height}`,
        role: "img",
        "aria-label": `Success probability along the rollout: ${sampled(nodes).map((n) => `${number(n.value)} at ${n.position}`).join(", ")}; it ends ${correct ? "correct" : "incorrect"}`,
        onclick: (event) => this.#nearest(event, onSelect),
      },
      [0, 0.5, 1].map((tick) => [
        svg("line", { class: "grid", x1: left, x2: width - right, y1: y(tick), y2: y(tick) }),
        svg("text", { class: "tick", x: left - 5, y: y(tick) + 4, "text-anchor": "end" }, number(tick, 1)),
      ]),
      svg("text", { class: "tick", x: width - right, y: height - 4, "text-anchor": "end" }, `${length} tokens`),
      svg("text", { class: "tick", x: left, y: height - 4 }, "success from here"),
      svg("polyline", { class: "line", points: [...points, end].map((p) => p.join(",")).join(" ") }),
      points.length <= MOST_POINTS ? points.map(([px, py]) => svg("circle", { class: "point", cx: px, cy: py, r: 3 })) : null,
      svg("circle", { class: correct ? "end right" : "end wrong", cx: end[0], cy: end[1], r: 4 }),
      this.marker,
    );
  }

  /** Marks a node. */
  mark(place) {
    const node = this.nodes[place];
    this.marker.setAttribute("visibility", node ? "visible" : "hidden");
    if (!node) return;
    for (const end of ["x1", "x2"]) this.marker.setAttribute(end, this.x(node.position));
  }

  #nearest(event, onSelect) {
    const box = this.element.getBoundingClientRect();
    const at = ((event.clientX - box.left) / box.width) * SIZE.width;
    let best = 0;
    this.nodes.forEach((node, i) => {
      if (Math.abs(this.x(node.position) - at) < Math.abs(this.x(this.nodes[best].position) - at)) best = i;
    });
    if (this.nodes.length) onSelect(best);
  }
}

/** A few nodes, for a description in words. */
function sampled(nodes) {
  const step = Math.max(1, Math.floor(nodes.length / 8));
  return nodes.filter((_, i) => i % step === 0);
}
