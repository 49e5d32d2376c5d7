"""What is shown: prompts of student and teachers, as token ids."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError

from schemas.config import Context, Model, Prompt, template_fields
from schemas.limits import MOST_PROMPT
from schemas.text import quoted, reason
from tasks.inputs.questions import InputError, Question
from tasks.store.keys import digest, hub_errors

PLAIN = Context()


@dataclass(frozen=True)
class PromptText:
    """The text of a prompt before tokens: what is shown, and how it is wrapped."""

    user: str
    system: str | None
    chat: bool


def prompt_text(prompt: Prompt, context: Context, question: Question) -> PromptText:
    """The student's prompt for the plain context, a teacher's for any other.

    Raises:
        InputError: it is longer than any model reads.
    """
    own = _filled("prompt.template", prompt.template, question, question.fields)
    whole = _filled(f"context {context.label}", context.text, question, {**question.fields, "prompt": own})
    return PromptText(whole, prompt.system, prompt.chat)


def _filled(field: str, template: str, question: Question, columns: Mapping[str, str]) -> str:
    names = template_fields(template)
    length = len(template) + sum(len(columns[name]) for name in names)
    if length > MOST_PROMPT:
        raise InputError(
            field,
            f"question {quoted(question.id)} would give a prompt of {length:,} characters; the most are {MOST_PROMPT:,}",
        )
    return template.format(**{name: columns[name] for name in names})


def load_tokenizer(model: Model) -> Any:
    """The tokenizer of a model folder or hub name.

    Raises:
        ValueError: there is none.
    """
    from transformers import AutoTokenizer

    errors: tuple[type[Exception], ...] = (KeyError, *hub_errors())
    try:
        return AutoTokenizer.from_pretrained(
            model.path, revision=model.revision, trust_remote_code=model.trust_remote_code
        )
    except errors as error:
        raise ValueError(f"{quoted(model.path)} has no tokenizer that can be loaded: {reason(error)}") from error


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """Content of what maps text to ids: vocabulary, special tokens and, for fast ones, the whole pipeline."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return digest(
        {
            "vocabulary": tokenizer.get_vocab(),
            "special": [str(tokenizer.eos_token), tokenizer.eos_token_id],
            "pipeline": backend.to_str() if backend is not None else type(tokenizer).__name__,
        }
    )


def check_same_tokenizer(field: str, path: str, student: Any, teacher: Any) -> None:
    """Refuse a teacher whose token ids do not mean what the student's mean; compared by content.

    Args:
        field, path: of the teacher's model, for the message.
        student, teacher: tokenizers.

    Raises:
        InputError: they differ.
    """
    ours, theirs = student.get_vocab(), teacher.get_vocab()
    if ours == theirs:
        return
    differing = sorted(t for t in ours.keys() | theirs.keys() if ours.get(t) != theirs.get(t))
    token = differing[0]
    raise InputError(
        field,
        f"{quoted(path)} has another tokenizer than the student: {len(differing)} tokens differ, "
        f"such as {token!r} (id {theirs.get(token)}, the student's {ours.get(token)}); a teacher must share it",
    )


def encode_prompt(tokenizer: Any, text: PromptText, prompt: Prompt) -> list[int]:
    """Token ids of a prompt.

    Raises:
        InputError: a chat prompt, and a tokenizer without a chat template or with one that refuses it.
    """
    if not text.chat:
        return [int(i) for i in tokenizer(text.user)["input_ids"]]
    if tokenizer.chat_template is None:
        raise InputError("prompt.chat", "true, but the model has no chat template; set it to false")
    messages = [{"role": "user", "content": text.user}]
    if text.system is not None:
        messages.insert(0, {"role": "system", "content": text.system})
    try:
        rendered = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=True, return_dict=True, **prompt.chat_template_kwargs
        )
    except (TemplateError, TypeError) as error:
        raise InputError(
            "prompt", f"{quoted(prompt)} does not go with the model's chat template: {reason(error)}"
        ) from error
    return [int(i) for i in rendered["input_ids"]]
