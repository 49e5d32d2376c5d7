// The third view: one rollout, token by token, under one signal or two.

import {nodeDetails} from "./details.js";
import {choice, h, name} from "./dom.js";
import {count, isKnown, percent} from "./format.js";
import {Navigator} from "./navigator.js";
import {Questions} from "./rollout.js";
import {tokenRoute} from "./route.js";
import {TextPane, isKept} from "./text.js";
import {ValueLine} from "./valueline.js";

const NONE = -1;

/** The view; rollouts are read when they are shown. */
export class Tokens {
  constructor(section, run) {
    this.run = run;
    this.questions = new Questions(run);
    this.navigator = new Navigator(run, this.questions);
    this.signals = [run.first, NONE];
    this.threshold = 0;
    this.rollout = null;
    this.active = -1;
    this.panes = [];
    this.#build(section);
  }

  #build(section) {
    const every = this.run.signals.map((_, i) => [i, this.run.label(i)]);
    const set = (which) => (value) => ((this.signals[which] = Number(value)), this.#draw(), this.#activate(this.active));
    this.first = choice("signal", every, this.signals[0], set(0), { id: "signal-a" });
    this.second = choice("beside it", [[NONE, "none"], ...every], NONE, set(1), { id: "signal-b" });
    this.slider = h("input", { type: "range", id: "threshold", min: 0, max: 1, step: 0.02, value: 0, oninput: () => this.#setThreshold(Number(this.slider.value)) });
    this.kept = h("p", { class: "muted kept", role: "status" });
    this.title = h("h2", {}, "Rollouts");
    this.body = h("div", { class: "rollout" });
    this.details = h("aside", { class: "details", "aria-label": "Token", "aria-live": "polite" });
    section.append(
      this.navigator.element,
      h(
        "div",
        { class: "reader" },
        h("div", { class: "controls" }, this.first, this.second, h("label", { class: "choice" }, h("span", {}, "helps with probability at least"), this.slider), this.kept),
        legend(),
        this.title,
        this.body,
      ),
      this.details,
    );
    document.addEventListener("keydown", (event) => this.#onKey(event, section));
  }

  #onKey(event, section) {
    if (section.hidden || event.ctrlKey || event.metaKey || event.altKey || /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName)) return;
    const by = { j: 1, k: -1 }[event.key];
    if (by) {
      const next = this.navigator.step(by);
      if (next) location.hash = next;
    } else if (event.key === "/") {
      event.preventDefault();
      this.navigator.box.focus();
    }
  }

  /** Shows what an address names; the first rollout where it names none. */
  async show(route) {
    const found = route.question === undefined ? (this.rollout ?? this.navigator.shown[0]) : this.navigator.locate(route.question, route.rollout);
    if (!found) {
      this.title.textContent = route.question === undefined ? "No rollout to show" : "This page has no such rollout";
      this.body.replaceChildren(h("p", {}, name(route.question === undefined ? "" : `question ${route.question}${Number.isNaN(route.rollout) ? "" : `, rollout ${route.rollout}`}: not run, left out, or less telling than those that have room here.`)));
      this.details.replaceChildren();
      return;
    }
    if (route.signals?.length) this.#choose(route.signals);
    if (found !== this.rollout || !this.question) {
      this.rollout = found;
      const question = await this.questions.load(found.place);
      if (this.rollout !== found) return; // another one was chosen meanwhile
      this.question = question;
      this.texts = question.texts(found.index);
      this.nodes = question.nodesOf(found.index).map((node) => ({ node, ...question.node(node) }));
      this.active = -1;
    }
    this.navigator.mark(found);
    this.active = this.#nearest(route.position ?? null);
    this.#draw();
    this.#activate(this.active, { scroll: isKnown(route.position) });
  }

  /** Chooses the signals that an address names; those that are not of this run stay as they are. */
  #choose(wanted) {
    const selects = [this.first, this.second].map((label) => label.querySelector("select"));
    const places = wanted.map((names) => this.run.signals.findIndex((signal) => signal.every((part, i) => part === names[i])));
    if (places.includes(-1)) return;
    this.signals = [places[0], places[1] ?? NONE];
    selects.forEach((select, i) => (select.value = String(this.signals[i])));
  }

