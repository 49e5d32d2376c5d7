"""Columns of the tables that a run writes, with polars type names; null means undefined."""

from schemas.columns import Column
from schemas.question_tables import QUESTIONS

TOKENS: dict[str, Column] = {
    "question_id": Column("String", "the question"),
    "rollout_id": Column("Int32", "the rollout within the question"),
    "position": Column("Int32", "position in the completion, from 0"),
    "token_id": Column("Int32", "the rollout's token at this position"),
    "token": Column("String", "its text"),
    "correct": Column("Boolean", "the verifier's verdict on the rollout"),
    "weight": Column("Float64", "positions that the node represents: 1 / its inclusion probability, over rounds"),
    "student_prob": Column("Float64", "student's probability of the token, as sampled"),
    "entropy": Column("Float64", "entropy of the student's next-token distribution, nat"),
    "branches": Column("Int32", "branches drawn, tail tokens included"),
    "draws": Column("Int32", "draws of all branches"),
    "teacher": Column("String", "name of the teacher"),
    "context": Column("String", "name of its context"),
    "loss": Column("String", "name of the loss"),
    "cosine": Column("Float64", "posterior mean of the cosine of ideal and distillation gradient"),
    "cosine_low": Column("Float64", "lower end of its interval"),
    "cosine_high": Column("Float64", "upper end of its interval"),
    "p_positive": Column("Float64", "posterior probability that <g, d> > 0; ties count half"),
    "reliability": Column("Float64", "share of the plain |g|^2 that is signal; below 0 where noise outweighs it"),
    "resolved": Column("Boolean", "the sign of <g, d> is known: lfsr is below 1 - level"),
    "inner": Column("Float64", "unbiased <g, d>"),
    "g_sq": Column("Float64", "unbiased |g|^2; may be negative"),
    "d_sq": Column(
        "Float64", "|d|^2, exact; of losses that need draws an estimate without bias, which may be negative"
    ),
    "teacher_advantage": Column(
        "Float64", "sum_j (T_j - P_j) Q_j; null where the teacher puts more than tail_limit on an undrawn tail"
    ),
    "kl": Column("Float64", "KL(student || teacher), nat"),
    "js": Column("Float64", "Jensen-Shannon divergence, nat"),
    "cosine_plain": Column("Float64", "uncorrected cosine over the head's branches, P and T renormalised there"),
    "value": Column("Float64", "student's success probability from here"),
    "tail_prob": Column("Float64", "probability outside the head"),
    "teacher_prob": Column("Float64", "teacher's probability of the token"),
    "truncated_draws": Column("Int32", "draws stopped by the length limit"),
    "lfsr": Column(
        "Float64", "local false sign rate: posterior probability that <g, d> does not have its likelier sign"
    ),
    "p_differs": Column("Float64", "posterior probability that success differs between the branches"),
    "inner_noise": Column("Float64", "variance of inner over draws"),
}

