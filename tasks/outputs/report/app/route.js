// What the address says: #decision, #where, #tokens, or #question/rollout/position, and after it one signal or two if they are chosen.

export const VIEWS = ["decision", "where", "tokens"];

/** The view that an address names, and the token if it names one. */
export function parseRoute(hash) {
  const parts = hash.replace(/^#/, "").split("/").map(decoded);
  if (parts.length < 2) return { view: VIEWS.includes(parts[0]) ? parts[0] : null };
  const [question, rollout, position, ...names] = parts;
  const signals = [names.slice(0, 3), names.slice(3, 6)].filter((signal) => signal.length === 3);
  return {
    view: "tokens",
    question,
    rollout: Number(rollout),
    position: position === undefined || position === "" ? null : Number(position),
    signals,
  };
}

export function tokenRoute(question, rollout, position, signals = []) {
  const parts = [question, rollout, position ?? "", ...signals.flat()];
  return `#${parts.map(encodeURIComponent).join("/")}`;
}

function decoded(part) {
  try {
    return decodeURIComponent(part);
  } catch {
    return part; // written by hand
  }
}
