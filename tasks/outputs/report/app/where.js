// The second view: on which rollouts and tokens signals help, what tells that beforehand, and which words they teach.

import {binsChart} from "./charts.js";
import {seriesClass} from "./colors.js";
import {choice, h, name} from "./dom.js";
import {estimate, isKnown, percent, significant, visible} from "./format.js";
import {sortedTable} from "./table.js";

const GROUPS = {
  outcome: "outcome of the rollout",
  position: "place in the rollout",
  entropy: "student's entropy",
  divergence: "KL(student || teacher)",
  difficulty: "question's success rate",
};
const PREDICTORS = {
  kl: "KL(student || teacher)",
  js: "Jensen-Shannon divergence",
  entropy: "student's entropy",
  position: "place in the rollout",
  student_prob: "student's probability of the token",
  teacher_prob: "teacher's probability of the token",
  teacher_lead: "log-ratio of teacher and student",
  signal_norm: "|d|, strength of the signal",
};
const SHOWN_AT_FIRST = 4;

/** Fills the view. */
export function showWhere(section, run) {
  const losses = [...new Set(run.signals.map(([, , loss]) => loss))];
  const sources = [...new Set(run.signals.map(([teacher, context]) => `${teacher} / ${context}`))];
  const of = (signal) => sources.indexOf(`${run.signals[signal][0]} / ${run.signals[signal][1]}`);
  const known = sources.filter((_, i) => run.summary.some((r) => r.group === "all" && isKnown(r.alignment) && of(r.signal) === i));
  const chosen = new Set(known.slice(0, SHOWN_AT_FIRST));
  let loss = losses[0];
  const body = h("div");
  const boxes = sources.map((source, i) =>
    h(
      "label",
      { class: `series ${seriesClass(i)}` },
      h("input", { type: "checkbox", checked: chosen.has(source), onchange: (event) => (event.target.checked ? chosen.add(source) : chosen.delete(source), draw()) }),
      name(source),
    ),
  );
  section.append(
    h("div", { class: "controls" }, choice("loss", losses.map((l) => [l, l]), loss, (value) => ((loss = value), draw()))),
    h("fieldset", { class: "controls" }, h("legend", {}, "teachers with contexts"), boxes),
    body,
    ...vocabulary(run),
  );

  function draw() {
    const signals = run.signals.map((_, i) => i).filter((i) => run.signals[i][2] === loss && chosen.has(sources[of(i)]));
    body.replaceChildren(...charts(run, signals, of), ...predictors(run, signals), ...selection(run, signals));
  }
  draw();
}

function charts(run, signals, of) {
  const drawn = Object.entries(GROUPS).flatMap(([group, title]) => {
    const rows = run.summary.filter((r) => r.group === group && signals.includes(r.signal));
    const bins = inOrder([...new Set(rows.map((r) => r.bin))]);
    if (bins.length < 2) return [];
    const series = signals.map((signal) => ({
      place: of(signal),
      label: run.label(signal),
      points: rows.filter((r) => r.signal === signal).map((r) => ({ bin: r.bin, value: r.alignment, low: r.alignment_low, high: r.alignment_high })),
    }));
    return [h("figure", {}, binsChart(title, bins, series))];
  });
  return [
    h("h2", {}, "Where the signal helps"),
    h("p", { class: "muted" }, `Alignment by group of tokens, ${percent(run.level)} intervals. Entropy and divergence are in quantiles of the student's positions, lowest first.`),
    drawn.length ? h("div", { class: "charts" }, drawn) : h("p", {}, "Nothing to draw: choose a teacher whose alignment is known."),
  ];
}

/** Labels of bins from low to high; those that are no numbers stay as they come. */
function inOrder(bins) {
  const ends = (bin) => bin.split("-").map(Number.parseFloat);
  return bins.every((bin) => ends(bin).every(Number.isFinite)) ? bins.sort((a, b) => ends(a)[0] - ends(b)[0] || ends(a)[1] - ends(b)[1]) : bins;
}

