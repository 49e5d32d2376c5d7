"""The report in headless Chromium: every view, its numbers against the tables; hostile, long and strange rollouts."""

import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import polars as pl
import pytest

from flows.command.terminal import estimate, number, score
from tasks.stages.aggregate.tables import headline
from tests.helpers.browser import chromium, shot
from tests.helpers.made import MadePage, made_page, word

DEMO = {"questions": 8, "teachers": 4, "losses": 3, "rollouts": 8, "tokens": 40, "nodes": 24, "branches": 6}
LARGE = {"questions": 200, "teachers": 8, "losses": 4, "rollouts": 64, "tokens": 400, "nodes": 64, "branches": 5}
Row = dict[str, Any]


class Opened:
    """A report in a browser, without a network.

    Attributes:
        said: messages of the console, errors and requests, but for the page itself.
    """

    def __init__(self, browser: Any, folder: Path, made: MadePage) -> None:
        path = folder / "report.html"
        path.write_text(made.html)
        self.made, self.url, self.said = made, f"file://{path}", list[str]()
        self.context = browser.new_context(offline=True, viewport={"width": 1500, "height": 950})
        self.page = self.context.new_page()
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("dialog", self._dismiss)
        self.page.on("request", self._note)
        self.page.set_default_timeout(20_000)
        self.go("")

    def _dismiss(self, dialog: Any) -> None:
        self.said.append("dialog")
        dialog.dismiss()

    def _note(self, request: Any) -> None:
        if not request.url.startswith(self.url):
            self.said.append(request.url)

    def go(self, fragment: str) -> None:
        """Open an address within the page, and wait until it is drawn."""
        before = 0
        if self.page.url.split("#")[0] == self.url:
            if self.page.url == f"{self.url}#{fragment}":
                return
            before = int(self.page.evaluate("Number(document.body.dataset.ready)"))
            self.page.evaluate("fragment => { location.hash = fragment }", fragment)
        else:
            self.page.goto(f"{self.url}#{fragment}" if fragment else self.url)
        self.page.wait_for_function("n => Number(document.body.dataset.ready ?? 0) > n", arg=before)

    def table(self, label: str) -> list[list[str]]:
        """Texts of a table's cells."""
        script = "t => [...t.tBodies[0].rows].map(r => [...r.cells].map(c => c.innerText.trim()))"
        return list(self.page.get_by_role("region", name=label).locator("table").evaluate(script))


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as running:
        yield running


@pytest.fixture(
    scope="module", params=[pytest.param(DEMO, id="demo"), pytest.param(LARGE, id="large", marks=pytest.mark.slow)]
)
def opened(request: pytest.FixtureRequest, browser: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Opened]:
    one = Opened(browser, tmp_path_factory.mktemp("page"), made_page(**request.param))
    yield one
    assert one.said == []
    one.context.close()


@pytest.fixture
def named(tmp_path: Path, browser: Any) -> Iterator[Any]:
    """Opens pages of its own."""
    opened: list[Opened] = []

    def open_one(made: MadePage) -> Opened:
        opened.append(Opened(browser, tmp_path, made))
        return opened[-1]

    yield open_one
    for one in opened:
        one.context.close()


def names(row: Row) -> list[str]:
    return [row["teacher"], row["context"], row["loss"]]


def shown(text: str) -> str:
    """What the terminal writes, as the page writes it: an unknown value is a dash."""
    return "–" if text == "-" else text


