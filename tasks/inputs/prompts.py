"""Prompts of student and teachers, as token ids."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from schemas.config import Context, Model, Prompt, is_local_folder, template_fields
from schemas.limits import MOST_PROMPT
from schemas.text import quoted
from tasks.inputs.foreign import reading
from tasks.inputs.questions import InputError, Question
from tasks.store.keys import digest

PLAIN = Context()

_TOKENIZER_FILES = ("tokenizer*", "vocab*", "*.model", "*.tiktoken")


@dataclass(frozen=True)
class PromptText:
    """The text of a prompt before tokenization, and how it is wrapped."""

    user: str
    system: str | None
    chat: bool


def prompt_text(prompt: Prompt, context: Context, question: Question) -> PromptText:
    """The student's prompt for the plain context, a teacher's for any other.

    Raises:
        InputError: it is longer than any model can read.
    """
    student_text = _filled("prompt.template", prompt.template, question, question.fields)
    columns = {**question.fields, "prompt": student_text}
    text = _filled(f"context {context.label}", context.text, question, columns)
    return PromptText(text, prompt.system, prompt.chat)


def _filled(field: str, template: str, question: Question, columns: Mapping[str, str]) -> str:
    names = template_fields(template)
    length = len(template) + sum(len(columns[name]) for name in names)
    if length > MOST_PROMPT:
        raise InputError(
            field,
            f"question {quoted(question.id)} would give a prompt of {length:,} characters; "
            f"the maximum is {MOST_PROMPT:,}",
        )
    return template.format(**{name: columns[name] for name in names})


def load_tokenizer(model: Model) -> Any:
    """The tokenizer of a model.

    Raises:
        ValueError: it has none that can be loaded.
    """
    from transformers import AutoTokenizer

    folder = Path(model.path)
    if is_local_folder(model.path) and not any(any(folder.glob(pattern)) for pattern in _TOKENIZER_FILES):
        raise ValueError(f"{quoted(model.path)} has no tokenizer (tokenizer.json)")  # transformers makes one up
    with reading(f"{quoted(model.path)} has no tokenizer that can be loaded", ValueError):
        return AutoTokenizer.from_pretrained(**model.pretrained, trust_remote_code=model.trust_remote_code)


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """Digest of what maps text to ids: vocabulary, special tokens and, for fast tokenizers, the whole pipeline."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return digest(
        {
            "vocabulary": tokenizer.get_vocab(),
            "special": [str(tokenizer.eos_token), tokenizer.eos_token_id],
            "pipeline": backend.to_str() if backend is not None else type(tokenizer).__name__,
        }
    )


def check_same_tokenizer(field: str, path: str, student: Any, teacher: Any) -> None:
    """Refuse a teacher whose token ids differ in meaning from the student's; vocabularies are compared by content.

    Args:
        field, path: of the teacher's model, for the message.
        student, teacher: tokenizers.

    Raises:
        InputError: they differ.
    """
    own, other = student.get_vocab(), teacher.get_vocab()
    if own == other:
        return
    differing = sorted(t for t in own.keys() | other.keys() if own.get(t) != other.get(t))
    token = differing[0]
    raise InputError(
        field,
        f"{quoted(path)} has a different tokenizer from the student: {len(differing)} tokens differ, "
        f"such as {token!r} (id {other.get(token)}, the student's {own.get(token)}); a teacher must share it",
    )


def encode_prompt(tokenizer: Any, text: PromptText, prompt: Prompt) -> list[int]:
    """Token ids of a prompt.

    Raises:
        InputError: a chat prompt, but the tokenizer has no chat template, or one that refuses it.
    """
    if not text.chat:
        return [int(i) for i in tokenizer(text.user)["input_ids"]]
    if tokenizer.chat_template is None:
        raise InputError("prompt.chat", "true, but the model has no chat template; set it to false")
    messages = [{"role": "user", "content": text.user}]
    if text.system is not None:
        messages.insert(0, {"role": "system", "content": text.system})
    with reading("it does not work with the model's chat template", partial(InputError, "prompt")):
        rendered = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=True, return_dict=True, **prompt.chat_template_kwargs
        )
    return [int(i) for i in rendered["input_ids"]]
