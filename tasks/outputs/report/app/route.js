// What the address says: #decision, #where, #tokens, or #question/rollout/position, and a signal after it if it is chosen.

export const VIEWS = ["decision", "where", "tokens"];

/** The view that an address names, and the token if it names one. */
export function parseRoute(hash) {
  const parts = hash.replace(/^#/, "").split("/").map(decoded);
  if (parts.length < 2) return { view: VIEWS.includes(parts[0]) ? parts[0] : null };
  const [question, rollout, position, ...signal] = parts;
  return {
    view: "tokens",
    question,
    rollout: Number(rollout),
    position: position === undefined || position === "" ? null : Number(position),
    signal: signal.length === 3 ? signal : null,
  };
}

export function tokenRoute(question, rollout, position, signal) {
  const parts = [question, rollout, position ?? "", ...(signal ?? [])];
  return `#${parts.map(encodeURIComponent).join("/")}`;
}

function decoded(part) {
  try {
    return decodeURIComponent(part);
  } catch {
    return part; // written by hand
  }
}