SUMMARY: dict[str, Column] = {
    "group": Column("String", "how nodes are grouped: all, outcome, position, entropy, divergence, difficulty"),
    "bin": Column("String", "bin of the grouping"),
    "teacher": Column("String", "name of the teacher"),
    "context": Column("String", "name of its context"),
    "loss": Column("String", "name of the loss"),
    "alignment": Column("Float64", "pooled, noise-corrected cosine; null where unresolved or undefined"),
    "alignment_low": Column("Float64", "lower end of its interval"),
    "alignment_high": Column("Float64", "upper end of its interval"),
    "gain": Column(
        "Float64",
        "first-order gain in success probability per rollout, for a step of unit length per rollout (root mean square) "
        "along the distillation direction; null where all draws have the same outcome, or |d|^2 is not above 0",
    ),
    "gain_low": Column("Float64", "lower end of its interval"),
    "gain_high": Column("Float64", "upper end of its interval"),
    "mean_cosine": Column("Float64", "mean of the uncorrected node cosines, the paper's score"),
    "nodes": Column("Int64", "nodes in the group, each counted once"),
    "questions": Column("Int64", "questions with a node in the group"),
    "carrying": Column(
        "Int64",
        "of these, the ones whose draws in the group did not all have the same outcome: the units of intervals (or "
        "rollouts, where fewer than 5 questions are such); fewer than 5 units give no interval",
    ),
    "reliability": Column("Float64", "share of the pooled plain |g|^2 that is signal"),
    "resolved": Column("Boolean", "the pooled |g|^2 is above 0, also in the bootstrap replicates"),
    "mean_cosine_low": Column("Float64", "lower end of its interval"),
    "mean_cosine_high": Column("Float64", "upper end of its interval"),
    "d_sq": Column("Float64", "sum of |d|^2 over all positions of the group; an estimate where losses need draws"),
    "bin_low": Column("Float64", "lower edge of the bin, in the unit of the binned quantity; null where open"),
    "bin_high": Column("Float64", "upper edge of the bin; null where open"),
}

DIFFERENCES: dict[str, Column] = {
    "group": Column("String", "the grouping; all where two signals are compared"),
    "bin": Column("String", "the bin"),
    "teacher": Column("String", "name of the teacher"),
    "context": Column("String", "name of its context"),
    "loss": Column("String", "name of the loss"),
    "other_bin": Column("String", "the bin that is subtracted"),
    "other_teacher": Column("String", "the teacher that is subtracted"),
    "other_context": Column("String", "its context"),
    "other_loss": Column("String", "the loss that is subtracted"),
    "alignment": Column("Float64", "difference of alignments; null where either is null"),
    "alignment_low": Column(
        "Float64",
        "lower end of its interval, paired by question; null where one group is resampled by question and the other, "
        "with fewer than 5 questions that carry signal, by rollout",
    ),
    "alignment_high": Column("Float64", "upper end of its interval"),
    "gain": Column("Float64", "difference of gains; null where either is null"),
    "gain_low": Column("Float64", "lower end of its interval, paired by question"),
    "gain_high": Column("Float64", "upper end of its interval"),
}

PREDICTORS: dict[str, Column] = {
    "predictor": Column("String", "what is known about a token without any draw"),
    "teacher": Column("String", "name of the teacher"),
    "context": Column("String", "name of its context"),
    "loss": Column("String", "name of the loss"),
    "correlation": Column(
        "Float64", "of the predictor's rank with <g, d> / |d|, corrected for noise; null where lost in noise"
    ),
    "correlation_low": Column("Float64", "lower end of its interval"),
    "correlation_high": Column("Float64", "upper end of its interval"),
    "correlation_plain": Column("Float64", "the same, not corrected"),
    "nodes": Column("Int64", "nodes where the predictor is known"),
}

SELECTION: dict[str, Column] = {
    "tokens": Column(
        "String",
        "the tokens trained on: all; likely_positive and resolved_positive by the posterior; predicted_positive by "
        "cheap predictors; the others by rules that trainers use, as `validation.selections` has them",
    ),
    "teacher": Column("String", "name of the teacher"),
    "context": Column("String", "name of its context"),
    "loss": Column("String", "name of the loss"),
    "share": Column("Float64", "share of all tokens that is kept"),
    "gain": Column(
        "Float64",
        "gain per rollout of a unit step along the kept part of the signal, on draws not used for the selection",
    ),
    "gain_low": Column("Float64", "lower end of its interval"),
    "gain_high": Column("Float64", "upper end of its interval"),
    "additional_gain": Column("Float64", "gain minus that of all tokens"),
    "additional_gain_low": Column("Float64", "lower end of its interval, paired by question"),
    "additional_gain_high": Column("Float64", "upper end of its interval"),
}

