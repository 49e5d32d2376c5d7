// The index of runs: draws what /runs.json says, sorts and filters it, and asks again every few seconds.
"use strict";

const EVERY = 4000; // milliseconds between two requests
const MOST = 60000; // after failures, at most this
const STATES = {
  "finished": "finished", "running": "running", "running or lost": "warn", "interrupted": "bad", "damaged": "bad",
  "questions failed": "bad", "questions left out": "warn", "no outputs": "warn",
};
const part = id => document.getElementById(id);
const only = new URLSearchParams(location.search).get("run");
const heads = [...document.querySelectorAll("#runs th[data-key]")];
const drawn = new Map(); // name of a run: what its row was made from, and the row
let runs = [], sortKey = "when", rising = false, pause = EVERY, timer = null, asking = false;

// An element with attributes and children; texts stay texts.
function make(tag, attributes, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children.filter(child => child !== null));
  return element;
}

const address = (run, file) => `/${encodeURIComponent(run)}/${encodeURIComponent(file)}`;
const count = n => (n === null ? "-" : n.toLocaleString("en"));

function duration(seconds) {
  if (seconds === null) return "";
  const units = [[86400, "days"], [3600, "h"], [60, "min"], [1, "s"]];
  const [size, unit] = units.find(([size]) => seconds >= 2 * size) ?? [1, "s"];
  return `${Number((seconds / size).toPrecision(2)).toLocaleString("en")} ${unit}`;
}

function when(run) {
  if (run.when === null) return "-";
  return make("time", { datetime: run.when }, `${run.when.slice(0, 10)} ${run.when.slice(11, 16)}`);
}

function best(run) {
  if (run.best === null) return make("span", { class: "muted" }, "-");
  return make("div", {}, run.best.signal, make("small", { class: "figures" }, `${run.best.quantity} ${run.best.text}`));
}

function state(run) {
  const cell = make("div", {}, make("span", { class: `badge ${STATES[run.state] ?? ""}` }, run.state));
  const step = run.progress;
  if (step !== null) {
    const done = step.stage ? `${step.stage} ${count(step.made)} of ${count(step.needed)}`
      : run.state.startsWith("running") ? "writing its outputs" : "no artefact is missing";
    const label = `${step.flow} of ${run.name}: ${step.made_in_all} of ${step.needed_in_all} artefacts`;
    if (run.state.startsWith("running"))
      cell.append(make("progress", { max: Math.max(1, step.needed_in_all), value: step.made_in_all, "aria-label": label }));
    cell.append(make("small", {}, `${step.flow}: ${done}`));
  }
  for (const remark of run.remarks) cell.append(make("small", {}, remark));
  return cell;
}

function outputs(run) {
  const link = (file, text) => make("a", { href: address(run.name, file), "aria-label": `${text} of ${run.name}` }, text);
  const cell = make("div", {}, ...run.pages.map(file => link(file, file.replace(".html", ""))));
  if (run.files.length) {
    const list = make("ul", {}, ...run.files.map(file => make("li", {}, link(file, file))));
    const title = make("summary", { "aria-label": `tables of ${run.name}` }, "tables");
    cell.append(make("details", {}, title, list));
  }
  return cell;
}

// A row; roles as narrow windows show tables as blocks, which hides from screen readers that they are tables.
function row(run) {
  const cost = make("div", {}, count(run.tokens), make("small", {}, duration(run.seconds)));
  const cells = [
    ["when, UTC", "", when(run)], ["kind", "", run.kinds.join(", ") || "-"], ["student", "", run.student ?? "-"],
    ["questions", "number", count(run.questions)], ["best signal", "", best(run)], ["state", "state", state(run)],
    ["tokens, time", "number", cost], ["outputs", "outputs", outputs(run)],
  ];
  const name = make("th", { scope: "row", role: "rowheader" }, run.name);
  const rest = cells.map(([title, kind, content]) => {
    const inner = content instanceof Element && content.tagName === "DIV" ? content : make("div", {}, content);
    return make("td", { role: "cell", class: kind, "data-title": title }, inner);
  });
  return make("tr", { role: "row" }, name, ...rest);
}

