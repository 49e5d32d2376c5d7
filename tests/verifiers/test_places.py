"""Where verifiers say that an answer begins."""

from typing import Any

import pytest
from pydantic import TypeAdapter

from schemas.config.verifiers import Verifier as VerifierSettings
from tasks.verifiers.protocol import Attempt
from tasks.verifiers.verifier import Verifier

PLACES: list[tuple[dict[str, Any], str, str | None]] = [
    ({"kind": "numeric"}, "so the answer is −5", "so the answer is "),
    ({"kind": "numeric"}, "so ３４", "so "),
    ({"kind": "numeric"}, "9 - 2 = 7 ; answer 7", "9 - 2 = "),  # said twice, with nothing else between
    ({"kind": "numeric"}, "1/0", ""),
    ({"kind": "numeric"}, "none", "none"),
    ({"kind": "numeric", "marker": "answer"}, "7 ; answer 2 since y^2", "7 ; answer "),
    ({"kind": "numeric", "marker": "answer"}, "7 ; answer 7", "7 ; answer "),
    ({"kind": "choice"}, "The answer is (A) April. All done", "The answer is ("),
    ({"kind": "choice"}, "Answer: C\n\nBecause Carbon", "Answer: "),
    ({"kind": "choice"}, "B? no. The answer is A. Final: A", "B? no. The answer is "),
    ({"kind": "yes_no"}, "The answer is no, since nothing is known.", "The answer is "),
    ({"kind": "regex", "pattern": r"answer (\w+)"}, "so answer 7 , check 17 = 10 + 7", "so answer "),
    ({"kind": "regex"}, "<answer>B</answer> Bye", "<answer>"),
    ({"kind": "exact", "marker": "#"}, "a # 7", "a #"),
    ({"kind": "exact"}, "seven", ""),
    ({"kind": "math"}, r"so \boxed{7}. Indeed 10 + 7 = 17 .", "so "),
    ({"kind": "math"}, r"\boxed{1} and \boxed{2}", ""),
    ({"kind": "math"}, r"so $\boxed{\text{yes}}$", "so $"),
    ({"kind": "math"}, "it is 1\u00a0234", "it is "),
    ({"kind": "math"}, r"We know it is 42. Therefore the final answer is \boxed{42}", "We know it is "),
    ({"kind": "math"}, "The answer is 1,000 dollars.", "The answer is "),
    ({"kind": "math"}, r"<think>5</think>Thus \boxed{42}. So 42 it is.", "<think>5</think>Thus "),
    ({"kind": "math"}, "nothing", "nothing"),
    ({"kind": "math"}, "7 " + "word " * 70, None),  # too far to look for
]
"""Settings, a completion, and what of it comes before its answer; None: that is not known."""


@pytest.mark.parametrize("kind", ["numeric", "choice", "yes_no", "regex", "exact", "math"])
def test_an_answer_begins_where_it_is_first_said(kind: str) -> None:
    for settings in {str(s): s for s, _, _ in PLACES if s["kind"] == kind}.values():
        verifier = Verifier(TypeAdapter[Any](VerifierSettings).validate_python(settings))
        texts = {text: before for of, text, before in PLACES if of == settings}
        places = verifier.places([Attempt(text, "", False) for text in texts])
        verifier.close()
        found = {t: None if place is None else t[:place] for t, place in zip(texts, places, strict=True)}
        assert found == texts