def test_the_decision_shows_the_tables_numbers(opened: Opened) -> None:
    opened.go("decision")
    tables = opened.made.tables
    own = {(r["teacher"], r["context"]): r for r in tables["success"].to_dicts()}
    forecasts = opened.table("Forecast by signal")
    expected = [
        [*names(r), "", estimate(r, "forecast"), estimate(r, "change"), f"{100 * r['p_best']:.0f} %"]
        + [f"{100 * r['p_harm']:.0f} %", r["verdict"]]
        + [estimate(own[r["teacher"], r["context"]], name) for name in ("own", "handover")]
        for r in tables["forecasts"].to_dicts()
    ]
    assert forecasts == expected

    rows = sorted(headline(tables["summary"]), key=lambda r: -r["all"]["alignment"])
    outcome = tables["differences"].filter(pl.col("group") == "outcome").to_dicts()
    between = {tuple(names(r)): r for r in outcome}
    for cells, row in zip(opened.table("Alignment by signal"), rows, strict=True):
        assert cells[:3] == names(row) and cells[4:7] == [score(row[b]) for b in ("all", "correct", "incorrect")]
        assert cells[7] == shown(estimate(between[tuple(names(row))], "alignment"))
        assert cells[9] == number(row["all"]["mean_cosine"])
        gain = [float(x) for x in re.findall(r"-?[\d.]+", cells[8])]
        assert gain == pytest.approx([row["all"][f"gain{end}"] for end in ("", "_low", "_high")], abs=6e-4)
    shot(opened.page, "decision", full_page=True)


def test_tables_are_sorted_filtered_and_compared(opened: Opened) -> None:
    opened.go("decision")
    page, tables = opened.page, opened.made.tables
    region = page.get_by_role("region", name="Alignment by signal")
    for first, name, place in (("gain", "gain", 8), ("mean cos.", "mean_cosine", 9)):
        region.get_by_role("button", name=first, exact=True).click()
        rows = sorted(headline(tables["summary"]), key=lambda r: -r["all"][name])
        assert [r[:3] for r in opened.table("Alignment by signal")] == [names(r) for r in rows], place
        assert region.locator("th[aria-sort=descending]").inner_text().startswith(first)
    region.get_by_role("button", name="teacher", exact=True).click()
    assert [r[0] for r in opened.table("Alignment by signal")] == sorted(
        r[0] for r in opened.table("Alignment by signal")
    )

    pairs = tables["differences"].filter(pl.col("group") == "all").to_dicts()
    other = headline(tables["summary"])[1]
    label = "{}/{} by {}".format(*names(other))
    page.get_by_label("difference to").select_option(label=label)
    found = {tuple(r[:3]): r[10] for r in opened.table("Alignment by signal")}
    for pair in pairs:
        ends = [names(pair), [pair[f"other_{n}"] for n in ("teacher", "context", "loss")]]
        if names(other) not in ends:
            continue
        this = ends[1 - ends.index(names(other))]
        sign = 1 if ends[1] == names(other) else -1
        low, high = sorted((sign * pair["alignment_low"], sign * pair["alignment_high"]))
        row = {"alignment": sign * pair["alignment"], "alignment_low": low, "alignment_high": high}
        assert found[tuple(this)] == estimate(row, "alignment")
    page.get_by_label("difference to").select_option(label="none")

    page.get_by_label("Show signals whose names contain").fill("teacher-1/none by loss_0")
    assert [r[:3] for r in opened.table("Forecast by signal")] == [["teacher-1", "none", "loss_0"]]
    page.get_by_label("Show signals whose names contain").fill("")