// What a column is sorted by; null comes last.
function value(run, key) {
  if (key === "best") return run.best === null ? null : run.best.value;
  if (key === "state") return Object.keys(STATES).indexOf(run.state);
  if (key === "kinds") return run.kinds.join(", ") || null;
  return run[key];
}

function compare(one, other) {
  const [a, b] = [value(one, sortKey), value(other, sortKey)];
  if (a === null || b === null) return (a === null) - (b === null);
  const order = typeof a === "string" ? a.localeCompare(b, "en", { numeric: true }) : a - b;
  return (rising ? order : -order) || one.name.localeCompare(other.name, "en", { numeric: true });
}

function draw() {
  const wanted = part("filter").value.trim().toLowerCase();
  const here = runs.filter(run => (only === null || run.name === only) && run.name.toLowerCase().includes(wanted));
  here.sort(compare);
  const rows = here.map(run => {
    const made = JSON.stringify(run), before = drawn.get(run.name);
    if (before?.made === made) return before.row; // keeps focus, and tables that were opened
    const fresh = row(run), opened = before?.row.querySelector("details")?.open;
    if (opened && fresh.querySelector("details")) fresh.querySelector("details").open = true;
    drawn.set(run.name, { made, row: fresh });
    return fresh;
  });
  const body = document.querySelector("#runs tbody");
  const same = rows.length === body.children.length && rows.every((one, i) => one === body.children[i]);
  if (!same) {
    const focused = document.activeElement, label = focused?.getAttribute("aria-label");
    body.replaceChildren(...rows);
    if (body.contains(focused)) focused.focus({ preventScroll: true });
    else if (label) [...body.querySelectorAll("[aria-label]")].find(e => e.getAttribute("aria-label") === label)?.focus({ preventScroll: true });
  }
  for (const head of heads)
    if (head.dataset.key === sortKey) head.setAttribute("aria-sort", rising ? "ascending" : "descending");
    else head.removeAttribute("aria-sort");
  part("runs").hidden = here.length === 0;
  part("none").hidden = here.length > 0;
  part("none").textContent = only !== null && !runs.some(run => run.name === only)
    ? "This store has no run of this name yet. It is shown here once it has started."
    : runs.length ? "No run has such a name." : "No runs yet.";
  const noun = `${count(runs.length)} ${runs.length === 1 ? "run" : "runs"}`;
  const told = here.length === runs.length ? noun : `${count(here.length)} of ${noun}`;
  if (part("count").textContent !== told) part("count").textContent = told;
}

function problem(text) {
  part("problem").hidden = text === "";
  if (part("problem").textContent !== text) part("problem").textContent = text;
}

async function ask() {
  if (asking) return;
  asking = true;
  clearTimeout(timer);
  try {
    const answer = await fetch("/runs.json", { cache: "no-cache" });
    const said = await answer.json();
    if (!answer.ok) throw new Error(said.error);
    runs = said.runs;
    const names = new Set(runs.map(run => run.name));
    for (const name of drawn.keys()) if (!names.has(name)) drawn.delete(name);
    draw();
    problem("");
    part("updated").textContent = `Read ${new Date().toISOString().slice(11, 19)} UTC; a run is followed while it goes on.`;
    pause = EVERY;
  } catch (error) {
    const why = error instanceof TypeError ? "`opdscope serve` does not answer" : error.message;
    problem(`${why}. What is shown may be out of date; it is tried again.`);
    pause = Math.min(MOST, 2 * pause);
  }
  asking = false;
  if (!document.hidden) timer = setTimeout(ask, pause);
}

document.addEventListener("visibilitychange", () => (document.hidden ? clearTimeout(timer) : ask()));
part("search").addEventListener("submit", event => event.preventDefault());
part("filter").addEventListener("input", draw);
for (const head of heads)
  head.querySelector("button").addEventListener("click", () => {
    const texts = ["name", "kinds", "student", "state"];
    rising = sortKey === head.dataset.key ? !rising : texts.includes(head.dataset.key);
    sortKey = head.dataset.key;
    draw();
  });
part("search").hidden = false;
if (only !== null) {
  part("only").hidden = false;
  part("only-name").textContent = only;
}
ask();
