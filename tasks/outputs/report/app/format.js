// Numbers as text, written as in the terminal.

export function isKnown(value) {
  return value !== null && value !== undefined && !Number.isNaN(value);
}

/** Rounded to some decimals, ties to even, without a zero before the point. */
export function number(value, decimals = 2) {
  if (!isKnown(value)) return "–";
  const scale = 10 ** decimals;
  let text = value.toFixed(decimals);
  const isTie = Number.isInteger(value * 2 ** 20) && Math.abs((value * scale) % 1) === 0.5; // both exact
  if (isTie) text = (2 * Math.round((value * scale) / 2) / scale).toFixed(decimals);
  if (Number(text) === 0) text = text.replace("-", "");
  return text.replace(/^(-?)0\./, "$1.");
}

/** A value with its interval, as far as they are known. */
export function interval(value, low, high, decimals = 2) {
  if (!isKnown(value) || !isKnown(low)) return number(value, decimals);
  return `${number(value, decimals)} [${number(low, decimals)}, ${number(high, decimals)}]`;
}

/** The same of a record with the fields name, name_low and name_high. */
export function estimate(row, name, decimals = 2) {
  return row ? interval(row[name], row[`${name}_low`], row[`${name}_high`], decimals) : "–";
}

/** An alignment with its interval, or why there is none. */
export function score(row) {
  if (!row) return "no nodes";
  if (!isKnown(row.alignment)) return row.d_sq === 0 ? "undefined" : "unresolved";
  return estimate(row, "alignment");
}

export function percent(share, decimals = 0) {
  return isKnown(share) ? `${(100 * share).toFixed(decimals)} %` : "–";
}

/** With three significant digits, as columns of any size need. */
export function significant(value) {
  if (!isKnown(value)) return "–";
  if (value === 0) return "0";
  const magnitude = Math.abs(value);
  const text = magnitude < 1e-3 || magnitude >= 1e5 ? value.toExponential(1) : String(Number(value.toPrecision(3)));
  return text.replace(/^(-?)0\./, "$1.");
}

/** The page keeps probabilities in steps of 5e-5. */
export function probability(value) {
  return value < 1e-4 ? "<1e-4" : significant(value);
}

export function count(value) {
  return value.toLocaleString("en-US");
}

/** Wilson's interval of a share: s of n, at a level of 95 %. */
export function wilson(s, n) {
  const z = 1.959964;
  const middle = (s + (z * z) / 2) / (n + z * z);
  const half = (z / (n + z * z)) * Math.sqrt((s * (n - s)) / n + (z * z) / 4);
  return [Math.max(0, middle - half), Math.min(1, middle + half)];
}

/** A token's text such that spaces and line breaks are seen. */
export function visible(text) {
  if (text === "") return "∅";
  return text.replaceAll("\n", "⏎").replaceAll("\t", "⇥").replace(/^ | $/g, "␣");
}
