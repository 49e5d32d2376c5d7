"""The demo's models as a cached stage, in one folder per content key with a manifest of digests; and its questions."""

import json
import os
import shutil
import uuid
from collections.abc import Callable, Sequence
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import Any

import yaml
from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.states import Completed

from schemas.config import DemoConfig
from tasks.demo.chains import CONTEXTS, draw_questions
from tasks.demo.train import Recipe as TrainingRecipe
from tasks.demo.train import recipes, student, train
from tasks.operations.progress import publish
from tasks.operations.workers import in_processes
from tasks.store.keys import Recipe, engine_fingerprint

VERSION = 2
MANIFEST = "manifest.json"
SMALL = 32
"""Hidden size of the further student of a validation."""
TRAINED, HELD_OUT = 2560, 400
"""Questions that a validation trains on, and those that it measures success on."""


def models_key(wanted: Sequence[TrainingRecipe]) -> str:
    """Content key of models that are trained together."""
    # steps are an estimate where a model trains until it is good
    left_out = {recipe.name: {"seconds", *([] if recipe.copies else ["steps"])} for recipe in wanted}
    every = [{k: v for k, v in asdict(recipe).items() if k not in left_out[recipe.name]} for recipe in wanted]
    settings: dict[str, object] = {"recipes": every}
    return Recipe("models", VERSION, settings, [], {"engine": engine_fingerprint("transformers")}).key


def models_of(demo: DemoConfig) -> list[list[TrainingRecipe]]:
    """The demo's models, and apart from them the further student of a validation."""
    own = recipes(demo.seed, demo.seconds, demo.width)
    return [own, [student(demo.seed, demo.seconds, SMALL)]] if demo.validate_forecast else [own]


def models_folder(root: Path, wanted: Sequence[TrainingRecipe]) -> Path:
    """The folder of models that are trained together."""
    return root / "models" / models_key(wanted)


def is_complete(folder: Path) -> bool:
    """True if the folder's manifest exists and every file matches its digest."""
    if not (folder / MANIFEST).is_file():
        return False
    files: dict[str, str] = json.loads((folder / MANIFEST).read_text())["files"]
    return all((folder / f).is_file() and _digest(folder / f) == expected for f, expected in files.items())


def _digest(path: Path) -> str:
    return sha256(path.read_bytes()).hexdigest()


def demo_configuration(root: Path, demo: DemoConfig) -> dict[str, Any]:
    """The demo's run, as an ordinary configuration."""
    folder, *others = (models_folder(root, wanted) for wanted in models_of(demo))
    questions = root / "demo" / f"questions-{demo.seed}-{demo.questions}.jsonl"
    contexts = [{"kind": kind, "template": template} for kind, template in CONTEXTS.items()]
    return {
        "name": "demo",
        "seed": demo.seed,
        "questions": {"path": str(questions)},
        "student": {"path": str(folder / "student")},
        "verifier": {"kind": "numeric", "marker": "answer"},
        "sampling": {"rollouts": 8, "max_tokens": 64},
        "teachers": [
            {"name": "large", "model": {"path": str(folder / "teacher")}},
            {"name": "self", "contexts": ["none", *contexts]},
            {
                "name": "copying",
                "model": {"path": str(folder / "copying")},
                "contexts": [{"kind": "answer", "name": "leak", "template": CONTEXTS["answer"]}],
            },
        ],
        "losses": ["reverse_kl", "forward_kl", {"kind": "jsd", "beta": 0.5}],
        "update": {"dimensions": 16_384},
        "validation": {
            "questions": {"path": str(questions.with_suffix(".train.jsonl"))},
            "held_out": {"path": str(questions.with_suffix(".held-out.jsonl"))},
            "students": [{"path": str(other / "student")} for other in others],
            "optimisers": [{"kind": "normalised", "length": 0.1}, {"kind": "adamw", "learning_rate": 1e-3}],
            "selections": [*({"kind": kind} for kind in ("first", "incorrect", "entropy", "divergence", "tip"))],
            "selected": ["large/none/reverse_kl"],
            "steps": 20,
            "evaluate_at": [3, 8],
            "workers": os.cpu_count() or 1,
        },
    }


def write_inputs(root: Path, demo: DemoConfig, merge: Callable[[dict[str, Any]], dict[str, Any]]) -> dict[str, Any]:
    """Write the questions, also those of a validation, and the configuration; returns the configuration.

    Args:
        merge: the configuration with the user's changes.
    """
    own = demo_configuration(root, demo)
    path, configuration = Path(own["questions"]["path"]), merge(own)
    path.parent.mkdir(parents=True, exist_ok=True)
    trained = demo.questions + TRAINED
    rows = [json.dumps(row) + "\n" for row in draw_questions(trained + HELD_OUT, demo.seed)]
    path.write_text("".join(rows[: demo.questions]))
    path.with_suffix(".train.jsonl").write_text("".join(rows[demo.questions : trained]))
    path.with_suffix(".held-out.jsonl").write_text("".join(rows[trained:]))
    path.with_name("demo.yaml").write_text(yaml.safe_dump(configuration, sort_keys=False))
    return configuration


def make_models(wanted: Sequence[TrainingRecipe], folder: Path) -> None:
    """Train models side by side and publish their folder with one rename.

    Raises:
        RuntimeError: a model did not reach its accuracy in time.
    """
    work = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}")
    work.mkdir(parents=True)
    try:
        trained = _train_all(wanted, work)
        files = {p.relative_to(work).as_posix(): _digest(p) for p in sorted(work.rglob("*")) if p.is_file()}
        (work / MANIFEST).write_text(json.dumps({"files": files, "trained": trained}, indent=1))
        shutil.rmtree(folder, ignore_errors=True)  # of models that did not verify
        work.rename(folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _train_all(wanted: Sequence[TrainingRecipe], folder: Path) -> dict[str, Any]:
    """Train models in processes of their own; one that starts from another waits for it."""
    publish("models", 0, sum(r.steps for r in wanted))
    trained: dict[str, Any] = {}
    left = list(wanted)

    def ready() -> list[tuple[TrainingRecipe, Path]]:
        started = [r for r in left if r.copies is None or r.copies in trained]
        left[:] = [r for r in left if r not in started]
        return [(recipe, folder / recipe.name) for recipe in started]

    for (recipe, _), result in in_processes(_train_one, ready, min(len(wanted), os.cpu_count() or 1)):
        trained[recipe.name] = result
    return trained


def _train_one(recipe: TrainingRecipe, folder: Path) -> dict[str, Any]:
    return train(recipe, folder, lambda steps: publish("models", steps))


@task(name="models", cache_policy=NO_CACHE, persist_result=False, task_run_name="train the models")
def models_task(demo: DemoConfig, root: str) -> Any:
    """The demo's models. `Cached` if they exist and verify."""
    folders = [(models_folder(Path(root), wanted), wanted) for wanted in models_of(demo)]
    missing = [(folder, wanted) for folder, wanted in folders if not is_complete(folder)]
    for folder, wanted in missing:
        make_models(wanted, folder)
    return None if missing else Completed(name="Cached", message="the models are there")
