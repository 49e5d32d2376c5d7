"""A small validation: configuration, trainer, and a keeper of states in memory."""

import json
from pathlib import Path
from typing import Any

from flows.command.configuration import checked
from schemas.arrays import TRAINING_STATE, Arrays, check_layout
from schemas.config import RunConfig
from tasks.demo.chains import draw_questions
from tasks.validation.session import read_material
from tasks.validation.trainer import Trainer


def validation_config(
    settings: dict[str, Any], folder: Path, run: dict[str, Any] | None = None, **more: Any
) -> RunConfig:
    """A small run's configuration with a validation of 3 steps; `run` are other fields of the run."""
    rows = draw_questions(30, 7)
    for name, part in (("train", rows[:20]), ("held_out", rows[20:])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    validation = {
        "questions": {"path": str(folder / "train.jsonl")},
        "held_out": {"path": str(folder / "held_out.jsonl")},
        "optimisers": [{"kind": "adamw", "learning_rate": 0.01}, {"kind": "normalised", "length": 0.5}],
        "seeds": 1,
        "steps": 3,
        "batch": 6,
        "evaluate_at": [1],
        "held_out_rollouts": 2,
        "diagnose": False,
        **more,
    }
    return checked({**settings, **(run or {}), "validation": validation})


def trainer_of(config: RunConfig) -> Trainer:
    return Trainer(*read_material(config))


class Kept:
    """A keeper of states in memory, which is due after some steps."""

    def __init__(self, due: int | None = None) -> None:
        self.state: Arrays | None = None
        self._left = due

    def load(self) -> Arrays | None:
        return self.state

    def due(self) -> bool:
        self._left = None if self._left is None else self._left - 1
        return self._left == 0

    def save(self, arrays: Arrays) -> None:
        check_layout("training_states", TRAINING_STATE, arrays)
        self.state = arrays