KEPT: dict[str, Column] = {
    "positions": Column("Int64", "positions of all rollouts"),
    "covered": Column("Float64", "share of them where the teacher has a distribution: with its own tokenizer, not all"),
    "student_kept": Column("Float64", "mean student's probability, there, of the tokens that the loss looks at"),
    "teacher_kept": Column("Float64", "mean teacher's probability of these"),
    "without_gradient": Column(
        "Float64", "share of positions without a gradient, by a floor or a clip, or where teacher and student agree"
    ),
}

LOSSES: dict[str, Column] = {
    "teacher": Column("String", "name of the teacher"),
    "context": Column("String", "name of its context"),
    "loss": Column("String", "name of the loss"),
    **KEPT,
}

SUCCESS: dict[str, Column] = {
    "teacher": Column("String", "name of the teacher"),
    "context": Column("String", "name of its context"),
    "own": Column("Float64", "the teacher's own success with its context"),
    "own_low": Column("Float64", "lower end of its interval, by question"),
    "own_high": Column("Float64", "upper end of its interval"),
    "gap": Column("Float64", "own success less that of the student's rollouts"),
    "gap_low": Column("Float64", "lower end of its interval, paired by question"),
    "gap_high": Column("Float64", "upper end of its interval"),
    "handover": Column(
        "Float64",
        "success of the student, without the context, from just before the answer of the teacher's completions; null "
        "where the verifier does not tell what it reads",
    ),
    "handover_low": Column("Float64", "lower end of its interval, by question"),
    "handover_high": Column("Float64", "upper end of its interval"),
    "copied": Column("Float64", "own success less handover: what the teacher has from its context alone"),
    "copied_low": Column("Float64", "lower end of its interval, paired by question"),
    "copied_high": Column("Float64", "upper end of its interval"),
    "truncated": Column("Float64", "share of its completions stopped by the length limit"),
    "answers": Column("Int64", "its completions, of all questions"),
    "questions": Column("Int64", "questions"),
}

HANDOVERS: dict[str, Column] = {
    "teacher": Column("String", "name of the teacher"),
    "context": Column("String", "name of its context"),
    "part": Column("Float64", "how much of the teacher's completions comes first; 1: all before the answer"),
    "handover": Column("Float64", "success of the student, without the context, from there"),
    "handover_low": Column("Float64", "lower end of its interval, by question"),
    "handover_high": Column("Float64", "upper end of its interval"),
}

RANKS: dict[str, Column] = {
    "rank": Column("Int32", "by gain, from 1; equal gains share it"),
    "teacher": Column("String", "name of the teacher"),
    "context": Column("String", "name of its context"),
    "loss": Column("String", "name of the loss"),
    "gain": Column(
        "Float64",
        "first-order gain in success probability per rollout, for a step of unit length per rollout (root mean square) "
        "along the signal; null where nothing is known",
    ),
    "gain_low": Column("Float64", "lower end of its interval"),
    "gain_high": Column("Float64", "upper end of its interval"),
    "p_best": Column(
        "Float64",
        "probability that no other signal has a larger gain, split among ties; null where too little is known",
    ),
    "gain_deficit": Column("Float64", "gain of the first signal minus this one's"),
    "gain_deficit_low": Column("Float64", "lower end of its interval, paired by question"),
    "gain_deficit_high": Column("Float64", "upper end of its interval"),
    "update_gain": Column(
        "Float64",
        "<G, D> / |D|, G the policy gradient of success by the student's parameters and D the signal's update, always "
        "of different questions; null where it is not computed, or |D| is not known",
    ),
    "update_gain_low": Column("Float64", "lower end of its interval, by question"),
    "update_gain_high": Column("Float64", "upper end of its interval"),
    "update_cosine": Column("Float64", "the same over |G|"),
    "update_cosine_low": Column("Float64", "lower end of its interval"),
    "update_cosine_high": Column("Float64", "upper end of its interval"),
    "d_sq": Column("Float64", "mean |d|^2 of a token"),
    "questions": Column("Int64", "questions"),
    "carrying": Column(
        "Int64", "of these, the ones with correct and incorrect rollouts: the units of intervals (or rollouts)"
    ),
    "rollouts": Column("Int64", "rollouts of all questions"),
    **KEPT,
}

