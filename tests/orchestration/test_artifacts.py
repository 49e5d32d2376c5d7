"""What a run leaves in Prefect's UI: hostile text is shown as it is, keys are plain, figures are those of the run."""

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from typing import Any
from uuid import UUID, uuid4

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from flows.orchestration import artifacts
from flows.orchestration.artifacts import (
    REPORTS_URL,
    markdown_artifact,
    output_link,
    plain,
    progress_artifacts,
    run_link,
    scores_artifact,
    summary_artifact,
    table_artifact,
)
from tasks.operations.progress import publish
from tasks.run.shells import TaskSummary
from tasks.store.store import Store

HOSTILE = [
    "<script>alert(1)</script>",
    "[here](javascript:alert(1))",
    "![x](http://evil/x.png)",
    "a`b`c",
    "``` `",
    "| a | b |",
    "# title\n- item\n1. x",
    "*a* _b_ ~~c~~ __d__",
    "a\\",
    "\\`x\\*",
    "&lt;b&gt; &amp; &#60;",
    "chain-001_b",
    "12. first",
    "<http://evil>",
    "سؤال: ‏[x](y)",
    "x" * 5000,
]


class Text(HTMLParser):
    """The text of a page, and the names of its elements."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.elements: set[str] = set()
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.elements.add(tag)

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join("".join(self.texts).split())


def rendered(markdown: str) -> Text:
    return Text(MarkdownIt("gfm-like", {"linkify": False, "html": True}).render(markdown))


def one_line(text: str) -> str:
    return " ".join(text.replace("\0", "\ufffd").split())


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_is_shown_as_it_is(text: str) -> None:
    page = rendered(f"* x: {plain(text)}")
    assert page.text == f"x: {one_line(text)}" and page.elements <= {"ul", "li"}


@given(st.text(st.sampled_from("`*_{}[]()<>#+!|~-&;\\ a1.:/\n'\"=x"), max_size=40))
@settings(deadline=None, max_examples=300)
def test_any_text_is_shown_as_it_is(text: str) -> None:
    page = rendered(f"* x: {plain(text)}")
    assert page.text == one_line(f"x: {one_line(text)}") and page.elements <= {"ul", "li"}


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """What would be sent to Prefect, by key."""
    found: dict[str, Any] = {}
    ids: dict[UUID, str] = {}

    def create(content: Any, *, key: str, description: str, **more: Any) -> UUID:
        found[key] = {"content": content, "description": description, **more}
        ids[new := uuid4()] = key
        return new

    def update(artifact: UUID, progress: float, description: str) -> None:
        found.setdefault("updates", []).append((ids[artifact], progress, description))

    for kind in ("link", "markdown", "progress", "table"):
        monkeypatch.setattr(artifacts, f"create_{kind}_artifact", create)
    monkeypatch.setattr(artifacts, "update_progress_artifact", update)
    yield found


@pytest.mark.parametrize(
    ("name", "key"),
    [("small-scores", "small-scores"), ("My_Run.2-report.html", "my-run-2-report-html"), ("_a_", "a"), ("A--B", "a-b")],
)
def test_keys_are_lower_case_letters_digits_and_dashes(name: str, key: str, made: dict[str, Any]) -> None:
    markdown_artifact(name, "text", "what it is")
    assert made == {key: {"content": "text", "description": "what it is"}}
    assert re.fullmatch(r"[a-z0-9-]+", key)


STAGES = {"rollouts": TaskSummary(made=1200, cached=3, decoded_tokens=1_234_567, seconds=1.25), "trees": TaskSummary()}


def told(why: str | None = None) -> dict[str, Any]:
    return {"advice": "train with a/none by kl", "why_unresolved": why}


def test_a_summary_holds_the_figures_of_every_stage(made: dict[str, Any]) -> None:
    summary_artifact("run", STAGES, {}, {}, told())
    text = made["run-summary"]["content"]
    assert "| rollouts | 1,200 | 3 | 1,234,567 | 1.2 |" in text and "| trees | 0 | 0 | 0 | 0.0 |" in text
    assert "left out" not in text and "failed" not in text and "Unresolved" not in text
    assert {"table", "td"} <= rendered(text).elements


@pytest.mark.parametrize("text", HOSTILE)
def test_questions_and_reasons_are_shown_as_they_are(text: str, made: dict[str, Any]) -> None:
    summary_artifact(
        "run", STAGES, {text: f"reason {text}", "lost": "error"}, {"lost": f"error {text}"}, told(f"why {text}")
    )
    page = rendered(made["run-summary"]["content"])
    shown = one_line(text)
    assert f"{shown}: reason {shown}" in page.text and f"lost: error {shown}" in page.text
    assert (
        f"Unresolved: why {shown}" in page.text
        and page.text.startswith("train with a/none by kl")
        and "1 left out" in page.text
        and "1 failed" in page.text
    )
    assert page.elements <= {"p", "strong", "ul", "li", "table", "thead", "tbody", "tr", "th", "td"}


def test_a_failed_question_is_not_also_left_out_and_long_lists_are_cut(made: dict[str, Any]) -> None:
    failed = {f"f{i}": "error" for i in range(60)}
    summary_artifact("run", {}, {**failed, "cut": "limit"}, failed, told())
    text = made["run-summary"]["content"]
    assert "**1 left out**" in text and "**60 failed**" in text and "* and 10 more" in text
    assert text.count("error") == 50


def test_tables_are_rounded_and_undefined_stays_undefined(made: dict[str, Any]) -> None:
    table_artifact("t", pl.DataFrame({"a": [0.123456, None], "n": [1, 2]}), "numbers")
    assert made["t"]["content"] == [{"a": 0.1235, "n": 1}, {"a": None, "n": 2}]


def test_scores_without_a_value_are_said_to_be_so(made: dict[str, Any]) -> None:
    plain_ = {"group": "all", "bin": "all", "teacher": "t", "context": "none", "loss": "kl"}
    values: dict[str, Any] = {"alignment": 0.5, "alignment_low": 0.4, "alignment_high": 0.6, "mean_cosine": None}
    more: dict[str, Any] = {"resolved": True, "d_sq": 1.0, "reliability": 0.5, "nodes": 3}
    summary = pl.DataFrame([{**plain_, **values, **more}])
    scores_artifact("run", summary)
    row = made["run-scores"]["content"][0]
    assert (row["all rollouts"], row["correct"], row["incorrect"]) == (".50 [.40, .60]", "no nodes", "no nodes")
    assert row["teacher"] == "t" and row["mean cos."] == "-"


def test_a_link_leads_where_reports_are_served_and_else_says_where_they_lie(
    made: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store("memory://place")
    monkeypatch.delenv(REPORTS_URL, raising=False)
    output_link(store, "run.1", "report.html")
    assert f"`{store.path('runs', 'run.1', 'report.html')}`" in made["run-1-report-html"]["content"]
    monkeypatch.setenv(REPORTS_URL, "http://127.0.0.1:4201/")
    output_link(store, "run 1?#", "a b.html")
    assert made["run-1-a-b-html"]["content"] == "http://127.0.0.1:4201/run%201%3F%23/a%20b.html"


def test_a_run_links_to_its_row_where_the_index_is_served(
    made: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(REPORTS_URL, raising=False)
    run_link("run.1")
    assert made == {}
    monkeypatch.setenv(REPORTS_URL, "http://127.0.0.1:4201/")
    run_link("run.1&x=/")
    assert made["run-1-x-run"]["content"] == "http://127.0.0.1:4201/?run=run.1%26x%3D%2F"


def test_progress_is_told_at_the_end_whatever_was_done(made: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(artifacts, "_PAUSE", 1e9)
    with progress_artifacts():
        publish("unheard", 5)
        publish("trees", 0, 4)
        publish("trees", 1)
        publish("ideal", 0, 0)
        assert "updates" not in made  # too soon
        publish("trees", 3)
        assert [update[:2] for update in made["updates"]] == [("progress-trees", 100.0)]
    assert [update[:2] for update in made["updates"][1:]] == [("progress-trees", 100.0), ("progress-ideal", 100.0)]
    publish("trees", 9)
    assert len(made["updates"]) == 3  # nobody listens any more


def test_an_error_ends_the_listening_and_finishes_no_bar(made: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="x"), progress_artifacts():
        publish("trees", 0, 4)
        raise ValueError("x")
    publish("trees", 4)
    assert "updates" not in made
