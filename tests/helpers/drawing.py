"""Draws that are made in one go, without a store."""

from collections.abc import Callable, Sequence

import numpy as np

from schemas.arrays import AnyArray
from tasks.calibration.simulate import Rolled, draw
from tasks.stages.protocol import Decode, Unit, joined
from tasks.stages.trees.planner import Launches


class NoCheckpoints:
    """Keeps nothing: draws that are made in one go."""

    most_draws = 2**31

    def decode_round(
        self, stage: str, question: str, index: int, units: Sequence[Unit], decode: Decode, layout: str = "rounds"
    ) -> dict[str, AnyArray]:
        """The outcomes of one round."""
        return joined([decode(unit) for unit in units], layout)


def drawn_by(rolled: Rolled, rng: np.random.Generator) -> Callable[[int, object, Launches], dict[str, AnyArray]]:
    """What draws rounds of forced tokens for `tasks.stages.trees.planner.grow_tree`."""
    return lambda index, design, launches: draw(rolled, launches, rng)
