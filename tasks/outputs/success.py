"""Teachers' own success and handover over the questions of a run."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from schemas.signals import answering_sources
from tasks.run.reads import StoredReads
from tasks.run.session import RunSession
from tasks.stages.aggregate.success import Answered, handover_rows, success_rows


def success_tables(session: RunSession, ids: Sequence[str]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows of `schemas.tables.SUCCESS` and of `HANDOVERS`; none where no teacher answers."""
    config, sources = session.config, answering_sources(session.config)
    if not sources:
        return [], []
    reads = StoredReads(session.store, session.keys)
    questions = [
        Answered(
            float(np.mean(reads.artefact("rollouts", i)["correct"])),
            {source: reads.artefact("answers", i, source.every_loss) for source in sources},
            {source: reads.artefact("handover", i, source.every_loss) for source in sources},
        )
        for i in ids
    ]
    return success_rows(questions, config.scores, config.seed), handover_rows(questions, config.scores, config.seed)
