"""Ready-made tasks: data sets of the hub with the prompt and the verifier that go with them."""

from typing import Any, Literal, NamedTuple, get_args

from pydantic import Field

from schemas.config.base import COSMETIC, Settings
from schemas.config.inputs import Url

TaskName = Literal["boolq", "mmlu", "aime_2024", "aime_2025", "gsm8k", "math_500"]


class TaskSource(NamedTuple):
    """What a task's name stands for.

    Attributes:
        repository, revision, file: of the data set on the hub.
        questions, prompt, verifier: settings of these parts of a run.
    """

    repository: str
    revision: str
    file: str
    questions: dict[str, Any]
    prompt: dict[str, Any]
    verifier: dict[str, Any]


_BOXED = "\n\nPlease reason step by step, and put your final answer within \\boxed{}."
_PROBLEM = {"template": "{{ problem }}" + _BOXED}

TASKS: dict[str, TaskSource] = {
    "boolq": TaskSource(
        "google/boolq",
        "35b264d03638db9f4ce671b711558bf7ff0f80d5",
        "data/validation-00000-of-00001.parquet",
        {"id": None, "layout": "boolq"},
        {
            "template": "{{ passage }}\n\nQuestion: {{ question }}?\n\n"
            'Think it through, then end with "Answer: yes" or "Answer: no".'
        },
        {"kind": "yes_no", "marker": "Answer:"},
    ),
    "mmlu": TaskSource(
        "cais/mmlu",
        "c30699e8356da336a370243923dbaf21066bb9fe",
        "all/test-00000-of-00001.parquet",
        {"id": None, "layout": "mmlu"},
        {
            "template": "{{ question }}\n\n{{ choices }}\n\n"
            'Think it through, then end with "Answer: " and the letter of the right choice.'
        },
        {"kind": "choice", "marker": "Answer:"},
    ),
    "aime_2024": TaskSource(
        "HuggingFaceH4/aime_2024",
        "2fe88a2f1091d5048c0f36abc874fb997b3dd99a",
        "data/train-00000-of-00001.parquet",
        {"id": "id", "answer": "answer"},
        _PROBLEM,
        {"kind": "math"},
    ),
    "aime_2025": TaskSource(
        "math-ai/aime25",
        "563bb8404243c5f09de6ec262f2db674fe5bce9b",
        "test.jsonl",
        {"id": "id", "answer": "answer"},
        _PROBLEM,
        {"kind": "math"},
    ),
    "gsm8k": TaskSource(
        "openai/gsm8k",
        "740312add88f781978c0658806c59bc2815b9866",
        "main/test-00000-of-00001.parquet",
        {"id": None, "layout": "gsm8k"},
        {"template": "{{ question }}" + _BOXED},
        {"kind": "math"},
    ),
    "math_500": TaskSource(
        "HuggingFaceH4/MATH-500",
        "6e4ed1a2a79af7d8630a6b768ec859cb5af4d3be",
        "test.jsonl",
        {"id": "unique_id", "answer": "answer"},
        _PROBLEM,
        {"kind": "math"},
    ),
}
"""Every task by name."""


class Task(Settings):
    """A ready-made task; what is set beside it takes the place of its own settings."""

    name: TaskName = Field(description="Sets questions, prompt and verifier", json_schema_extra=COSMETIC)
    folder: Url | None = Field(
        None, description="A copy of the data set, in the hub's layout; null: the hub", json_schema_extra=COSMETIC
    )


def with_task(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings of a run with those that its task stands for, if it names one; the task's short form is its name."""
    task = settings.get("task")
    if isinstance(task, str):
        task = {"name": task}
    if isinstance(task, Task):
        task = task.model_dump()
    if not isinstance(task, dict) or task.get("name") not in get_args(TaskName):
        return {**settings, "task": task} if task is not None else settings
    source, folder = TASKS[task["name"]], task.get("folder")
    place = f"hf://datasets/{source.repository}@{source.revision}" if folder is None else str(folder).rstrip("/")
    of_task = {"questions": {"path": f"{place}/{source.file}", **source.questions}, "prompt": source.prompt}
    merged = {name: _beside(part, settings.get(name)) for name, part in of_task.items()}
    return {"verifier": source.verifier, **settings, "task": task, **merged}


def _beside(of_task: dict[str, Any], given: object) -> object:
    """A part of the settings: that of a task, with what is given."""
    if isinstance(given, Settings):
        given = given.model_dump(exclude_unset=True)
    return {**of_task, **given} if isinstance(given, dict) else given or of_task
