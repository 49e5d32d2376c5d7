// A rollout as text, its nodes coloured by what a signal does there.

import {tone} from "./colors.js";
import {h} from "./dom.js";
import {interval, isKnown, visible} from "./format.js";

const CHUNK = 200;
const LONGEST_CHUNK = 1500;

/** The text of a rollout under one signal; nodes can be focused, hovered over and clicked. */
export class TextPane {
  /**
   * texts: of all tokens; nodes: [{node, position, at}] in order; on: {hover(i or null), select(i)}, with places in nodes.
   */
  constructor(label, texts, nodes, on) {
    this.nodes = nodes;
    this.active = -1;
    this.spans = [];
    this.element = h("div", {
      class: "text-pane",
      role: "group",
      "aria-label": label,
      onmouseover: (event) => on.hover(placeOf(event.target)),
      onmouseleave: () => on.hover(null),
      onclick: (event) => placeOf(event.target) !== null && on.select(placeOf(event.target)),
      onkeydown: (event) => this.#onKey(event, on),
    });
    this.#fill(texts);
  }

  #fill(texts) {
    let chunk = h("div", { class: "chunk", dir: "auto" });
    let plain = "";
    let size = 0;
    let next = 0;
    const flush = () => {
      if (plain) chunk.append(plain);
      plain = "";
    };
    texts.forEach((text, position) => {
      if (this.nodes[next]?.position === position) {
        flush();
        chunk.append(this.#span(text, next));
        next += 1;
      } else plain += text;
      size += 1;
      if ((size >= CHUNK && text.endsWith("\n")) || size >= LONGEST_CHUNK) {
        flush();
        this.element.append(chunk);
        chunk = h("div", { class: "chunk", dir: "auto" });
        size = 0;
      }
    });
    flush();
    this.element.append(chunk);
  }

  #span(text, place) {
    const { at, position } = this.nodes[place];
    const known = isKnown(at.cosine) ? `cosine ${interval(at.cosine, at.cosine_low, at.cosine_high)}` : "cosine not known";
    const shown = text === "" ? "◌" : text;
    const span = h("span", { role: "button", tabindex: "-1", "data-place": place, "aria-label": `${visible(text)}, position ${position}, ${known}` }, shown);
    this.spans.push(span);
    return span;
  }

  /** Colours the nodes; those that help less probably than the threshold have no colour. */
  paint(threshold) {
    this.nodes.forEach(({ at }, i) => {
      const classes = ["token"];
      if (threshold > 0 && !isKept(at, threshold)) classes.push("out");
      else if (!isKnown(at.cosine)) classes.push("unknown");
      else {
        classes.push(tone(at.cosine));
        if (!at.resolved && !(at.cosine_low > 0 || at.cosine_high < 0)) classes.push("faint");
      }
      if (at.resolved) classes.push("sure");
      if (i === this.active) classes.push("active");
      this.spans[i].className = classes.join(" ");
    });
  }

  /** Marks a node; focus moves there if asked. */
  activate(place, { focus = false, scroll = false } = {}) {
    const before = this.spans[this.active];
    before?.classList.remove("active");
    before?.setAttribute("tabindex", "-1");
    this.active = place;
    const span = this.spans[place];
    if (!span) return;
    span.classList.add("active");
    span.setAttribute("tabindex", "0");
    if (focus) span.focus({ preventScroll: true });
    if (scroll) span.scrollIntoView({ block: "center" });
  }

  #onKey(event, on) {
    const place = placeOf(event.target);
    const steps = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1, Home: -Infinity, End: Infinity };
    if (place === null) return;
    if (event.key in steps) {
      event.preventDefault();
      on.select(Math.max(0, Math.min(this.nodes.length - 1, place + steps[event.key])), { focus: true, scroll: true });
    } else if (event.key === "Enter" || event.key === " ") {
      event.preventDefault();
      on.select(place, { focus: true });
    }
  }
}

/** Whether a token helps with at least a probability, which the page keeps in steps of 5e-5. */
export function isKept(at, threshold) {
  return at.p_positive >= threshold - 2.5e-5;
}

function placeOf(target) {
  const place = target.dataset?.place;
  return place === undefined ? null : Number(place);
}