def test_where_signals_help(opened: Opened) -> None:
    opened.go("where")
    page, tables = opened.page, opened.made.tables
    page.get_by_label("loss", exact=True).select_option("loss_1")
    titles = page.locator("#where svg.chart g title").all_text_contents()
    summary = tables["summary"].filter((pl.col("loss") == "loss_1") & (pl.col("group") != "all"))
    summary = summary.filter(pl.col("bin").n_unique().over("group") > 1)  # others are not drawn
    chosen = [f"teacher-{t}" for t in range(4)]
    expected = [
        f"{r['teacher']}/none by loss_1, {r['bin']}: "
        + f"{number(r['alignment'])} [{shown(number(r['alignment_low']))}, {shown(number(r['alignment_high']))}]"
        for r in summary.filter(pl.col("teacher").is_in(chosen) & pl.col("alignment").is_not_null()).to_dicts()
    ]
    assert sorted(titles) == sorted(expected) and titles
    told = opened.table("What tells alignment before any draw")
    of = {(r["predictor"], r["teacher"]): r for r in tables["predictors"].filter(pl.col("loss") == "loss_1").to_dicts()}
    keys = ["kl", "js", "entropy", "position", "student_prob", "teacher_prob", "teacher_lead", "signal_norm"]
    for key, cells in zip(keys, told, strict=True):
        assert cells[1:] == [shown(estimate(of[key, t], "correlation")) for t in chosen]
    selection = {
        r["tokens"]: r
        for r in tables["selection"]
        .filter((pl.col("loss") == "loss_1") & (pl.col("teacher") == "teacher-0"))
        .to_dicts()
    }
    for cells in opened.table("Gain by tokens"):
        row = selection[cells[0].replace(" ", "_") if cells[0].replace(" ", "_") in selection else cells[0]]
        assert float(re.findall(r"-?[\d.]+", cells[1])[0]) == pytest.approx(row["gain"], abs=6e-4)
    page.get_by_label("signal", exact=True).first.select_option(label="teacher-1/none by loss_2")
    words = tables["vocabulary"].filter((pl.col("teacher") == "teacher-1") & (pl.col("loss") == "loss_2"))
    gaining = opened.table("Tokens that gain most")
    assert [c[0].replace("␣", " ").replace("⏎", "\n") for c in gaining] == words.filter(pl.col("push") > 0)[
        "token"
    ].to_list()
    assert float(gaining[0][1].split()[0]) == pytest.approx(words["push"][0], rel=6e-3)
    shot(page, "where", full_page=True)


def total(values: pl.Series) -> float:
    return float(values.to_numpy().sum())


def details(page: Any) -> str:
    return str(page.locator("aside.details").inner_text())


def test_tokens_show_what_the_tables_say(opened: Opened) -> None:
    page, tokens = opened.page, opened.made.tables["tokens"]
    rng = np.random.default_rng(0)
    first = tokens.filter((pl.col("teacher") == "teacher-2") & (pl.col("loss") == "loss_1"))
    for i in rng.choice(first.height, 12, replace=False).tolist():
        row = first.row(i, named=True)
        place = "/".join(map(str, (row["question_id"], row["rollout_id"], row["position"])))
        opened.go(f"{place}/teacher-2/none/loss_1")
        text = details(page)
        assert f"position {row['position']}\n" in text and "teacher-2/none by loss_1" in text
        assert page.locator(".token.active").inner_text() == row["token"]
        if row["cosine"] is None:
            assert "cosine not known" in text
        else:
            seen = [float(x) for x in re.findall(r"-?[\d.]+", re.findall(r"cosine (.*?\])", text)[0])]
            assert seen == pytest.approx([row[f"cosine{end}"] for end in ("", "_low", "_high")], abs=0.0051)
        assert ("sign known" in text) == bool(row["resolved"])
        assert ("sure" in (page.locator(".token.active").get_attribute("class") or "")) == bool(row["resolved"])
        helps = float(re.findall(r"helps with probability (-?[\d.]+)", text)[0])
        assert helps == pytest.approx(row["p_positive"], abs=0.0051)
        value = float(re.findall(r"success from here\s+([\d.]+)", text)[0])
        assert value == pytest.approx(row["value"], abs=0.0051)
        question = opened.made.questions[int(row["question_id"].rpartition("-")[2])]
        size = len(question.rollouts["tokens"]) // len(question.rollouts["correct"])
        node = int(np.flatnonzero(question.tree["node"] == row["rollout_id"] * size + row["position"])[0])
        start, end = (int(o) for o in question.tree["branch_offsets"][node : node + 2])
        order = start + np.argsort(-question.tree["branch_prob"][start:end], kind="stable")
        draws = [f"{question.tree['successes'][b]}/{question.tree['draws'][b]}" for b in order]
        assert [cells[2].split()[0] for cells in opened.table("Branches")] == draws
    whole = first.filter((pl.col("question_id") == row["question_id"]) & (pl.col("rollout_id") == row["rollout_id"]))
    assert page.locator("#tokens .token[data-place]").count() == whole.height
    ids = question.rollouts["tokens"][row["rollout_id"] * size : (row["rollout_id"] + 1) * size].tolist()
    assert page.locator(".text-pane").inner_text().split() == "".join(word([t])[t] for t in ids).split()
    shot(page, "tokens")


