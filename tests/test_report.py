"""The report on hostile and on empty input."""

from typing import Any

import numpy as np

from schemas.config import Scores
from tasks.outcomes import merged
from tasks.outputs import make_tables
from tasks.prior import fit
from tasks.report.page import render
from tests.oracle import OracleJob, oracle_config, oracle_rollouts, random_chain, teacher_of
from tests.test_estimators import scored, tree_of

HOSTILE = "<script>alert(1)</script>\"'&"


def page(texts: str, left_out: dict[str, str], **names: Any) -> str:
    chain = random_chain(3, length=10)
    job = OracleJob(chain, oracle_config(chain, rollouts=6, nodes=30, head=4, tail=2, draws=40))
    rollouts = oracle_rollouts(job)
    q = scored(job, names.get("teacher", teacher_of(chain, 4, 2.0, 0.5)), rollouts, tree_of(job, rollouts))
    by_id = dict.fromkeys(range(chain.tokens), texts)
    scores = Scores(bootstrap=200)
    config = job.config.model_copy(update={"scores": scores, "name": "run"})
    tables, facts = make_tables(config, [q], lambda _: by_id, fit([merged(q.tree).outcomes]))
    assert np.isfinite(tables["tokens"]["weight"].to_numpy()).all()
    return render(config, [q], facts, tables, lambda _: by_id, left_out)


def test_model_output_is_escaped_and_nothing_is_fetched() -> None:
    html = page(HOSTILE, {f"q {HOSTILE}": "all rollouts hit the length limit"})
    assert "<script" not in html and "alert(1)" in html
    assert "&lt;script&gt;" in html
    assert "default-src 'none'" in html
    for address in ("src=", 'href="http', "@import", "url(http"):
        assert address not in html.replace("xmlns", "")
    assert "1 left out" in html


def test_a_page_of_undefined_scores() -> None:
    html = page("x", {}, teacher=random_chain(3, length=10))
    assert "undefined" in html and "nan" not in html.lower().replace("nanum", "")
