"""Teachers with another tokenizer: which positions and tokens are the student's, and what is made of the rest."""

import io
import math
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from flows.command.configuration import ConfigurationError, checked
from schemas.config import JSD, ForwardKL, Model, ReverseKL, SampledToken, Settings, SkewKL
from schemas.pipeline import diagnosis_stages
from schemas.signals import Source
from tasks.engines.scoring import View, score_blocks
from tasks.engines.translation import TranslatedView, Translation, token_texts
from tasks.inputs.errors import InputError
from tasks.inputs.prompts import load_tokenizer
from tasks.outputs.diagnosis import make_outputs
from tasks.run.session import start_session
from tasks.run.shells import run_stage
from tasks.stages.distillation.gradients import complete, distill
from tasks.stages.distillation.losses import distillation_direction
from tasks.stages.distillation.stage import NO_NODES
from tests.helpers.sessions import provided
from tests.helpers.small import random_model
from tests.helpers.tokenizers import byte_level, with_byte_fallback

TEXTS = [
    "The answer is 42, because 6 times 7 is 42.",
    " then the other mother answers: café!",
    "Straße — 東京 🙂🙂 end",
    "\n\n  spaces   and\ttabs ",
    "a",
    "",
]
STUDENT, OTHERS = byte_level(330), [byte_level(420, "</s>"), with_byte_fallback(160)]