def test_thresholds_and_signals_beside_each_other(opened: Opened) -> None:
    page, tokens = opened.page, opened.made.tables["tokens"]
    mine = tokens.filter((pl.col("teacher") == "teacher-0") & (pl.col("loss") == "loss_0"))
    rollout = mine.filter(pl.col("question_id") == "question-001")["rollout_id"][0]
    opened.go(f"question-001/{rollout}//teacher-0/none/loss_0")
    page.get_by_label("helps with probability at least").fill("0.6")
    kept = mine.filter(pl.col("p_positive") >= 0.6)
    share = total(kept["weight"]) / total(mine["weight"])
    mass = total(kept["weight"] * kept["d_sq"]) / total(mine["weight"] * mine["d_sq"])
    here = mine.filter((pl.col("question_id") == "question-001") & (pl.col("rollout_id") == rollout))
    said = page.locator(".kept").inner_text()
    assert said.startswith(f"≥ 0.60: {100 * share:.0f} % of the run's tokens and {100 * mass:.0f} % of |d|² kept")
    assert said.endswith(f"here {here.filter(pl.col('p_positive') >= 0.6).height} of {here.height} nodes")
    out = here.filter(~(pl.col("p_positive") >= 0.6)).height
    assert page.locator("#tokens .token.out[data-place]").count() == out
    page.get_by_label("beside it").select_option(label="teacher-1/none by loss_2")
    assert page.locator(".text-pane").count() == 2
    assert page.locator("aside.details h4").all_inner_texts() == [
        "teacher-0/none by loss_0",
        "teacher-1/none by loss_2",
    ]
    shot(page, "beside")
    page.get_by_label("beside it").select_option(label="none")
    page.get_by_label("helps with probability at least").fill("0")


def test_rollouts_are_filtered_searched_and_reached_by_keys(opened: Opened) -> None:
    page, made = opened.page, opened.made
    opened.go("question-000/0/0")
    every = sum(len(q.rollouts["correct"]) for q in itertools.islice(made.questions, 0, 3))
    status = page.locator(".navigator [role=status]")
    page.get_by_label("question", exact=True).select_option(label="question-001")
    per = every // 3
    assert status.inner_text().startswith(f"{per} of ")
    right = int(made.questions[1].rollouts["correct"].sum())
    page.get_by_label("outcome", exact=True).select_option("right")
    assert status.inner_text().startswith(f"{right} of ")
    assert page.locator(".rows a.wrong").count() == 0
    page.get_by_label("outcome", exact=True).select_option("all")
    page.get_by_label("with known signs only").check()
    known = made.tables["tokens"].filter((pl.col("question_id") == "question-001") & pl.col("resolved"))
    assert status.inner_text().startswith(f"{known['rollout_id'].n_unique()} of ")
    page.get_by_label("with known signs only").uncheck()
    page.get_by_label("question", exact=True).select_option(label="all")

    page.locator(".rows a").first.click()
    page.wait_for_function("() => document.querySelector('.rows a[aria-current]') !== null")
    rollout = "() => location.hash.split('/').slice(0, 2).join('/')"
    before = page.evaluate(rollout)
    page.locator("#tokens h2").click()
    page.keyboard.press("j")
    page.wait_for_function(f"before => ({rollout})() !== before", arg=before)
    page.keyboard.press("k")
    page.wait_for_function(f"before => ({rollout})() === before", arg=before)
    page.wait_for_selector("#tokens .token.active")
    token = page.locator("#tokens .token[data-place]").first
    token.focus()
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.dataset.place") == "1"
    assert f"/{opened_position(page)}/" in f"{page.url}/"
    page.keyboard.press("End")
    assert (
        page.evaluate("Number(document.activeElement.dataset.place)")
        == page.locator("#tokens .token[data-place]").count() - 1
    )

    page.keyboard.press("/")
    words = "".join(page.locator(".text-pane").first.inner_text().split("\n")[0])[:30].strip()
    page.keyboard.type(words)
    page.keyboard.press("Enter")
    page.wait_for_function(
        "() => /^[1-9][0-9]* of/.test(document.querySelector('.navigator [role=status]').textContent)"
    )
    page.wait_for_function(
        "() => !document.querySelector('.navigator [role=status]').textContent.includes('searching')", timeout=60_000
    )
    assert words in page.locator(".rows a .match").first.inner_text()
    page.get_by_label("Search the text of the rollouts").fill("")
    page.keyboard.press("Enter")
    page.wait_for_function("() => document.querySelector('.rows a .match') === null")


