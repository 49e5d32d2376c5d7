// The first view: which signal to train with, how sure that is, and what speaks against it.

import {intervalBar} from "./charts.js";
import {choice, h, name} from "./dom.js";
import {count, estimate, isKnown, number, percent, score} from "./format.js";
import {sortedTable} from "./table.js";

/** Fills the view. */
export function showDecision(section, run) {
  const rows = run.signals.map((signal, place) => signalRow(run, signal, place));
  section.append(facts(run), ...warnings(run, rows));
  const filter = h("input", { type: "search", placeholder: "teacher, context, loss", "aria-label": "Show signals whose names contain", oninput: draw });
  const tables = h("div");
  let other = "";
  const known = rows.filter((row) => isKnown(row.all?.alignment) || isKnown(row.all?.gain));
  const options = [["", "none"], ...known.map((row) => [String(row.place), row.label])];
  section.append(
    h("div", { class: "controls" }, h("label", { class: "choice" }, h("span", {}, "filter"), filter), choice("difference to", options, "", (value) => ((other = value), draw()))),
    tables,
    ...limits(run),
  );

  function draw() {
    const wanted = filter.value.trim().toLowerCase();
    const shown = rows.filter((row) => row.label.toLowerCase().includes(wanted));
    tables.replaceChildren(...forecastTable(run, shown), ...alignmentTable(run, shown, other === "" ? null : Number(other)));
  }
  draw();
}

/** All that is known of a signal over all rollouts. */
function signalRow(run, [teacher, context, loss], place) {
  const of = (records, extra = () => true) => records.find((r) => r.signal === place && extra(r));
  return {
    place,
    teacher,
    context,
    loss,
    label: run.label(place),
    forecast: of(run.forecasts),
    success: run.success.find((r) => r.teacher === teacher && r.context === context),
    all: of(run.summary, (r) => r.group === "all"),
    correct: of(run.summary, (r) => r.group === "outcome" && r.bin === "correct"),
    incorrect: of(run.summary, (r) => r.group === "outcome" && r.bin === "incorrect"),
    between: of(run.between_outcomes),
    kept: of(run.losses),
  };
}

function facts(run) {
  const c = run.counts;
  const items = [
    [count(c.questions), "questions"],
    [count(c.rollouts), "rollouts"],
    [percent(c.correct / c.rollouts), "of them correct"],
    [count(c.rollout_tokens), "tokens of rollouts"],
    [count(c.nodes), "nodes"],
    [count(c.draws), run.draws_visit_many ? "visits of nodes by draws" : "draws"],
    ...(c.draw_tokens ? [[count(c.draw_tokens), "tokens of draws"]] : []),
  ];
  return h("ul", { class: "facts" }, items.map(([value, what]) => h("li", {}, h("b", {}, value), ` ${what}`)));
}

function warnings(run, rows) {
  const c = run.counts;
  const said = [];
  const cut = c.truncated_rollouts / c.rollouts;
  if (cut > 0.05) said.push(`${percent(cut)} of the rollouts were stopped by the length limit, and count as wrong.`);
  if (c.draws > 0 && c.truncated_draws / c.draws > 0.05) said.push(`${percent(c.truncated_draws / c.draws)} of the draws were stopped by the length limit, and count as wrong.`);
  const uncovered = rows.filter((row) => isKnown(row.kept?.covered) && row.kept.covered < 1 - 1e-9);
  if (uncovered.length) {
    const least = Math.min(...uncovered.map((row) => row.kept.covered));
    said.push(`Teachers with tokenizers of their own cover ${percent(least)} of the positions at least: ${listed(uncovered)}.`);
  }
  const copying = rows.filter((row, i) => row.success?.copied_low > 0 && rows.findIndex((r) => r.success === row.success) === i);
  for (const row of copying) {
    said.push(`${row.teacher}/${row.context} is right ${estimate(row.success, "copied")} more often than the student that goes on from just before its answers: it copies them from its context.`);
  }
  const unresolved = rows.filter((row) => row.all && !isKnown(row.all.alignment) && row.all.d_sq !== 0);
  if (unresolved.length && unresolved.length < rows.length) said.push(`Alignment is not resolved for ${listed(unresolved)}.`);
  return said.map((line) => h("p", { class: "warning" }, name(line)));
}

function listed(rows) {
  const names = rows.slice(0, 5).map((row) => row.label).join(", ");
  return rows.length > 5 ? `${names} and ${rows.length - 5} more` : names;
}

const NAMES = [
  { title: "teacher", text: true, key: (row) => row.teacher, cell: (row) => name(row.teacher) },
  { title: "context", text: true, key: (row) => row.context, cell: (row) => name(row.context) },
  { title: "loss", text: true, key: (row) => row.loss, cell: (row) => name(row.loss) },
];

