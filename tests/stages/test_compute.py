"""Stages one after another without a store: each makes what it declares, once, from what came before."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from schemas.arrays import Arrays, check_layout
from schemas.config import Model, Questions, RunConfig, Sampling, Settings, Teacher
from schemas.config.success import Success
from schemas.pipeline import PIPELINE, Scope, diagnosis_stages
from schemas.signals import Signal, Source, signals
from tasks.stages.compute import Computed, compute
from tasks.stages.protocol import Work
from tasks.stages.rollouts import refusal
from tests.helpers.oracle import OracleModels, oracle_config, oracle_rollouts, oracle_tree, random_chain

CONFIG = RunConfig(
    questions=Questions(path="none.jsonl"),
    student=Model(path="none"),
    teachers=[Teacher(name="one"), Teacher(name="two")],
    losses=["reverse_kl", "forward_kl"],
    sampling=Sampling(rollouts=3),
    success=Success(rollouts=0),
)


class Evidence:
    """Counts what it is asked for."""

    decoded = 0

    def __init__(self) -> None:
        self.asked: Counter[str] = Counter()
        self.losses: list[tuple[str, dict[Source, list[str]]]] = []
        chain = random_chain(0, length=4)
        models = OracleModels(chain, oracle_config(chain, rollouts=3, nodes=4, head=3, tail=2, draws=10))
        self._rollouts = oracle_rollouts(models)
        self._tree = oracle_tree(models, self._rollouts)

    def rollouts(self, question: str) -> Arrays:
        self.asked[f"rollouts {question}"] += 1
        return self._rollouts

    def tree(self, question: str, rollouts: Arrays) -> Arrays:
        assert rollouts is self._rollouts
        self.asked[f"tree {question}"] += 1
        return self._tree

    def write(self, question: str, sources: Sequence[Source], rollouts: Arrays) -> Mapping[Source, Arrays]:
        raise NotImplementedError

    def distillation(
        self,
        question: str,
        losses: Mapping[Source, Mapping[str, Settings]],
        rollouts: Arrays,
        tree: Arrays,
        texts: Mapping[Source, Arrays],
    ) -> Mapping[Signal, Arrays]:
        assert texts == {}
        self.losses.append((question, {source: list(of_source) for source, of_source in losses.items()}))
        T, N, B = len(rollouts["tokens"]), len(tree["node"]), len(tree["branch_token"])
        lengths = {"T": T, "N": N, "B": B, "E": 0}
        declared = PIPELINE["distillation"].arrays
        return {
            Signal(*source, name): {n: np.full(lengths[a.dims[0]], 0.5) for n, a in declared.items()}
            for source, of_source in losses.items()
            for name in of_source
        }

    def together(self, sources: Sequence[Source]) -> list[list[Source]]:
        return [list(sources)]

    def values(self, question: str, rollouts: Arrays) -> Arrays:
        raise NotImplementedError

    def texts(self, ids: Any) -> dict[int, str]:
        return {}

    def close(self) -> None:
        """Nothing is held."""


def computed(evidence: Any) -> Computed:
    return Computed(CONFIG, evidence, ["a", "b"], signals(CONFIG), lambda *_: 3)


def test_a_stage_that_is_asked_before_what_it_reads_is_an_error() -> None:
    with pytest.raises(KeyError):
        computed(Evidence()).run("trees")


def test_every_stage_makes_what_it_declares() -> None:
    done = computed(Evidence())
    done.run(*diagnosis_stages())
    for name in diagnosis_stages():
        stage = PIPELINE[name]
        if stage.scope is Scope.SOURCE:
            continue  # no context has generated texts: nothing is asked for
        for question in ("a", "b"):
            for signal in stage.signals(CONFIG) if stage.scope is Scope.SIGNAL else [None]:
                check_layout(name, stage.arrays, done.artefact(name, question, signal))


def test_work_is_asked_for_once_of_each_question_and_source() -> None:
    evidence = Evidence()
    done = computed(evidence)
    done.run(*diagnosis_stages())
    assert evidence.asked == {f"{what} {q}": 1 for what in ("rollouts", "tree") for q in "ab"}
    both = ["reverse_kl", "forward_kl"]
    assert evidence.losses == [(q, {Source(t, "none"): both for t in ("one", "two")}) for q in "ab"]
    assert done.artefact("prior", "a") is done.artefact("prior", "b")
    some = signals(CONFIG)[0]
    assert done.artefact("trees", "a", some) is done.artefact("trees", "a")
    assert [tree["node"].tolist() for tree in done.every("trees")] == [
        done.artefact("trees", q)["node"].tolist() for q in "ab"
    ]
    assert done.seed("purpose", "trees", "a") == 3


def test_only_losses_that_are_wanted_are_asked_for() -> None:
    evidence = Evidence()
    done = computed(evidence)
    done.run("rollouts", "trees")
    wanted = Signal("two", "none", "forward_kl")
    provider: Any = evidence
    work = Work(CONFIG, provider, done, "b", [wanted])
    assert list(compute(PIPELINE["distillation"], work)) == [wanted]
    assert evidence.losses == [("b", {Source("two", "none"): ["forward_kl"]})]
    ranked = compute(PIPELINE["ranking"], work)[wanted]
    check_layout("ranking", PIPELINE["ranking"].arrays, ranked)


@pytest.mark.parametrize(
    ("truncated", "why"),
    [
        ([True, True], "all 2 rollouts hit the length limit; raise sampling.max_tokens"),
        ([True, False], None),
        ([False], None),
    ],
)
def test_questions_whose_rollouts_were_all_cut_are_refused(truncated: list[bool], why: str | None) -> None:
    assert refusal({"truncated": np.array(truncated)}) == why
