"""Tables in LaTeX, Markdown and CSV: numbers as they are, and names that cannot be anything but text."""

import csv as csv_module
import io
import re

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.outputs.figures.grid import Grid, csv, latex, latex_text, markdown, markdown_text

HOSTILE = [
    r"\input{/etc/passwd}",
    r"a_b % c & d # e $ f { g } h ~ i ^ j \ k",
    "x}{y",
    r"\write18{rm}",
    "$$x$$",
    "a\nb",
    "[x]*",
    "?`!`",
    "---",
    "``x''",
    "a|b`c`*d*_e_<b>&amp;[f](g)![h](i)",
    "https://x.org www.x.org @me",
    "~~x~~",
    "معلّم é 𝛼",
]
COMMANDS = {
    *("textbackslash", "textasciitilde", "textasciicircum", "textless", "textgreater", "textbar", "symbol", "pm"),
    *"&%$#_{}",
}
SIGNS = {
    **{r"\textbackslash{}": "\\", r"\textasciitilde{}": "~", r"\textasciicircum{}": "^", r"\textless{}": "<"},
    **{r"\textgreater{}": ">", r"\textbar{}": "|", r"\symbol{34}": '"', "{`}": "`", "{'}": "'", r"$\pm$": "±"},
    **{"$-$": "-", "{}": "", **{f"\\{c}": c for c in "&%$#_{}"}},
}


def typeset(text: str) -> str:
    """What LaTeX would show, for what `latex_text` may write."""
    names = sorted(SIGNS, key=len, reverse=True)
    return re.sub("|".join(map(re.escape, names)), lambda found: SIGNS[found[0]], text)


@given(st.text() | st.sampled_from(HOSTILE))
def test_latex_shows_the_text_and_runs_nothing(text: str) -> None:
    found = latex_text(text)
    commands = re.findall(r"\\([A-Za-z0-9]+|.)", found, re.DOTALL)
    assert set(commands) <= COMMANDS
    bare = re.sub(r"\\.|\$-\$|\$\\pm\$", "", found)
    assert not re.search(r"[&%$#_^~\n\r\\]", bare)
    depth = 0
    for sign in re.sub(r"\\[{}]", "", found):
        depth += (sign == "{") - (sign == "}")
        assert depth >= 0
    assert depth == 0
    assert not re.search(r"--|[?!]`|``|''|<<|>>", found.replace("--", "", 1) if text == "-" else found)


@pytest.mark.parametrize("text", [text for text in HOSTILE if "\n" not in text])
def test_latex_shows_every_sign(text: str) -> None:
    assert typeset(latex_text(text)) == text
    assert latex_text("a\nb") == r"a\textbackslash{}nb"


def test_numbers_have_a_minus_and_names_a_hyphen() -> None:
    assert latex_text("-.11 [-.45, .05]") == "$-$.11 [$-$.45, .05]"
    assert latex_text("+.02") == "+.02" and latex_text("-") == "--"
    assert latex_text("self-2") == "self-2" and latex_text("93-97 %") == r"93-97 \%"


GRID = Grid("scores, 95 % interval", ["name", "value"], [False, True], [["[x]", "-.1"], ["*", "a|b"], ["y" * 40, ""]])


def test_a_table_in_latex() -> None:
    assert latex(GRID).splitlines() == [
        r"\begin{table}",
        r"\centering",
        r"\caption{scores, 95 \% interval}",
        r"\small",
        r"\begin{tabular}{p{0.3\linewidth}r}",
        r"\toprule",
        r"name & value \\",
        r"\midrule",
        r"{}[x] & $-$.1 \\",
        r"{}* & a\textbar{}b \\",
        "y" * 40 + r" &  \\",
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]


def test_a_table_in_markdown() -> None:
    assert markdown(GRID).splitlines() == [
        "**scores, 95 % interval**",
        "",
        "| name | value |",
        "| --- | ---: |",
        "| [x] | -.1 |",
        r"| \* | a\|b |",
        f"| {'y' * 40} |  |",
    ]


@given(st.text() | st.sampled_from(HOSTILE))
def test_a_cell_of_markdown_stays_in_its_cell(text: str) -> None:
    found = markdown_text(text)
    assert "\n" not in found and "\r" not in found
    assert not re.search(r"(?<!\\)(\\\\)*[|`*_<>&$~@:]", found)
    assert not re.search(r"(?<!\\)(\\\\)*\][(\[]|www\.", found)


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@x", "\tx", "plain", "a=b", 'q",r', ""])
def test_text_is_no_formula_in_csv(text: str) -> None:
    table = pl.DataFrame({"teacher": [text], "value": [-0.5], "loss": pl.Series([None], dtype=pl.String)})
    row = next(csv_module.DictReader(io.StringIO(csv(table))))
    assert row["teacher"] == (f"'{text}" if text[:1] in {"=", "+", "-", "@", "\t"} else text)
    assert row["value"] == "-0.5" and row["loss"] == ""