function forecastTable(run, rows) {
  if (!run.forecasts.some((r) => isKnown(r.forecast))) return [];
  const columns = [
    ...NAMES,
    { title: "", cell: ({ forecast: f }) => (f ? intervalBar(f.forecast, f.forecast_low, f.forecast_high, { from: 0, to: 1, mark: f.base, kind: f.verdict }) : null) },
    { title: "success after training", key: (row) => row.forecast?.forecast, cell: (row) => estimate(row.forecast, "forecast"), about: "until it levels off" },
    { title: "change", key: (row) => row.forecast?.change, cell: (row) => estimate(row.forecast, "change"), about: "from the student's success before" },
    { title: "best", key: (row) => row.forecast?.p_best, cell: (row) => percent(row.forecast?.p_best), about: "probability that no other signal ends with more success" },
    { title: "harm", key: (row) => row.forecast?.p_harm, cell: (row) => percent(row.forecast?.p_harm), about: "probability that success ends below that before" },
    { title: "verdict", text: true, key: (row) => row.forecast?.verdict ?? null, cell: (row) => verdict(row.forecast) },
    { title: "own success", key: (row) => row.success?.own, cell: (row) => estimate(row.success, "own"), about: "of the teacher with its context" },
    { title: "handover", key: (row) => row.success?.handover, cell: (row) => estimate(row.success, "handover"), about: "success of the student, without the context, from just before the teacher's answer" },
  ];
  return [
    h("h2", {}, "Forecast"),
    h("p", { class: "muted" }, `Success after training on each signal until it levels off; the line is the student's success before, ${number(run.forecasts[0].base)}. ${percent(run.forecast_level)} intervals.`),
    sortedTable("Forecast by signal", columns, rows, { column: 4, descending: true }, (row) => ({ "data-signal": row.place })),
  ];
}

function verdict(forecast) {
  if (!isKnown(forecast?.forecast)) return "not known";
  return h("div", { class: "remark" }, h("span", { class: `verdict ${forecast.verdict}` }, forecast.verdict), forecast.remark ? name(`: ${forecast.remark}`) : null);
}

function alignmentTable(run, rows, other) {
  const low = Math.max(-1, Math.min(0, ...rows.map((row) => row.all?.alignment_low).filter(isKnown)));
  const difference = (row, what) => (other === null || row.place === other ? null : pairDifference(run.pairs, row.place, other, what));
  const columns = [
    ...NAMES,
    { title: "", cell: ({ all }) => (all ? intervalBar(all.alignment, all.alignment_low, all.alignment_high, { from: low, to: 1, mark: 0 }) : null) },
    { title: "alignment", key: (row) => row.all?.alignment, cell: (row) => score(row.all) },
    ...["correct", "incorrect"].map((bin) => ({ title: bin, key: (row) => row[bin]?.alignment, cell: (row) => score(row[bin]), about: `alignment over ${bin} rollouts` })),
    { title: "difference", key: (row) => row.between?.alignment, cell: (row) => estimate(row.between, "alignment"), about: "correct less incorrect" },
    { title: "gain", key: (row) => row.all?.gain, cell: (row) => estimate(row.all, "gain", 3), about: "of success per rollout by a step of unit length along the signal" },
    { title: "mean cos.", key: (row) => row.all?.mean_cosine, cell: (row) => number(row.all?.mean_cosine), about: "the score of the paper, which noise pulls towards 0" },
  ];
  if (other !== null) {
    columns.push(
      { title: "alignment less its", key: (row) => difference(row, "alignment")?.alignment, cell: (row) => estimate(difference(row, "alignment"), "alignment") },
      { title: "gain less its", key: (row) => difference(row, "gain")?.gain, cell: (row) => estimate(difference(row, "gain"), "gain", 3) },
    );
  }
  return [
    h("h2", {}, "Alignment by teacher, context and loss"),
    h(
      "p",
      { class: "muted" },
      `The pooled cosine between the ideal gradient, which raises the student's success, and the distillation gradient, corrected for sampling noise. 1: the signal pushes exactly towards success; 0: elsewhere; below 0: away from it. ${percent(run.level)} intervals.`,
    ),
    sortedTable("Alignment by signal", columns, rows, { column: 4, descending: true }, (row) => ({ "data-signal": row.place })),
  ];
}

/** A signal's score less that of another, with the interval paired by question. */
function pairDifference(pairs, one, other, what) {
  const found = pairs.find((p) => (p.signal === one && p.other === other) || (p.signal === other && p.other === one));
  if (!found || found.signal === one) return found ?? null;
  const turned = (value) => (isKnown(value) ? -value : null);
  return { [what]: turned(found[what]), [`${what}_low`]: turned(found[`${what}_high`]), [`${what}_high`]: turned(found[`${what}_low`]) };
}

function limits(run) {
  const c = run.counts;
  const lines = [
    `${count(c.truncated_rollouts)} of ${count(c.rollouts)} rollouts and ${count(c.truncated_draws)} of ${count(c.draws)} ${run.draws_visit_many ? "visits by draws" : "draws"} were stopped by the length limit; such a completion counts as wrong unless its answer was already complete.`,
    `Nodes whose tail was not drawn leave out at most ${c.tail_missing.toPrecision(2)} of probability each, and are biased by no more.`,
    "Intervals of pooled scores: bootstrap by question (by rollout below five questions), the same replicates for all, so that differences are paired. Single tokens: posterior simulation under a prior of how much sibling branches differ, fitted over all nodes.",
    c.sampled
      ? "Nodes are a sample of the positions, drawn with known probabilities from the student alone; sums are weighted by their inverse."
      : "Inclusion probabilities of nodes are unknown, so pooled scores describe the scored nodes only.",
    "Mean cosine: the plain mean of uncorrected node cosines, the score of arXiv 2605.10889. Undefined: the teacher equals the student, or, by grpo, all rollouts of each question end alike. Unresolved: the ideal gradient cannot be told from 0.",
    "What the run cost in time, by stage, and in tokens of teachers is in run.json beside this page, and in the index of runs of opdscope serve.",
  ];
  return [h("h2", {}, "Limits of the numbers"), h("ul", { class: "notes" }, lines.map((line) => h("li", {}, line)))];
}