FORECASTS: dict[str, Column] = {
    "place": Column("Int32", "by forecast, from 1; null where there is none"),
    "teacher": Column("String", "name of the teacher"),
    "context": Column("String", "name of its context"),
    "loss": Column("String", "name of the loss"),
    "base": Column("Float64", "success of the student's rollouts"),
    "ceiling": Column("Float64", "success where training levels off: the handover, or own success where that is less"),
    "forecast": Column("Float64", "success after training; null where too little is known"),
    "forecast_low": Column("Float64", "lower end of its interval, at `scores.forecast_level`"),
    "forecast_high": Column("Float64", "upper end of its interval"),
    "change": Column("Float64", "forecast less base"),
    "change_low": Column("Float64", "lower end of its interval, paired by question"),
    "change_high": Column("Float64", "upper end of its interval"),
    "p_best": Column("Float64", "probability that no other signal ends with more success, split among ties"),
    "p_harm": Column("Float64", "probability that success ends below base"),
    "verdict": Column("String", "helps or harms, where the interval of the change leaves 0 out; else unclear"),
    "remark": Column("String", "what speaks against the rest, in words; empty where nothing does"),
}

VOCABULARY: dict[str, Column] = {
    "token_id": Column(
        "Int32", "a token of the vocabulary; the 20 that gain most of each signal, then those that lose"
    ),
    "token": Column("String", "its text"),
    "teacher": Column("String", "name of the teacher"),
    "context": Column("String", "name of its context"),
    "loss": Column("String", "name of the loss"),
    "push": Column("Float64", "d of the token, summed over the positions of a rollout where it is a likely next token"),
    "push_low": Column("Float64", "lower end of its interval, by question"),
    "push_high": Column("Float64", "upper end of its interval"),
    "ideal": Column("Float64", "g of the token, summed likewise: above 0 success wants it likelier"),
    "ideal_low": Column("Float64", "lower end of its interval, by question"),
    "ideal_high": Column("Float64", "upper end of its interval"),
    "nodes": Column("Int64", "nodes, by round, where it is a branch of the head"),
}

HISTORY: dict[str, Column] = {
    "night": Column("Datetime", "when the suite was started, UTC"),
    "run": Column("String", "name of the run"),
    "key": Column("String", "content key of everything that the run's tables are made from"),
    "teacher": Column("String", "name of the teacher"),
    "context": Column("String", "name of its context"),
    "loss": Column("String", "name of the loss"),
    "rollouts": Column("String", "all, or those that are correct or incorrect"),
    "alignment": Column("Float64", "as in summary.parquet; null where unresolved or undefined"),
    "alignment_low": Column("Float64", "lower end of its interval"),
    "alignment_high": Column("Float64", "upper end of its interval"),
    "reference": Column("Float64", "mean of the measurements it is compared with; null where there are none"),
    "reference_error": Column("Float64", "mean half-width of their intervals"),
    "change": Column("String", "new, steady, up, down, lost (undefined now), or unchanged (nothing was computed)"),
    "tokens_per_second": Column("Float64", "tokens decoded in trees; null where nothing was decoded"),
    "machine": Column("String", "name of the machine"),
}

RUN_TABLES = {
    "tokens": TOKENS,
    "summary": SUMMARY,
    "differences": DIFFERENCES,
    "predictors": PREDICTORS,
    "selection": SELECTION,
    "losses": LOSSES,
    "questions": QUESTIONS,
    "success": SUCCESS,
    "handover": HANDOVERS,
    "forecasts": FORECASTS,
    "vocabulary": VOCABULARY,
}
"""The tables of a diagnosis, by file name; a ranking writes `ranks`, and has the last three in `rank.json`."""