class FromText:
    """A model whose next token depends on the text before alone: one distribution for each text."""

    longest: int | None = None

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer, self.vocabulary = tokenizer, len(tokenizer)
        self.asked: list[tuple[tuple[int, ...], ...]] = []

    def row(self, before: str) -> torch.Tensor:
        generator = torch.Generator().manual_seed(sum(map(ord, before)) % 1000 + len(before))
        return torch.log_softmax(2 * torch.randn(self.vocabulary, generator=generator, dtype=torch.float64), -1)

    def hidden(self, prompt: Any, completions: Any) -> list[torch.Tensor]:
        return [torch.stack([self.row(self.tokenizer.decode(list(c[:i]))) for i in range(len(c))]) for c in completions]

    def hidden_each(self, sequences: Any) -> list[torch.Tensor]:
        return [self.hidden(prompt, [tokens])[0] for prompt, tokens in sequences]

    def log_probs(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden


@pytest.mark.parametrize("other", OTHERS, ids=["byte level", "byte fallback"])
def test_tokens_are_paired_by_their_texts_once_each(other: Any) -> None:
    pairs = Translation(STUDENT, other)
    student, teacher = pairs.student.tolist(), pairs.teacher.tolist()
    assert len(set(student)) == len(student) == len(set(teacher)) > 60
    assert (student[0], teacher[0]) == (STUDENT.eos_token_id, other.eos_token_id)
    for a, b in zip(student[1:], teacher[1:], strict=True):
        one, two = STUDENT.decode([5, a]), other.decode([*other("a")["input_ids"], b])
        assert one[len(STUDENT.decode([5])) :] == two[1:] and "\ufffd" not in one
    assert token_texts(STUDENT)[STUDENT(" answer")["input_ids"][-1]].endswith("answer")


@pytest.mark.parametrize("other", OTHERS, ids=["byte level", "byte fallback"])
@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("ended", [True, False])
def test_a_position_is_covered_where_both_begin_a_token_there(other: Any, text: str, ended: bool) -> None:
    ids = STUDENT(text)["input_ids"] + ([STUDENT.eos_token_id] if ended else [])
    aligned = Translation(STUDENT, other).align(ids)
    assert len(aligned.rows) == len(ids)
    body = aligned.tokens[:-1] if ended else aligned.tokens
    assert other.decode(body) == text or "東" in text
    for place, row in enumerate(aligned.rows.tolist()):
        if row >= 0:
            before = STUDENT.decode(ids[:place])
            assert other.decode(aligned.tokens[:row]) == before, (place, row)
    boundaries = {other.decode(body[:i]) for i in range(len(body))} | ({text} if ended else set())
    missed = [i for i, row in enumerate(aligned.rows.tolist()) if row < 0 and STUDENT.decode(ids[:i]) in boundaries]
    assert not [i for i in missed if "\ufffd" not in STUDENT.decode(ids[:i])]
    if text:
        assert aligned.rows[0] == 0


@pytest.mark.parametrize("other", OTHERS, ids=["byte level", "byte fallback"])
def test_rows_are_the_teachers_own_at_covered_positions_and_shared_tokens(other: Any) -> None:
    model, pairs = FromText(other), Translation(STUDENT, other)
    completions = [STUDENT(text)["input_ids"] + [STUDENT.eos_token_id] for text in TEXTS]
    tokens = np.array([t for c in completions for t in c], dtype=np.int32)
    offsets = np.cumsum([0, *map(len, completions)])
    view = TranslatedView(model, [3], (), pairs, len(STUDENT))
    student = View(FromText(STUDENT), [1])
    seen = 0
    for positions, (_, log_t) in score_blocks([student, view], tokens, offsets, block=7):
        for position, row in zip(positions.tolist(), log_t, strict=True):
            r = int(np.searchsorted(offsets, position, side="right")) - 1
            before = STUDENT.decode(completions[r][: position - offsets[r]])
            row, others = row[:-1], row[-1]
            known = row.isfinite()
            if not bool(known.any()):
                assert pairs.align(completions[r]).rows[position - offsets[r]] == -1
                continue
            seen += 1
            assert known.nonzero()[:, 0].tolist() == sorted(pairs.student.tolist())
            torch.testing.assert_close(row[pairs.student], model.row(before)[pairs.teacher])
            torch.testing.assert_close(row.logsumexp(-1).exp() + others.exp(), torch.ones((), dtype=torch.float64))
    assert seen > 30


LOSSES: list[Settings] = [ReverseKL(), ForwardKL(), JSD(beta=0.3), SkewKL(), SampledToken()]


@pytest.mark.parametrize("loss", LOSSES, ids=lambda x: x.kind)
def test_what_a_teacher_does_not_tell_counts_as_one_more_token(loss: Any) -> None:
    """The direction at known tokens is that of distributions over these and one for the rest, by autograd too."""
    generator = torch.Generator().manual_seed(0)
    log_p, log_t = torch.log_softmax(2 * torch.randn(2, 20, 12, generator=generator, dtype=torch.float64), -1)
    known = torch.rand(20, 12, generator=generator) < 0.6
    known[0], known[1] = True, False
    rest = log_t.masked_fill(known, -math.inf).logsumexp(-1, keepdim=True)
    filled = complete(torch.cat([log_t.masked_fill(~known, -math.inf), rest], -1), log_p)
    torch.testing.assert_close(filled.exp().sum(-1), torch.ones(20, dtype=torch.float64))
    d = distillation_direction(loss, log_p, filled)
    assert float(d[1].norm()) == 0.0
    torch.testing.assert_close(filled[0], log_t[0])
    for row in range(2, 20):
        at = known[row]
        if not bool(at.any()):
            continue
        small = [torch.cat([x[row][at], x[row][~at].logsumexp(-1, keepdim=True)])[None] for x in (log_p, log_t)]
        of_small = distillation_direction(loss, *small)[0]
        torch.testing.assert_close(d[row][at], of_small[:-1], rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(d[row][~at].sum(), of_small[-1], rtol=1e-9, atol=1e-12)


def test_gradients_say_what_is_covered() -> None:
    other = OTHERS[0]
    completions = [STUDENT(text)["input_ids"] + [STUDENT.eos_token_id] for text in TEXTS[:3]]
    tokens = np.array([t for c in completions for t in c], dtype=np.int32)
    offsets = np.cumsum([0, *map(len, completions)])
    student, source = View(FromText(STUDENT), [1]), Source("t", "none")
    pairs = Translation(STUDENT, other)
    view = TranslatedView(FromText(other), [3], (), pairs, len(STUDENT))
    made = distill(
        student, {source: view}, tokens, offsets, NO_NODES, {source: {"r": ReverseKL()}}, temperature=1.0, block=5,
        group_tokens=1000,
    )  # fmt: skip
    (arrays,) = made.values()
    covered = np.concatenate([pairs.align(c).rows for c in completions]) >= 0
    assert 0 < covered.sum() < len(covered)
    for name in ("student_kept", "teacher_kept", "kl", "js"):
        assert np.array_equal(np.isfinite(arrays[name]), covered), name
    assert (arrays["d_sq"][~covered] == 0).all() and (arrays["d_sq"][covered] > 0).all()
    assert (arrays["student_kept"][covered] < 1).all() and (arrays["student_kept"][covered] > 0).all()
    shared = np.isin(tokens, pairs.student.numpy())
    assert np.array_equal(np.isfinite(arrays["teacher_token_prob"]), covered & shared)


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    """A teacher whose tokenizer has other tokens."""
    return model_with(byte_level(420, "</s>"), tmp_path / "foreign", 5)


@pytest.fixture
def apart(settings: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    """A run whose student has tokens as published models have them."""
    student = model_with(STUDENT, tmp_path / "student", 6)
    return {**settings, "student": {"path": str(student)}, "prompt": {"chat": False}, "losses": ["reverse_kl", "jsd"]}


def model_with(tokenizer: Any, folder: Path, seed: int) -> Path:
    random_model(folder, seed, len(tokenizer) + 3)
    tokenizer.save_pretrained(folder)
    return folder


def test_a_run_with_a_teacher_of_another_tokenizer(apart: dict[str, Any], foreign: Path) -> None:
    teacher = {"name": "far", "model": {"path": str(foreign)}, "tokenizer": "own", "chat_template": "none"}
    answer = {"kind": "answer", "template": "{{ prompt }} answer {{ answer }}"}
    teachers = [{**teacher, "contexts": ["none", answer]}, {"name": "self", "contexts": [answer]}]
    config = checked({**apart, "teachers": teachers})
    session = start_session(config)
    ids = session.keys.questions
    for stage in (*diagnosis_stages(), "ranking"):
        assert not run_stage(session, stage, ids).failed, stage
    outputs = make_outputs(session, ids, {})
    files = dict(outputs.files)
    assert "far" in files["report.html"].decode()
    losses = pl.read_parquet(io.BytesIO(files["losses.parquet"]))
    far, own = (losses.filter(pl.col("teacher") == name) for name in ("far", "self"))
    assert (own["covered"] == 1).all() and (own["student_kept"] == 1).all()
    assert ((far["covered"] > 0) & (far["covered"] <= 1) & (far["student_kept"] < 1)).all()
    tokens = pl.read_parquet(io.BytesIO(files["tokens.parquet"]))
    assert tokens.filter(pl.col("teacher") == "self")["kl"].null_count() == 0
    told = tokens.filter((pl.col("teacher") == "far") & (pl.col("context") == "none") & (pl.col("loss") == "jsd"))
    assert 0 < told["kl"].null_count() < len(told)
    by_divergence = pl.read_parquet(io.BytesIO(files["summary.parquet"])).filter(
        (pl.col("group") == "divergence") & (pl.col("teacher") == "far") & (pl.col("context") == "none")
    )
    assert by_divergence.filter(pl.col("loss") == "jsd")["nodes"].sum() == told["kl"].is_not_null().sum()
    models = provided(session)
    source = Source("far", "none")
    shown = models.prompts.tokenizer(source).decode(models.prompts.teacher(source, ids[0]))
    assert "start" in shown and "<user>" not in shown


@pytest.mark.parametrize(
    ("teacher", "more", "error", "why"),
    [
        (
            {"tokenizer": "own", "chat_template": "none"},
            {"losses": ["top_k"]},
            ConfigurationError,
            "tokenizer of its own",
        ),
        ({"tokenizer": "own"}, {}, ConfigurationError, "set it to own or none"),
        ({"chat_template": "own"}, {}, InputError, "set the teacher's tokenizer to own"),
        ({"tokenizer": "own", "chat_template": "own"}, {"prompt": {"chat": True}}, InputError, "no chat template"),
        (
            {"tokenizer": "own", "chat_template": "none"},
            {"losses": [{"kind": "reverse_kl", "teacher_temperature": 2.0}]},
            ConfigurationError,
            "whole distributions",
        ),
    ],
)
def test_what_another_tokenizer_cannot_do_is_refused(
    apart: dict[str, Any], foreign: Path, teacher: dict[str, Any], more: dict[str, Any], error: Any, why: str
) -> None:
    fields = {"name": "far", "model": {"path": str(foreign)}, **teacher}
    with pytest.raises(error, match=why):
        start_session(checked({**apart, "teachers": [fields], **more}))


def test_the_student_itself_has_no_other_tokenizer(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match="the teacher is the student itself"):
        checked({**settings, "teachers": [{"name": "self", "tokenizer": "own", "chat_template": "own"}]})


def test_a_tokenizer_that_is_the_students_is_refused(apart: dict[str, Any]) -> None:
    far = {"name": "far", "tokenizer": "own", "chat_template": "none", "model": apart["student"]}
    with pytest.raises(InputError, match="is the student's; leave it out"):
        start_session(checked({**apart, "teachers": [far]}))


def test_words_with_spaces_between_them_are_covered(models: Path) -> None:
    """Tokenizers that split at spaces: the student's, and one of which two ids are swapped."""
    own, other = (load_tokenizer(Model(path=str(models / name))) for name in ("student", "other"))
    ids = own("start 3 add 4 times 5")["input_ids"]
    aligned = Translation(own, other).align([*ids, own.eos_token_id])
    assert aligned.rows.tolist() == list(range(len(ids) + 1))
    assert [own.decode([i]) for i in ids] == [other.decode([i]) for i in aligned.tokens[:-1]]


def test_a_teacher_that_is_sure_gives_the_rest_what_it_gives() -> None:
    """In float32 the told probabilities add up to 1: what is left cannot be had by subtraction."""
    log_p = torch.log_softmax(torch.zeros(1, 2000), -1)
    logits = torch.full((1, 2000), -30.0)
    logits[0, 7] = 0.0
    log_t = torch.log_softmax(logits.double(), -1)
    known = torch.arange(2000) < 1000
    told = torch.cat([log_t.masked_fill(~known, -math.inf), log_t[:, ~known].logsumexp(-1, keepdim=True)], -1).float()
    filled = complete(told, log_p)
    exact = log_t.clone()
    exact[:, ~known] = log_t[:, ~known].logsumexp(-1, keepdim=True) - math.log(1000)
    torch.testing.assert_close(filled.double(), exact, rtol=1e-5, atol=1e-4)
    assert float(filled.min()) > -40


def test_a_character_is_paired_with_its_token_not_with_its_byte() -> None:
    student, other = byte_level(330), with_byte_fallback(160, marked=False)
    between = Translation(student, other)
    pairs = dict(zip(between.student.tolist(), between.teacher.tolist(), strict=True))
    for digit in "0123456789":
        (own,) = student(digit)["input_ids"]
        if digit in other.get_vocab():
            assert pairs[own] == other.get_vocab()[digit] and other("a" + digit)["input_ids"][-1] == pairs[own]
    back = Translation(other, student)
    assert other.get_vocab()["4"] in back.student.tolist() and other.get_vocab()["<0x34>"] not in back.student.tolist()


def test_ends_and_broken_characters() -> None:
    other = OTHERS[0]
    extra = STUDENT.get_vocab()["<pad>"]  # as a model's second end
    ids = STUDENT("The answer")["input_ids"]
    aligned = Translation(STUDENT, other, frozenset([extra])).align([*ids, extra])
    assert aligned.tokens[-1] == other.eos_token_id and aligned.rows[-1] == len(aligned.tokens) - 1
    assert "pad" not in other.decode(aligned.tokens)
    broken = STUDENT("\u8a9e")["input_ids"][:1]
    assert "\ufffd" in STUDENT.decode(broken)
    aligned = Translation(STUDENT, other).align([*ids, *broken, STUDENT.eos_token_id])
    assert aligned.rows[-1] == -1 and aligned.rows[len(ids)] >= 0


def test_what_is_longer_than_the_teacher_takes_is_not_covered() -> None:
    class Short(FromText):
        longest = 7

    other = OTHERS[0]
    ids = STUDENT(TEXTS[0])["input_ids"]
    (whole,) = TranslatedView(FromText(other), [3], (), Translation(STUDENT, other), len(STUDENT)).hidden([0], [ids])
    (short,) = TranslatedView(Short(other), [3], (), Translation(STUDENT, other), len(STUDENT)).hidden([0], [ids])
    covered = short[:, -1] == 1
    assert 0 < int(covered.sum()) < int((whole[:, -1] == 1).sum())
    torch.testing.assert_close(short[covered], whole[covered])
