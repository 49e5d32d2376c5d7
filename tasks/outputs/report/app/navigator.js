// The list of rollouts: filtered by outcome, question and known signs, and searched by their text.

import {choice, h, name} from "./dom.js";
import {count} from "./format.js";
import {tokenRoute} from "./route.js";

const ROW = 34;
const BEYOND = 8;
const AROUND = 24;

/** Filters, search and the list itself, of which only the visible rows exist. */
export class Navigator {
  constructor(run, questions) {
    this.run = run;
    this.questions = questions;
    this.every = run.questions.flatMap((question, place) =>
      question.rollout.map((rollout, index) => ({
        place,
        index,
        question: question.id,
        rollout,
        correct: question.correct[index] === 1,
        truncated: question.truncated[index] === 1,
        tokens: question.tokens[index],
        resolved: question.resolved[index],
      })),
    );
    this.filters = { outcome: "", question: "", resolved: false };
    this.found = null;
    this.search = 0; // counts searches, so that one knows when it is not the last
    this.isSearching = false;
    this.current = null;
    this.#build();
    this.#filter();
  }

  #build() {
    const outcomes = [["", "all"], ["right", "correct"], ["wrong", "incorrect"]];
    const ids = [["", "all"], ...this.run.questions.map((q, i) => [String(i), q.id])];
    const set = (key) => (value) => ((this.filters[key] = value), this.#filter());
    this.box = h("input", { type: "search", class: "search", placeholder: "text in rollouts ( / )", "aria-label": "Search the text of the rollouts", onchange: () => this.#find(this.box.value) });
    this.status = h("p", { class: "muted", role: "status" });
    this.rows = h("ol", { class: "rows" });
    this.list = h("div", { class: "list", tabindex: "0", role: "region", "aria-label": "Rollouts", onscroll: () => this.#draw() }, this.rows);
    const resolved = h("input", { type: "checkbox", onchange: () => set("resolved")(resolved.checked) });
    this.element = h(
      "nav",
      { class: "navigator", "aria-label": "Rollouts" },
      h(
        "details",
        { open: !matchMedia("(max-width: 760px)").matches, ontoggle: () => this.#draw() },
        h("summary", {}, "Rollouts"),
        this.box,
        choice("outcome", outcomes, "", set("outcome")),
        choice("question", ids, "", set("question")),
        h("label", { class: "choice" }, resolved, h("span", {}, "with known signs only")),
        this.status,
        this.list,
      ),
    );
  }

  #filter() {
    const { outcome, question, resolved } = this.filters;
    this.shown = this.every.filter(
      (r) =>
        (outcome === "" || r.correct === (outcome === "right")) &&
        (question === "" || r.place === Number(question)) &&
        (!resolved || r.resolved > 0) &&
        (this.found === null || this.found.has(r)),
    );
    this.rows.style.setProperty("height", `${this.shown.length * ROW}px`);
    this.list.scrollTop = 0;
    if (!this.isSearching) this.#say("");
    this.#draw();
  }

  #say(more) {
    const left = this.run.left_out;
    const without = left.rollouts ? `; ${count(left.rollouts)} less telling ones had no room in this page` : "";
    const nodes = left.nodes ? `, and ${count(left.nodes)} nodes of those that had` : "";
    this.status.textContent = `${count(this.shown.length)} of ${count(this.every.length)} rollouts${without}${nodes}${more}`;
  }

  /** Looks for a text in all rollouts, question by question; a new search ends the one before. */
  async #find(text) {
    const wanted = text.toLowerCase();
    const mine = ++this.search;
    this.found = wanted === "" ? null : new Map();
    this.isSearching = true;
    if (wanted !== "") {
      for (let place = 0; place < this.run.questions.length; place++) {
        const question = await this.questions.load(place);
        if (mine !== this.search) return;
        const of = this.every.filter((r) => r.place === place);
        for (const rollout of of) {
          const match = findIn(question.texts(rollout.index), wanted);
          if (match) this.found.set(rollout, match);
        }
        if (place % 8 === 0) {
          this.#filter();
          this.#say(`; searching, question ${place + 1} of ${this.run.questions.length}`);
          await new Promise((resolve) => setTimeout(resolve));
          if (mine !== this.search) return;
        }
      }
    }
    this.isSearching = false;
    this.#filter();
  }

  #draw() {
    const first = Math.max(0, Math.floor(this.list.scrollTop / ROW) - BEYOND);
    const last = Math.min(this.shown.length, first + Math.ceil(this.list.clientHeight / ROW) + 2 * BEYOND);
    this.rows.replaceChildren(...this.shown.slice(first, last).map((r, i) => this.#row(r, first + i)));
  }

  #row(r, place) {
    const match = this.found?.get(r);
    const isCurrent = r === this.current;
    return h(
      "li",
      { style: { top: `${place * ROW}px` } },
      h(
        "a",
        { href: tokenRoute(r.question, r.rollout, match?.position ?? null), "aria-current": isCurrent ? "true" : null, class: r.correct ? "right" : "wrong" },
        h("span", { class: "outcome", "aria-hidden": "true" }, r.correct ? "✓" : "✗"),
        h("span", { class: "unseen" }, r.correct ? "correct, " : "incorrect, "),
        match ? h("span", { class: "match" }, name(match.around)) : [name(r.question), ` · ${r.rollout}`],
        h("span", { class: "muted known" }, r.resolved ? `${r.resolved} known` : r.truncated ? "cut" : ""),
      ),
    );
  }

  /** The rollout that an address names, or null. */
  locate(question, rollout) {
    return this.every.find((r) => r.question === question && r.rollout === rollout) ?? null;
  }

  /** Marks the rollout that is shown. */
  mark(rollout) {
    this.current = rollout;
    const place = this.shown.indexOf(rollout);
    const top = place * ROW;
    const isSeen = top >= this.list.scrollTop && top + ROW <= this.list.scrollTop + this.list.clientHeight;
    if (place >= 0 && !isSeen) this.list.scrollTop = Math.max(0, top - this.list.clientHeight / 2);
    this.#draw();
  }

  /** The address of the rollout that comes some steps after the current one, or null. */
  step(by) {
    const place = this.shown.indexOf(this.current);
    const next = this.shown[place < 0 ? 0 : place + by];
    return next ? tokenRoute(next.question, next.rollout, this.found?.get(next)?.position ?? null) : null;
  }
}

/** Where a text first occurs: the position of its token, and the text around it. */
function findIn(texts, wanted) {
  const whole = texts.join("");
  const place = whole.toLowerCase().indexOf(wanted);
  if (place < 0) return null;
  let position = 0;
  for (let length = 0; position < texts.length - 1; position++) {
    length += texts[position].length;
    if (length > place) break;
  }
  const start = Math.max(0, place - AROUND);
  return { position, around: `${start ? "…" : ""}${whole.slice(start, place + wanted.length + AROUND)}` };
}
