// What is known at one node: the signals there, and its branches.

import {h, name, svg} from "./dom.js";
import {count, interval, isKnown, number, percent, probability, significant, visible, wilson} from "./format.js";

/** The panel of a node; `signals` are places of one or two signals. */
export function nodeDetails(run, question, node, token, signals) {
  const facts = question.node(node);
  return [
    h("h3", {}, "at ", h("code", {}, name(visible(token))), `, position ${facts.position}`),
    h("dl", { class: "about" }, [
      ["success from here", number(facts.value)],
      ["student's probability", probability(facts.student_prob)],
      ["entropy", `${significant(facts.entropy)} nat`],
      ["stands for", `${significant(facts.weight)} positions`],
    ].map(([what, value]) => h("div", {}, h("dt", {}, what), h("dd", {}, value)))),
    signals.map((signal) => signalFacts(run, question.at(node, signal), signal)),
    branchTable(run, question.branchesOf(node, signals), signals),
    h("p", { class: "muted" }, "Bars: where success (ideal) and the signal push the logit of each token, relative to the largest; their numbers show on hover. Success: of the draws from there, with 95 % intervals."),
    facts.tail_prob > 5e-5 ? h("p", { class: "muted" }, `Tokens outside the likeliest have ${percent(facts.tail_prob, 1)}; of them a sample was drawn, if any (tail).`) : null,
  ];
}

function signalFacts(run, at, signal) {
  const sign = isKnown(at.lfsr) ? `probability of a false sign ${number(at.lfsr)}` : "its direction is undefined here";
  return h(
    "div",
    { class: "signal" },
    h("h4", {}, name(run.label(signal))),
    h("p", {}, h("b", {}, isKnown(at.cosine) ? `cosine ${interval(at.cosine, at.cosine_low, at.cosine_high)}` : whyUnknown(at)), at.resolved ? ", sign known" : ""),
    h("p", { class: "muted" }, `helps with probability ${number(at.p_positive)}; ${sign}; |d|² ${significant(at.d_sq)}; KL ${significant(at.kl)} nat; teacher's probability ${probability(at.teacher_prob)}`),
  );
}

function whyUnknown(at) {
  return at.d_sq === 0 ? "cosine undefined: the signal does not push here" : "cosine not known: branches hardly differ";
}

function branchTable(run, branches, signals) {
  const largest = (values) => Math.max(1e-12, ...values.filter(isKnown).map(Math.abs));
  const ofIdeal = largest(branches.map((b) => b.ideal));
  const ofSignal = signals.map((_, i) => largest(branches.map((b) => b.of[i].direction)));
  const heads = ["next token", "P", "success of draws", "ideal"];
  const perSignal = signals.length === 1 ? ["T", "signal"] : signals.flatMap((_, i) => [`T ${"AB"[i]}`, `signal ${"AB"[i]}`]);
  const rows = branches.map((branch) => {
    const [low, high] = wilson(branch.successes, branch.draws);
    const text = run.text(branch.token);
    return h(
      "tr",
      {},
      h("th", { scope: "row", class: "text" }, h("code", {}, name(visible(text))), branch.isTail ? h("span", { class: "muted" }, " tail") : null),
      h("td", {}, probability(branch.prob)),
      h("td", {}, `${count(branch.successes)}/${count(branch.draws)} `, h("span", { class: "muted" }, interval(branch.successes / branch.draws, low, high))),
      h("td", {}, signedBar(branch.ideal, ofIdeal)),
      branch.of.map((of, i) => [h("td", {}, probability(of.teacher)), h("td", {}, signedBar(of.direction, ofSignal[i]))]),
    );
  });
  return h(
    "div",
    { class: "scroll", role: "region", "aria-label": "Branches", tabindex: "0" },
    h("table", { class: "branches" }, h("caption", { class: "unseen" }, "Branches"), h("thead", {}, h("tr", {}, [...heads, ...perSignal].map((head, i) => h("th", { scope: "col", class: i === 0 ? "text" : null }, head)))), h("tbody", {}, rows)),
  );
}

/** A number as a bar to the left or right of 0, relative to the largest. */
function signedBar(value, largest) {
  if (!isKnown(value)) return "–";
  const size = (18 * Math.abs(value)) / largest;
  return h(
    "span",
    { class: "signed", title: String(Number(value.toPrecision(2))) },
    svg(
      "svg",
      { viewBox: "0 0 40 12", width: 40, height: 12, "aria-hidden": "true" },
      svg("rect", { class: value < 0 ? "away" : "towards", x: value < 0 ? 20 - size : 20, y: 2, width: size, height: 8 }),
      svg("line", { class: "axis", x1: 20, x2: 20, y1: 0, y2: 12 }),
    ),
    h("span", { class: "unseen" }, String(Number(value.toPrecision(2)))),
  );
}