def opened_position(page: Any) -> str:
    return str(re.findall(r"position (\d+)", details(page))[0])


def test_views_have_no_serious_faults_of_accessibility(opened: Opened) -> None:
    from axe_playwright_python.sync_playwright import Axe

    for dark, view in itertools.product((False, True), ("decision", "where", "question-000/0/1")):
        opened.go(view)
        button = opened.page.get_by_role("button", name="Dark")
        if (button.get_attribute("aria-pressed") == "true") != dark:
            button.click()
        found = [v for v in Axe().run(opened.page).response["violations"] if v["impact"] in ("serious", "critical")]
        assert [(v["id"], [n["html"] for n in v["nodes"]][:3]) for v in found] == [], (dark, view)
        shot(opened.page, f"{'dark' if dark else 'light'}-{view.partition('/')[0]}")
    opened.page.get_by_role("button", name="Dark").click()


def test_a_phone_and_a_printer(opened: Opened) -> None:
    page = opened.page
    page.set_viewport_size({"width": 390, "height": 800})
    for view in ("decision", "where", "question-000/0/1"):
        opened.go(view)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, view
        shot(page, f"phone-{view.partition('/')[0]}", full_page=True)
    page.set_viewport_size({"width": 1500, "height": 950})
    opened.go("decision")
    page.emulate_media(media="print")
    page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    assert page.locator("#where svg.chart").first.is_visible() and not page.locator("header nav").is_visible()
    page.emulate_media(media="screen")


HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'&"


def test_hostile_output_stays_text(named: Any) -> None:
    size = {"rollouts": 2, "tokens": 12, "nodes": 12, "branches": 3}
    opened = named(made_page(6, 2, 1, texts=lambda ids: dict.fromkeys(ids, HOSTILE), prefix=HOSTILE, **size))
    assert opened.table("Forecast by signal")[0][1] == f"{HOSTILE}none"
    opened.go("where")
    opened.go("tokens")
    opened.page.locator(".rows a").nth(3).click()
    opened.page.wait_for_function("n => Number(document.body.dataset.ready) >= n", arg=4)
    assert HOSTILE in opened.page.locator(".text-pane").inner_text()
    opened.go(quote(f"{HOSTILE}question-003", safe="") + "/1/")
    assert f"{HOSTILE}question-003 · rollout 1" in opened.page.locator("#tokens h2").inner_text()
    opened.go("nothing%/0/0")
    assert "no such rollout" in opened.page.locator("#tokens h2").inner_text()
    assert opened.page.locator("#main img, #main script").count() == 0
    assert opened.said == []
    added = "const s = document.createElement('script'); s.textContent = 'window.ran = 1'; document.body.append(s)"
    opened.page.evaluate(f"() => {{ {added} }}")
    assert opened.page.evaluate("window.ran") is None
    assert opened.page.evaluate("fetch('https://example.org/').then(() => 'fetched', () => 'refused')") == "refused"
    assert any("Content Security Policy" in line for line in opened.said)


