// The diverging scale of tokens: orange where a signal pushes away from success, blue where it pushes towards it.

const STEPS = 10;

/** The class that colours a token by its cosine: t-10 to t10. Fainter where the cosine is not told from 0. */
export function tone(cosine) {
  return `t${Math.round(Math.max(-1, Math.min(1, cosine)) * STEPS)}`;
}

/** The colours of lines, by place; also told apart by the shapes of their points. */
export function seriesClass(place) {
  return `s${place % 8}`;
}
