"""Commits draws periodically while a stage samples them, so that a killed run loses little work."""

import time
from collections.abc import Mapping, Sequence

from schemas.arrays import AnyArray, Arrays
from schemas.config import RunConfig
from schemas.pipeline import PIPELINE
from tasks.operations.progress import publish
from tasks.run.keys import RunKeys
from tasks.stages.protocol import Decode, Unit, joined
from tasks.store.codec import Artefact
from tasks.store.store import Store

SUFFIX = ".zarr.zip"


class StoreCheckpoints:
    """Checkpoints of a run's draws in its store, under "rounds"."""

    def __init__(self, store: Store, keys: RunKeys, config: RunConfig) -> None:
        self._store, self._keys, self._config = store, keys, config

    @property
    def most_draws(self) -> int:
        """Maximum number of draws in a unit."""
        return self._config.execution.round_draws

    def decode_round(
        self, stage: str, question: str, index: int, units: Sequence[Unit], decode: Decode, layout: str = "rounds"
    ) -> dict[str, AnyArray]:
        """The outcomes of one round, unit by unit; draws already in the store are not decoded again.

        If a stage's rounds have their own key, finished rounds are kept for later rounds. For other stages they are
        kept until the artefact made from them is committed and `clear` is called.
        """
        declared = PIPELINE[stage]
        label = declared.draws.label if declared.draws is not None else stage
        keeps_rounds = declared.round_settings is not None
        key, total = self._keys.rounds(stage, question), units[-1].last if units else 0
        name = f"round-{index:04d}"
        finished = self._store.load("rounds", key, name=name + SUFFIX, layout=layout) if keeps_rounds else None
        if finished is not None and finished.meta["last"] == total:
            publish(label, len(finished["success"]))
            return dict(finished.arrays)
        parts = {p.meta["first"]: p for p in self._parts(key, index, layout)} if len(units) > 1 else {}
        ends = {unit.last for unit in units}
        done: list[Arrays] = []
        pending: list[Arrays] = []
        reached, first, committed = 0, 0, time.monotonic()
        for unit in units:
            if unit.first < reached:
                continue  # covered by the part loaded before
            part, tokens = parts.get(unit.first), 0
            if part is not None and not pending and part.meta["last"] in ends:
                outcome: Arrays = part.arrays
                reached = first = int(part.meta["last"])
            else:
                outcome = decode(unit)
                tokens = len(outcome["tokens"]) if "tokens" in outcome else int(outcome["length"].sum())
                pending.append(outcome)
                reached = unit.last
                if reached < total and time.monotonic() - committed >= self._config.execution.round_seconds:
                    self._commit(key, f"part-{index:04d}-{first:09d}", joined(pending, layout), layout, first, reached)
                    pending, first, committed = [], reached, time.monotonic()
            done.append(outcome)
            publish(label, len(outcome["success"]), tokens=tokens)
        if keeps_rounds:
            self._commit(key, name, joined(done, layout), layout, 0, total)
            self._remove(key, f"part-{index:04d}-")
        return joined(done, layout)

    def clear(self, stage: str, question: str) -> None:
        """Remove draws that a finished artefact no longer needs; keep rounds that larger settings can extend."""
        if PIPELINE[stage].keeps_draws:
            extends = PIPELINE[stage].keeps_rounds(self._config)
            self._remove(self._keys.rounds(stage, question), "part-" if extends else "")

    def _commit(self, key: str, name: str, outcome: Mapping[str, AnyArray], layout: str, first: int, last: int) -> None:
        meta = {"first": first, "last": last}
        self._store.commit("rounds", key, outcome, meta, name=name + SUFFIX, layout=layout)

    def _parts(self, key: str, index: int, layout: str) -> list[Artefact]:
        names = [name for name in self._store.names("rounds", key) if name.startswith(f"part-{index:04d}-")]
        found = [self._store.load("rounds", key, name=name, layout=layout) for name in names]
        return [part for part in found if part is not None]

    def _remove(self, key: str, prefix: str) -> None:
        """Remove rounds, or parts of a round, whose names start with `prefix`."""
        for name in self._store.names("rounds", key):
            if name.startswith(prefix):
                self._store.remove("rounds", key, name)
