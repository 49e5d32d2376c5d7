"""The paper's grid at a small size: the demo's task, students of three sizes, every kind of context; for `infra/grid`.

python infra/grid.py teachers          the teachers as an override of the demo
python infra/grid.py table STORE       the table of the runs, in Markdown
"""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl

WIDTHS = (32, 64, 96)
LOSS = "jsd"
CONTEXTS: dict[str, str] = {
    "answer": "{{ prompt }} answer {{ answer }}",
    "solution": "{{ prompt }} solution {{ solution }}",
    "summary": "{{ prompt }} summary {{ summary }}",
    "wrong_attempt": "{{ prompt }} wrong {{ wrong_attempt }}",
    "right_attempt": "{{ prompt }} solution {{ right_attempt }}",
    "contrast": "{{ prompt }} solution {{ right_attempt }} wrong {{ failed_attempt }}",
    "feedback": "{{ prompt }} {% if verdict == 'right' %}solution{% else %}wrong{% endif %} {{ attempt }}",
}
OWN_KINDS = ("answer", "solution", "summary", "wrong_attempt", "right_attempt", "feedback")


def teachers() -> list[dict[str, Any]]:
    """A larger model, and the student itself with each context; the larger model is the demo's own."""
    contexts = [
        {"kind": name if name in OWN_KINDS else "custom", "name": name, "template": template}
        for name, template in CONTEXTS.items()
    ]
    return [{"name": "self", "contexts": contexts}]


def cell(row: Mapping[str, Any] | None) -> str:
    """An alignment with its interval, and the mean of plain cosines."""
    if row is None or row["alignment"] is None:
        return "-"
    numbers = [row[name] for name in ("alignment", "alignment_low", "alignment_high", "mean_cosine")]
    value, low, high, mean = (f"{x:.2f}".replace("0.", ".", 1) if x is not None else "-" for x in numbers)
    return f"{value} [{low}, {high}] {mean}"


def table(store: Path) -> str:
    """Rows by teacher and context, columns by size and outcome of the rollouts."""
    summaries = {w: pl.read_parquet(store / "runs" / f"grid-{w}" / "summary.parquet") for w in WIDTHS}
    columns = [(width, bin_) for width in WIDTHS for bin_ in ("correct", "incorrect")]
    head = "| teacher, context | " + " | ".join(f"{width}, {bin_}" for width, bin_ in columns) + " |"
    lines = [head, "|---" * (len(columns) + 1) + "|"]
    chosen = {w: s.filter((pl.col("group") == "outcome") & (pl.col("loss") == LOSS)) for w, s in summaries.items()}
    for teacher, context in chosen[WIDTHS[0]].select("teacher", "context").unique(maintain_order=True).iter_rows():
        cells = []
        for width, bin_ in columns:
            of_bin = (pl.col("teacher") == teacher) & (pl.col("context") == context) & (pl.col("bin") == bin_)
            rows = chosen[width].filter(of_bin).to_dicts()
            cells.append(cell(rows[0] if rows else None))
        lines.append(f"| {teacher}, {context} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    if sys.argv[1] == "teachers":
        sys.stdout.write(json.dumps(teachers()))
    else:
        sys.stdout.write(table(Path(sys.argv[2])) + "\n")
