"""The models of a run: which teachers are scored together, and which have to make room."""

from typing import Any

import pytest

from flows.command.configuration import checked
from schemas.signals import sources
from tasks.run.session import start_session
from tests.helpers.sessions import provided

STUDENT, TEACHER = 100, 150


@pytest.mark.parametrize(
    ("free", "groups"),
    [
        (1000, [["one/none", "self/none", "two/none", "two/answer"]]),
        (STUDENT + 2 * TEACHER, [["one/none", "self/none", "two/none", "two/answer"]]),
        (STUDENT + 2 * TEACHER - 1, [["one/none", "self/none"], ["two/none", "two/answer"]]),
        (0, [["one/none", "self/none"], ["two/none", "two/answer"]]),  # they take turns
    ],
)
def test_sources_are_together_while_memory_holds_their_models(
    free: int, groups: list[list[str]], settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = settings["teachers"][0]["model"]["path"]
    one, two = ({"path": path, "dtype": dtype} for dtype in ("float32", "bfloat16"))
    last = {"name": "two", "model": two, "contexts": ["none", "answer"]}
    teachers = [{"name": "one", "model": one}, {"name": "self"}, last]
    session = start_session(checked({**settings, "teachers": teachers}))
    student = session.config.model
    monkeypatch.setattr("tasks.run.models.free_memory", lambda device: free)
    monkeypatch.setattr("tasks.run.models.total_memory", lambda device: 0)
    monkeypatch.setattr("tasks.run.models.weights", lambda m: STUDENT if m == student else TEACHER)
    found = session.provider.together(sources(session.config))
    assert [["/".join(source) for source in group] for group in found] == groups


def test_teachers_are_dropped_only_where_room_is_needed(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = settings["teachers"][0]["model"]["path"]
    teachers = [{"name": t, "model": {"path": path, "dtype": d}} for t, d in (("one", "float32"), ("two", "bfloat16"))]
    models = provided(start_session(checked({**settings, "teachers": teachers})))
    first, second = sources(models._config)
    one = models.teacher(first)
    assert models.teacher(second) is not one and models.teacher(first) is one
    monkeypatch.setattr("tasks.run.models.fits", lambda model, device: False)
    del models._scorers[next(m for m in models._scorers if m.dtype == "bfloat16")]
    models.teacher(second)
    assert [m.dtype for m in models._scorers] == ["bfloat16"]
