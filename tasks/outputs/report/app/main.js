// Starts the page: reads the overview, and shows the view that the address names.

import {readData} from "./decode.js";
import {showDecision} from "./decision.js";
import {isKnown} from "./format.js";
import {VIEWS, parseRoute} from "./route.js";
import {Tokens} from "./tokens.js";
import {showWhere} from "./where.js";

/** The run's overview, with what the views ask of it. */
function runOf(data) {
  const texts = new Map(data.texts[0].map((id, i) => [id, data.texts[1][i]]));
  const sources = [...new Set(data.signals.map(([teacher, context]) => JSON.stringify([teacher, context])))];
  const labels = labelsOf(data.signals);
  const best = data.forecasts.find((r) => isKnown(r.forecast)) ?? data.summary.find((r) => r.group === "all" && isKnown(r.alignment));
  return {
    ...data,
    first: best?.signal ?? 0,
    sourceOf: data.signals.map(([teacher, context]) => sources.indexOf(JSON.stringify([teacher, context]))),
    label: (signal) => labels[signal],
    text: (token) => texts.get(token) ?? `#${token}`,
  };
}

/** Signals in a few words, as in the terminal; names may hold a slash, but not one with spaces around it. */
function labelsOf(signals) {
  const written = (between) => signals.map(([teacher, context, loss]) => `${teacher}${between}${context} by ${loss}`);
  const short = written("/");
  return new Set(short).size === short.length ? short : written(" / ");
}

async function start() {
  const { meta } = await readData("overview");
  const run = runOf(meta);
  const sections = Object.fromEntries(VIEWS.map((view) => [view, document.getElementById(view)]));
  const made = { decision: null, where: null, tokens: null };
  const make = {
    decision: () => showDecision(sections.decision, run) ?? true,
    where: () => showWhere(sections.where, run) ?? true,
    tokens: () => new Tokens(sections.tokens, run),
  };
  let shown = null;

  async function show() {
    const route = parseRoute(location.hash);
    const view = route.view ?? shown ?? "decision";
    for (const [key, section] of Object.entries(sections)) section.hidden = key !== view;
    for (const link of document.querySelectorAll("header nav a")) {
      if (link.getAttribute("href") === `#${view}`) link.setAttribute("aria-current", "page");
      else link.removeAttribute("aria-current");
    }
    made[view] ??= make[view]();
    if (view !== shown) window.scrollTo(0, 0);
    shown = view;
    if (view === "tokens") await made.tokens.show(route);
    document.body.dataset.ready = `${Number(document.body.dataset.ready ?? 0) + 1}`;
  }

  window.addEventListener("hashchange", show);
  window.addEventListener("beforeprint", () => {
    made.where ??= make.where();
  });
  startTheme();
  await show();
  for (const view of VIEWS) requestIdleCallback(() => (made[view] ??= make[view]())); // so that switching is quick
}

/** The switch between light and dark; at first it is as the system is. */
function startTheme() {
  const button = document.getElementById("theme");
  let isDark = matchMedia("(prefers-color-scheme: dark)").matches;
  const set = () => {
    document.documentElement.dataset.theme = isDark ? "dark" : "light";
    button.setAttribute("aria-pressed", String(isDark));
  };
  button.addEventListener("click", () => {
    isDark = !isDark;
    set();
  });
  set();
}

await start();