def test_strange_and_very_long_rollouts(named: Any) -> None:
    """Text from right to left, emoji, line breaks and tokens that are parts of a character; 30,000 tokens."""
    strange = ["שלום", " العربية", "👩‍🚀", "\n\n", " ", "", "\ufffd", "e\u0301", "\t", "中文"]
    opened = named(
        made_page(
            5,
            1,
            1,
            texts=lambda ids: {i: strange[i % 10] for i in ids},
            rollouts=1,
            tokens=30_000,
            nodes=300,
            branches=3,
        )
    )
    opened.go("question-002/0/0")
    page = opened.page
    assert page.locator("#tokens .token[data-place]").count() == 300
    text = page.evaluate("document.querySelector('.text-pane').textContent")
    assert text.count("👩‍🚀") > 1000 and text.count("שלום") > 1000
    assert all(
        label
        for label in page.locator("#tokens .token[data-place]").evaluate_all("all => all.map(e => e.ariaLabel.trim())")
    )
    started = page.evaluate("performance.now()")
    page.locator("#tokens .token[data-place]").last.scroll_into_view_if_needed()
    assert page.evaluate("performance.now()") - started < 5_000
    assert opened.said == []


def test_a_run_without_a_node(named: Any) -> None:
    opened = named(made_page(5, 2, 2, rollouts=2, tokens=10, nodes=0, branches=3))
    assert [row[4] for row in opened.table("Alignment by signal")] == ["no nodes"] * 4
    opened.go("where")
    assert "Nothing to draw" in opened.page.locator("#where").inner_text()
    opened.go("question-001/1/3")
    assert "No token of this rollout was drawn from" in details(opened.page)
    assert opened.page.locator(".text-pane").inner_text().split()
    assert opened.said == []


def test_the_last_of_several_searches_counts(opened: Opened) -> None:
    opened.go("tokens")
    box, status = opened.page.get_by_label("Search the text of the rollouts"), ".navigator [role=status]"
    opened.page.evaluate(
        """texts => {
            const box = document.querySelector('.search')
            for (const text of texts) { box.value = text; box.dispatchEvent(new Event('change')) }
        }""",
        ["ba", "", "no such text at all"],
    )
    opened.page.wait_for_function(
        "s => document.querySelector(s).textContent.startsWith('0 of')", arg=status, timeout=60_000
    )
    opened.page.wait_for_timeout(500)
    assert opened.page.locator(status).inner_text().startswith("0 of")
    box.fill("")
    box.dispatch_event("change")
    opened.page.wait_for_function("s => !document.querySelector(s).textContent.startsWith('0 of')", arg=status)


def test_an_address_keeps_both_signals(opened: Opened) -> None:
    opened.go("question-000/0/")
    page = opened.page
    rollout = page.locator(".rows a").first
    rollout.click()
    page.get_by_label("signal", exact=True).last.select_option(label="teacher-1/none by loss_1")
    page.get_by_label("beside it").select_option(label="teacher-2/none by loss_2")
    address = page.url
    page.reload()
    page.wait_for_selector("body[data-ready]")
    page.wait_for_function("() => document.querySelectorAll('.text-pane').length === 2")
    chosen = [page.locator(f"#{box} option:checked").inner_text() for box in ("signal-a", "signal-b")]
    assert chosen == ["teacher-1/none by loss_1", "teacher-2/none by loss_2"] and page.url == address
    page.get_by_label("beside it").select_option(label="none")


def test_bins_stand_from_low_to_high(opened: Opened) -> None:
    opened.go("where")
    for label in opened.page.locator("#where svg.chart").all():
        bins = [
            text
            for text in label.locator("text.tick[text-anchor=middle]").all_text_contents()
            if re.fullmatch(r"[0-9.]+-[0-9.]+ %", text)
        ]
        assert bins == sorted(bins, key=lambda text: float(text.split("-")[0]))


def test_long_names_fit_a_phone(named: Any) -> None:
    opened = named(
        made_page(
            5, 2, 1, prefix="self-distillation-with-a-privileged-context-", rollouts=2, tokens=20, nodes=10, branches=3
        )
    )
    opened.page.set_viewport_size({"width": 375, "height": 700})
    for view in ("decision", "where", "tokens"):
        opened.go(view)
        assert opened.page.evaluate("document.documentElement.scrollWidth") <= 375, view