  /** The node at a position, or the last before it; where none is asked for, the first whose sign is known. */
  #nearest(position) {
    if (position === null) {
      if (this.active >= 0) return this.active;
      const known = this.nodes.findIndex(({ node }) => this.question.at(node, this.signals[0]).resolved);
      return Math.max(known, this.nodes.length ? 0 : -1);
    }
    let best = this.nodes.length ? 0 : -1;
    this.nodes.forEach((node, i) => {
      if (node.position <= position) best = i;
    });
    return best;
  }

  #draw() {
    if (!this.question) return;
    const { question, rollout } = this.rollout;
    const outcome = h("span", { class: this.rollout.correct ? "verdict helps" : "verdict harms" }, this.rollout.correct ? "correct" : "incorrect");
    this.title.replaceChildren(outcome, " ", name(question), ` · rollout ${rollout}`, this.rollout.truncated ? " · cut by the length limit" : "");
    const on = { hover: (i) => this.#preview(i), select: (i, how) => this.#activate(i, how) };
    this.line = new ValueLine(this.texts.length, this.nodes, this.rollout.correct, (i) => this.#activate(i, { scroll: true }));
    this.panes = this.#shownSignals().map((signal) => {
      const nodes = this.nodes.map((n) => ({ ...n, at: this.question.at(n.node, signal) }));
      return new TextPane(`Text under ${this.run.label(signal)}`, this.texts, nodes, on);
    });
    const titles = this.#shownSignals().map((signal, i) => h("h3", {}, this.panes.length > 1 ? `${"AB"[i]}: ` : "", name(this.run.label(signal))));
    this.body.replaceChildren(this.line.element, h("div", { class: this.panes.length > 1 ? "panes two" : "panes" }, this.panes.map((pane, i) => h("div", {}, titles[i], pane.element))));
    this.#setThreshold(this.threshold);
    this.panes.forEach((pane) => pane.activate(this.active));
    this.line.mark(this.active);
    this.#preview(null);
  }

  #shownSignals() {
    return this.signals.filter((signal) => signal !== NONE);
  }

  #setThreshold(threshold) {
    this.threshold = threshold;
    this.panes.forEach((pane) => pane.paint(threshold));
    if (!this.panes.length) return;
    const [tokens, mass] = this.run.thresholds.kept[this.signals[0]].map((shares) => shares[Math.round(threshold * (this.run.thresholds.at.length - 1))]);
    const here = this.panes[0].nodes.filter(({ at }) => isKept(at, threshold)).length;
    this.kept.textContent = `≥ ${threshold.toFixed(2)}: ${percent(tokens)} of the run's tokens and ${percent(mass)} of |d|² kept; here ${count(here)} of ${count(this.nodes.length)} nodes`;
  }

  #preview(place) {
    const shown = place ?? this.active;
    const node = this.nodes?.[shown];
    if (!node) {
      this.details.replaceChildren(h("p", { class: "muted" }, "No token of this rollout was drawn from."));
      return;
    }
    this.details.replaceChildren(...nodeDetails(this.run, this.question, node.node, this.texts[node.position], this.#shownSignals()).flat().filter(Boolean));
  }

  #activate(place, how = {}) {
    if (place === null || place < 0) return;
    this.active = place;
    const from = this.panes.findIndex((pane) => pane.element.contains(document.activeElement));
    this.panes.forEach((pane, i) => pane.activate(place, { ...how, focus: how.focus && i === Math.max(0, from) }));
    this.line.mark(place);
    this.#preview(null);
    const isDefault = this.signals[0] === this.run.first && this.signals[1] === NONE;
    const signals = isDefault ? [] : this.#shownSignals().map((signal) => this.run.signals[signal]);
    history.replaceState(null, "", tokenRoute(this.rollout.question, this.rollout.rollout, this.nodes[place].position, signals));
  }
}

function legend() {
  const samples = [
    ["token t-10", "−1"],
    ["token t-5", "−.5"],
    ["token t0", "0"],
    ["token t5", ".5"],
    ["token t10", "+1"],
    ["token t10 faint", "not told from 0"],
    ["token t10 sure", "sign known"],
    ["token unknown", "cosine not known"],
  ];
  return h("p", { class: "legend muted" }, "cosine of signal and success: ", samples.map(([kind, text]) => [h("span", { class: kind }, text), " "]), "Other tokens were not drawn from. Keys: arrows between nodes, j and k between rollouts, / to search.");
}