function predictors(run, signals) {
  const rows = run.predictors.filter((r) => signals.includes(r.signal));
  if (!rows.some((r) => isKnown(r.correlation))) return [];
  const columns = [
    { title: "known about the token", text: true, key: (row) => PREDICTORS[row], cell: (row) => PREDICTORS[row] },
    ...signals.map((signal) => {
      const cell = (row) => rows.find((r) => r.signal === signal && r.predictor === row);
      return { title: run.label(signal), key: (row) => cell(row)?.correlation, cell: (row) => estimate(cell(row), "correlation") };
    }),
  ];
  return [
    h("h2", {}, "What tells alignment before any draw"),
    h("p", { class: "muted" }, "Rank correlation of what is known about a token with its <g, d> / |d|, corrected for the noise of the draws; – where noise hides it."),
    sortedTable("What tells alignment before any draw", columns, Object.keys(PREDICTORS)),
  ];
}

function selection(run, signals) {
  const rows = run.selection.filter((r) => signals.includes(r.signal) && isKnown(r.gain));
  if (rows.length === 0) return [];
  const at = (tokens, signal) => rows.find((r) => r.tokens === tokens && r.signal === signal);
  const cell = (row) => (row ? [estimate(row, "gain", 3), row.tokens === "all" ? null : h("div", { class: "muted" }, `${percent(row.share)} kept, ${estimate(row, "additional_gain", 3)}`)] : "–");
  const columns = [
    { title: "tokens", text: true, key: (tokens) => tokens, cell: (tokens) => tokens.replaceAll("_", " ") },
    ...signals.map((signal) => ({ title: run.label(signal), key: (tokens) => at(tokens, signal)?.gain, cell: (tokens) => cell(at(tokens, signal)) })),
  ];
  return [
    h("h2", {}, "What training on only some tokens would gain"),
    h(
      "p",
      { class: "muted" },
      "Gain per rollout of a unit step along the kept part of the signal; below it the share of tokens kept, and the gain less that of all. Likely and resolved positive: by the posterior of one half of the draws, scored on the other. Predicted positive: by what is known without draws, learned on other questions. The rest: rules that trainers use.",
    ),
    sortedTable("Gain by tokens", columns, [...new Set(rows.map((r) => r.tokens))]),
  ];
}

/** The tokens of the vocabulary that a signal makes likelier, and less likely. */
function vocabulary(run) {
  const known = [...new Set(run.vocabulary.map((r) => r.signal))];
  if (known.length === 0) return [];
  const body = h("div", { class: "pair" });
  const draw = (signal) => {
    const rows = run.vocabulary.filter((r) => r.signal === Number(signal));
    const half = (title, part) => h("div", {}, h("h3", {}, title), vocabularyTable(title, part));
    body.replaceChildren(half("gain most", rows.filter((r) => r.push > 0)), half("lose most", rows.filter((r) => r.push < 0)));
  };
  draw(known[0]);
  return [
    h("h2", {}, "Which tokens of the vocabulary gain and lose"),
    h(
      "p",
      { class: "muted" },
      "Push: the distillation direction of a token's logit, summed over the positions of a rollout where it is a likely next token. Ideal: the same of the direction that raises success. Same sign: the signal teaches what helps.",
    ),
    h("div", { class: "controls" }, choice("signal", known.map((i) => [i, run.label(i)]), known[0], draw)),
    body,
  ];
}

function vocabularyTable(title, rows) {
  const three = (row, what) => {
    const ends = [`${what}_low`, `${what}_high`].map((end) => row[end]);
    return significant(row[what]) + (isKnown(ends[0]) ? ` [${ends.map(significant).join(", ")}]` : "");
  };
  const agrees = (row) => {
    const isTold = (what) => isKnown(row[`${what}_low`]) && (row[`${what}_low`] > 0 || row[`${what}_high`] < 0);
    if (!isTold("ideal") || !isTold("push")) return ["", "not known"];
    return row.ideal > 0 === row.push > 0 ? ["helps", "towards success"] : ["harms", "away from it"];
  };
  const columns = [
    { title: "token", text: true, key: (row) => row.token, cell: (row) => h("code", {}, name(visible(row.token))) },
    { title: "push", key: (row) => row.push, cell: (row) => three(row, "push") },
    { title: "ideal", key: (row) => row.ideal, cell: (row) => three(row, "ideal") },
    { title: "", text: true, cell: (row) => h("span", { class: `verdict ${agrees(row)[0]}` }, agrees(row)[1]) },
  ];
  return sortedTable(`Tokens that ${title}`, columns, rows);
}
