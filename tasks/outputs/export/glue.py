"""The Python files of an export: the rule, the reader of weights, and the code that a trainer's hook wants."""

from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from schemas.signals import Signal
from schemas.token_weights import EXPORT_SCHEMA
from tasks.outputs.export.source import display
from tasks.stages.aggregate.token_rule_fit import FEATURES, MOST_WEIGHT, Rule

TRAINERS = {
    "verl": "opdscope_verl.py",
    "trl": "opdscope_trl.py",
    "prime-rl": "opdscope_prime_rl.py",
    "miles": "opdscope_miles.py",
    "nemo-rl": "opdscope_nemo_rl.py",
    "tinker": "opdscope_tinker.py",
}
"""Trainers, and the module that each gets."""
TABLES = ("jsonl", "parquet")
"""What is exported without a trainer."""
TARGETS = (*TRAINERS, *TABLES)

READ = {
    "trl": "1.16.0",
    "verl": "verl 1dda039 of 22 August 2026",
    "prime_rl": "prime-rl 559b447 of 21 August 2026",
    "miles": "miles 31f1ca9 of 21 August 2026",
    "nemo_rl": "NeMo-RL 7ea279a of 22 August 2026",
    "tinker": "tinker-cookbook 9dfcc3a of 19 August 2026",
}
"""The version, or the commit, of each trainer that its module was written for."""


def python_files(
    to: str, run: str, signal: Signal, rules: dict[str, Rule], mask: bool, temperature: float
) -> dict[str, bytes]:
    """Python modules of an export by name; for tables, only that of the rule.

    Args:
        temperature: at which the run sampled; the rules' features are taken at it.
    """
    templates = Environment(  # noqa: S701 - Python, not HTML; every name is escaped as Python text
        loader=PackageLoader("tasks.outputs.export"), undefined=StrictUndefined, trim_blocks=True
    )
    told: dict[str, Any] = {
        "schema": EXPORT_SCHEMA,
        "run_text": in_docstring(run),
        "signal_text": in_docstring(display(signal)),
        "signal": repr(signal._asdict()),
        "mask": repr(mask),
        "most": repr(MOST_WEIGHT),
        "temperature": repr(float(temperature)),
        "squashed": repr(tuple(name for name, feature in FEATURES.items() if feature.formula != "x")),
        "features": FEATURES,
        "rules": {
            name: {
                "constant": repr(float(rule.constant)),
                "coefficients": {f: repr(float(b)) for f, b in zip(rule.features, rule.coefficients, strict=True)},
            }
            for name, rule in rules.items()
        },
        "read": READ,
    }
    names = ["opdscope_rule.py"]
    if to in TRAINERS:
        names += ["opdscope_replay.py", TRAINERS[to]]
    return {name: templates.get_template(f"{name}.jinja").render(told).encode() + b"\n" for name in names}


def in_docstring(text: str) -> str:
    """A text inside a Python string with three double quotes."""
    return text.encode("unicode_escape").decode().replace('"', '\\"')
