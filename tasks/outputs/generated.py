"""What became of the texts that were generated for contexts."""

from collections.abc import Sequence

from schemas.signals import written_sources
from tasks.run.session import RunSession
from tasks.stages.texts import told


def generated_texts(session: RunSession, ids: Sequence[str]) -> list[str]:
    """A line for each teacher with a context that contains generated text; none without such contexts."""
    keys = session.keys
    return told(
        {
            source: [session.store.need("texts", keys.key("texts", i, source.every_loss)).arrays for i in ids]
            for source in written_sources(session.config)
        }
    )
