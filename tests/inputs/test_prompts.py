"""Prompts: what is shown to whom, and what goes with a chat template."""

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jinja2 import TemplateError
from transformers import PreTrainedTokenizerFast

from schemas.config import Context, Model, Prompt
from tasks.inputs.errors import InputError
from tasks.inputs.prompts import (
    PLAIN,
    PromptText,
    check_same_tokenizer,
    encode_prompt,
    load_tokenizer,
    prompt_text,
    tokenizer_fingerprint,
)
from tasks.inputs.questions import Question

FIELD = st.text(max_size=30)


@given(FIELD, FIELD)
def test_columns_are_put_in_as_they_are(asked: str, answer: str) -> None:
    """Braces, percent signs and templates of others among them."""
    question = Question("q", answer, {"question": asked, "answer": answer})
    prompt, context = (
        Prompt(template="<{{ question }}>{}"),
        Context(kind="custom", name="c", template="{{ answer }}|{{ prompt }}"),
    )
    assert prompt_text(prompt, PLAIN, question).user == f"<{asked}>{{}}"
    assert prompt_text(prompt, context, question).user == f"{answer}|<{asked}>{{}}"


@given(FIELD)
def test_a_prompt_that_names_a_column_prompt_shows_it_to_the_student_alone(text: str) -> None:
    question = Question("q", "a", {"prompt": text})
    assert prompt_text(Prompt(template="[{{ prompt }}]"), PLAIN, question).user == f"[{text}]"


@pytest.mark.parametrize(
    ("prompt", "context", "field"),
    [
        (Prompt(template="{{ question }}" * 3), PLAIN, "prompt.template"),
        (Prompt(), Context(kind="custom", name="c", template="{{ prompt }}" * 3), "context c"),
        (Prompt(), Context(kind="custom", name="c", template="{{ prompt }}{{ answer }}{{ answer }}"), "context c"),
    ],
)
def test_a_prompt_longer_than_any_model_reads_is_refused_before_it_is_made(
    prompt: Prompt, context: Context, field: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("schemas.limits.MOST_PROMPT", 250)
    question = Question("q", "a", {"question": "x" * 100, "answer": "y" * 100})
    with pytest.raises(InputError, match=rf"^{field}: question 'q' would give a prompt of more than 250 characters$"):
        prompt_text(prompt, context, question)
    assert len(prompt_text(Prompt(), Context(kind="answer"), question).user) < 250


def chat(template: str | None, **settings: Any) -> Any:
    """A tokenizer that shows what it is asked to render."""

    def render(messages: list[dict[str, str]], **given: Any) -> dict[str, list[int]]:
        if "bad" in given:
            raise TemplateError("System role not supported\nby this template")
        assert given.pop("add_generation_prompt") and given.pop("tokenize") and given.pop("return_dict")
        shown.append((messages, given))
        return {"input_ids": [1] * len(messages) if template == "x" else [1]}

    shown: list[Any] = []
    return SimpleNamespace(chat_template=template, apply_chat_template=render, shown=shown)


def test_a_chat_prompt_has_system_and_user_in_order() -> None:
    tokenizer = chat("x")
    prompt = Prompt(system="be brief", chat_template_kwargs={"enable_thinking": False})
    assert encode_prompt(tokenizer, PromptText("hello", prompt.system, True, prompt.chat_template_kwargs)) == [1, 1]
    assert encode_prompt(tokenizer, PromptText("hello", None, True, {})) == [1]
    user = {"role": "user", "content": "hello"}
    assert tokenizer.shown == [
        ([{"role": "system", "content": "be brief"}, user], {"enable_thinking": False}),
        ([user], {"enable_thinking": False}),  # what it is without, to see that it is shown
        ([user], {}),
    ]


def test_a_chat_template_that_leaves_out_system_messages() -> None:
    prompt = Prompt(system="be brief")
    with pytest.raises(InputError, match=r"^prompt: the model's chat template leaves out system messages; "):
        encode_prompt(chat("y"), PromptText("hello", prompt.system, True, prompt.chat_template_kwargs))


def test_a_model_without_a_chat_template_or_with_one_that_refuses() -> None:
    with pytest.raises(InputError, match=r"^prompt\.chat: true, but the model has no chat template; set it to false$"):
        encode_prompt(chat(None), PromptText("x", None, True, {}))
    prompt = Prompt(chat_template_kwargs={"bad": True})
    with pytest.raises(InputError, match=r"^prompt: .* chat template: System role not supported$"):
        encode_prompt(chat("x"), PromptText("x", None, True, prompt.chat_template_kwargs))


def test_a_text_prompt_is_the_text_alone(tokenizer: PreTrainedTokenizerFast) -> None:
    found = encode_prompt(tokenizer, PromptText("start 3 add 4", None, False, {}))
    assert tokenizer.decode(found) == "start 3 add 4" and all(type(i) is int for i in found)
    assert encode_prompt(tokenizer, PromptText("", None, False, {})) == []


def of(vocabulary: dict[str, int], end: str = "</s>", pipeline: str | None = None) -> Any:
    backend = None if pipeline is None else SimpleNamespace(to_str=lambda: pipeline)
    return SimpleNamespace(
        get_vocab=lambda: dict(vocabulary),
        eos_token=end,
        eos_token_id=vocabulary.get(end),
        backend_tokenizer=backend,
    )


WORDS = {"a": 0, "b": 1, "</s>": 2}


def test_a_tokenizer_is_its_content() -> None:
    plain = tokenizer_fingerprint(of(WORDS))
    assert plain == tokenizer_fingerprint(of(dict(reversed(WORDS.items()))))
    others = [of({**WORDS, "c": 3}), of({**WORDS, "a": 1, "b": 0}), of(WORDS, end="b"), of(WORDS, pipeline="{}")]
    assert len({plain, *(tokenizer_fingerprint(t) for t in others)}) == 5
    assert tokenizer_fingerprint(of(WORDS, pipeline="{}")) != tokenizer_fingerprint(of(WORDS, pipeline="[]"))


@pytest.mark.parametrize(
    ("theirs", "told"),
    [
        ({**WORDS, "c": 3}, "1 tokens differ, such as 'c' (id 3, the student's None)"),
        ({"a": 0, "</s>": 2}, "1 tokens differ, such as 'b' (id None, the student's 1)"),
        ({"a": 1, "b": 0, "</s>": 2}, "2 tokens differ, such as 'a' (id 1, the student's 0)"),
        ({}, "3 tokens differ, such as '</s>' (id None, the student's 2)"),
    ],
)
def test_the_first_token_that_differs_is_told(theirs: dict[str, int], told: str) -> None:
    with pytest.raises(InputError) as error:
        check_same_tokenizer("teachers[0].model.path", "there", of(WORDS), of(theirs))
    assert str(error.value).startswith("teachers[0].model.path: 'there' has a different tokenizer") and told in str(
        error.value
    )
    check_same_tokenizer("x", "there", of(WORDS), of(dict(WORDS), end="a"))


def test_a_folder_without_a_tokenizer_is_named(tmp_path: Any) -> None:
    with pytest.raises(ValueError, match=r"has no tokenizer \(tokenizer\.json\)"):
        load_tokenizer(Model(path=str(tmp_path)))
