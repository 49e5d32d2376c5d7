"""The demo's models as a cached stage, in one folder per content key with a manifest of digests; and its questions."""

import json
import multiprocessing
import os
import shutil
import uuid
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import asdict
from hashlib import sha256
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from typing import Any

import yaml
from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.states import Completed

from schemas.config import DemoConfig
from tasks.demo.chains import CONTEXTS, draw_questions
from tasks.demo.train import Recipe as TrainingRecipe
from tasks.demo.train import recipes, train
from tasks.operations.progress import publish
from tasks.store.keys import Recipe, engine_fingerprint

VERSION = 1
MANIFEST = "manifest.json"

_steps: "SimpleQueue[int] | None" = None


def models_key(demo: DemoConfig) -> str:
    """Content key of the demo's models."""
    every = [asdict(recipe) for recipe in recipes(demo.seed, 1.0, demo.width)]
    training = [{k: v for k, v in recipe.items() if k not in ("seconds", "steps")} for recipe in every]
    settings: dict[str, object] = {"seed": demo.seed, "recipes": training}
    return Recipe("models", VERSION, settings, [], {"engine": engine_fingerprint("transformers")}).key


def models_folder(root: Path, demo: DemoConfig) -> Path:
    """The folder of the models."""
    return root / "models" / models_key(demo)


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
    folder, questions = models_folder(root, demo), root / "demo" / f"questions-{demo.seed}-{demo.questions}.jsonl"
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
        ],
        "losses": ["reverse_kl", "forward_kl", {"kind": "jsd", "beta": 0.5}],
    }


def write_inputs(root: Path, demo: DemoConfig, merge: Callable[[dict[str, Any]], dict[str, Any]]) -> dict[str, Any]:
    """Write the questions and the configuration to the same folder; returns the configuration.

    Args:
        merge: the configuration with the user's changes.
    """
    own = demo_configuration(root, demo)
    path, configuration = Path(own["questions"]["path"]), merge(own)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in draw_questions(demo.questions, demo.seed)))
    path.with_name("demo.yaml").write_text(yaml.safe_dump(configuration, sort_keys=False))
    return configuration


def make_models(demo: DemoConfig, folder: Path) -> None:
    """Train both models side by side and publish their folder with one rename.

    Raises:
        RuntimeError: a model did not reach its accuracy in time.
    """
    work = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}")
    work.mkdir(parents=True)
    try:
        trained = _train_all(recipes(demo.seed, demo.seconds, demo.width), work)
        files = {p.relative_to(work).as_posix(): _digest(p) for p in sorted(work.rglob("*")) if p.is_file()}
        (work / MANIFEST).write_text(json.dumps({"files": files, "trained": trained}, indent=1))
        shutil.rmtree(folder, ignore_errors=True)  # of models that did not verify
        work.rename(folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _train_all(wanted: list[TrainingRecipe], folder: Path) -> dict[str, Any]:
    context = multiprocessing.get_context("spawn")
    queue: SimpleQueue[int] = context.SimpleQueue()
    publish("models", 0, sum(r.steps for r in wanted))
    workers = min(len(wanted), os.cpu_count() or 1)
    with ProcessPoolExecutor(workers, context, initializer=_connect, initargs=(queue,)) as pool:
        futures: dict[Future[dict[str, Any]], str] = {
            pool.submit(_train_one, recipe, folder / recipe.name): recipe.name for recipe in wanted
        }
        waiting = set(futures)
        while waiting:
            _, waiting = wait(waiting, timeout=0.5, return_when=FIRST_COMPLETED)
            while not queue.empty():
                publish("models", queue.get())
        return {name: future.result() for future, name in futures.items()}


def _connect(queue: "SimpleQueue[int]") -> None:
    global _steps
    _steps = queue


def _train_one(recipe: TrainingRecipe, folder: Path) -> dict[str, Any]:
    put: Callable[[int], None] = _steps.put if _steps is not None else lambda _: None
    return train(recipe, folder, put)


@task(name="models", cache_policy=NO_CACHE, persist_result=False, task_run_name="train student and teacher")
def models_task(demo: DemoConfig, root: str) -> Any:
    """The demo's models; returns their folder. `Cached` if they exist and verify."""
    folder = models_folder(Path(root), demo)
    if is_complete(folder):
        return Completed(name="Cached", message="the models are there", data=str(folder))
    make_models(demo, folder)
    return str(folder)
