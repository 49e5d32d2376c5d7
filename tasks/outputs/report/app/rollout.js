// A rollout's tokens and nodes, taken out of its question's columns.

import {readData} from "./decode.js";

/** Loads questions when they are looked at, and keeps the last few. */
export class Questions {
  constructor(run) {
    this.run = run;
    this.loaded = new Map();
    this.most = 8;
  }

  /** The columns of a question, by its place. */
  load(place) {
    let data = this.loaded.get(place);
    if (!data) data = readData(place).then((found) => new Question(this.run, place, found));
    this.loaded.delete(place);
    this.loaded.set(place, data);
    if (this.loaded.size > this.most) this.loaded.delete(this.loaded.keys().next().value);
    return data;
  }
}

/** One question: all its rollouts. */
class Question {
  constructor(run, place, { meta, columns }) {
    this.run = run;
    this.columns = columns;
    this.pieces = meta.pieces;
    this.listed = run.questions[place];
    this.nodes = columns.node_rollout.length;
    this.branches = columns.branch_token.length;
    this.starts = sums(columns.length);
    this.branchStarts = sums(columns.branches);
  }

  /** Texts of a rollout's tokens. */
  texts(index) {
    const out = [];
    for (let i = this.starts[index]; i < this.starts[index + 1]; i++) {
      out.push(this.pieces[i] ?? this.run.text(this.columns.token[i]));
    }
    return out;
  }

  /** Places of a rollout's nodes, by position. */
  nodesOf(index) {
    const found = [];
    for (let n = 0; n < this.nodes; n++) if (this.columns.node_rollout[n] === index) found.push(n);
    return found;
  }

  /** What a signal is at a node. */
  at(node, signal) {
    const of = (column) => this.columns[column][signal * this.nodes + node];
    const source = this.run.sourceOf[signal];
    const ofSource = (column) => this.columns[column][source * this.nodes + node];
    return {
      cosine: of("cosine"),
      cosine_low: of("cosine_low"),
      cosine_high: of("cosine_high"),
      p_positive: of("p_positive"),
      lfsr: of("lfsr"),
      resolved: of("resolved") === 1,
      d_sq: of("d_sq"),
      kl: ofSource("kl"),
      teacher_prob: ofSource("teacher_prob"),
    };
  }

  /** What is known of a node whatever the signal. */
  node(node) {
    const of = (column) => this.columns[column][node];
    return {
      position: of("node_position"),
      student_prob: of("student_prob"),
      entropy: of("entropy"),
      value: of("value"),
      weight: of("weight"),
      tail_prob: of("tail_prob"),
    };
  }

  /** Branches of a node, the likeliest first. */
  branchesOf(node, signals) {
    const out = [];
    for (let b = this.branchStarts[node]; b < this.branchStarts[node + 1]; b++) {
      out.push({
        token: this.columns.branch_token[b],
        prob: this.columns.branch_prob[b],
        draws: this.columns.branch_draws[b],
        successes: this.columns.branch_successes[b],
        isTail: this.columns.branch_tail[b] === 1,
        ideal: this.columns.ideal[b],
        of: signals.map((signal) => ({
          direction: this.columns.direction[signal * this.branches + b],
          teacher: this.columns.teacher_branch[this.run.sourceOf[signal] * this.branches + b],
        })),
      });
    }
    return out.sort((a, b) => b.prob - a.prob);
  }
}

function sums(sizes) {
  const out = new Int32Array(sizes.length + 1);
  for (let i = 0; i < sizes.length; i++) out[i + 1] = out[i] + sizes[i];
  return out;
}
