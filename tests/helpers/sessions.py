"""What tests look at of a session."""

from tasks.run.models import LoadedModels
from tasks.run.session import RunSession
from tasks.stages.models import ModelProvider


def provided(session: RunSession) -> LoadedModels:
    """The models of a run that has some."""
    assert isinstance(session.provider, ModelProvider) and isinstance(session.provider.models, LoadedModels)
    return session.provider.models
