"""Draws are committed as they are made: what an interrupted stage has done is not done again."""

from collections.abc import Sequence
from typing import Any

import pytest

from flows.command.configuration import checked
from tasks.engines.protocol import Continuation, Draw, Trunk
from tasks.engines.transformers.sampler import TransformersSampler
from tasks.run.session import RunSession, start_session
from tasks.run.shells import run_stage
from tasks.stages.protocol import Unit, equal_units


class Interrupted(BaseException):
    """As Ctrl-C."""


class Interrupting:
    """Ends the third call of the engine, and counts the draws of all."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[int] = []
        self.at: int | None = None
        original = TransformersSampler.continue_prefixes

        def counted(
            sampler: TransformersSampler, trunks: Sequence[Trunk], draws: Sequence[Draw], temperature: float
        ) -> list[Continuation]:
            self.calls.append(len(draws))
            if len(self.calls) == self.at:
                raise Interrupted
            return original(sampler, trunks, draws, temperature)

        monkeypatch.setattr(TransformersSampler, "continue_prefixes", counted)


@pytest.mark.parametrize(("stage", "most", "units"), [("rollouts", 2, [1, 2, 2]), ("values", 3, [2, 2, 2, 2, 2])])
def test_an_interrupted_stage_goes_on_where_it_was(
    stage: str, most: int, units: list[int], settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings |= {"questions": {**settings["questions"], "limit": 1}, "ranking": {"segments": 2, "draws": 2}}
    settings["sampling"] = {"rollouts": 5, "max_tokens": 24}
    settings["execution"] = {"round_seconds": 0.0, "round_draws": most}

    def job(store: str) -> RunSession:
        return start_session(checked({**settings, "store": f"{settings['store']}-{store}"}))

    ids = job("whole").keys.questions
    whole, killed, again = job("whole"), job("killed"), job("killed")
    for one in (whole, killed) if stage == "values" else ():
        run_stage(one, "rollouts", ids)
    engine = Interrupting(monkeypatch)
    run_stage(whole, stage, ids)
    assert sorted(engine.calls) == units
    planned, engine.calls, engine.at = engine.calls, [], 3
    with pytest.raises(Interrupted):
        run_stage(killed, stage, ids)
    assert killed.store.names("rounds", killed.keys.rounds(stage, ids[0]))
    assert ("rounds", killed.keys.rounds(stage, ids[0])) in killed.keys.references([stage])
    engine.calls, engine.at = [], None
    run_stage(again, stage, ids)
    assert engine.calls == planned[2:]
    key = whole.keys.key(stage, ids[0])
    a, b = (j.store.need(stage, key).arrays for j in (whole, again))
    assert all(a[name].tolist() == b[name].tolist() for name in a)
    assert again.store.names("rounds", again.keys.rounds(stage, ids[0])) == []


def test_units_are_as_equal_as_can_be() -> None:
    assert equal_units(0, 4) == []
    assert equal_units(4, 4) == [Unit(0, 4)]
    assert equal_units(10, 4) == [Unit(0, 3), Unit(3, 6), Unit(6, 10)]
