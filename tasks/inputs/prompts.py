"""Prompts of student and teachers, as token ids."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from schemas.config import Context, Model, Prompt, is_local_folder
from schemas.config.contexts import OTHER_ROLLOUTS
from schemas.config.templates import TooLongError, Values, names_in, rendered
from schemas.text import quoted
from tasks.inputs.errors import InputError
from tasks.inputs.foreign import reading
from tasks.inputs.questions import Question
from tasks.store.keys import digest

PLAIN = Context()

_TOKENIZER_FILES = ("tokenizer*", "vocab*", "*.model", "*.tiktoken")


@dataclass(frozen=True)
class PromptText:
    """The text of a prompt before tokenization, and how it is wrapped: `arguments` are those of a chat template."""

    user: str
    system: str | None
    chat: bool
    arguments: Mapping[str, bool | int | str]


def prompt_text(prompt: Prompt, context: Context, question: Question, more: Values | None = None) -> PromptText:
    """The student's prompt for the plain context, a teacher's for any other.

    Args:
        more: what the context's template may name besides columns: of rollouts, and demonstrations. Where it names a
            right attempt and there is none, the context's other template is used.

    Raises:
        InputError: it is longer than any model can read, or a name is missing.
    """
    student_text = _filled("prompt.template", prompt.template, question, question.fields)
    given = {**question.fields, **(more or {}), "prompt": student_text}
    template = context.text
    if "otherwise" in context.templates:
        may_lack = [*OTHER_ROLLOUTS, *([context.written] if context.generate is not None else [])]
        used = names_in(f"{template}{context.system or ''}").texts
        if any(name in used and name not in (more or {}) for name in may_lack):
            template = context.otherwise
    where = f"context {context.label}"
    text = _filled(where, template, question, given)
    system = prompt.system
    if context.system is not None:
        lacking = dict.fromkeys((*OTHER_ROLLOUTS, context.written), "")
        system = _filled(
            f"{where}, system",
            context.system,
            question,
            {**question.fields, **lacking, **(more or {}), "prompt": student_text},
        )
    own = context.chat_template_kwargs
    return PromptText(text, system, prompt.chat, prompt.chat_template_kwargs if own is None else own)


def writer_text(prompt: Prompt, context: Context, question: Question, of_rollout: Values) -> PromptText:
    """What the writer of a context's text is asked, as the student is asked: without a system message of its own.

    Args:
        of_rollout: what the template may name of a rollout.

    Raises:
        InputError: as for `prompt_text`.
    """
    own = _filled("prompt.template", prompt.template, question, question.fields)
    values = {**question.fields, **of_rollout, "prompt": own}
    text = _filled(f"context {context.label}, generate", context.writer_template, question, values)
    return PromptText(text, None, prompt.chat, prompt.chat_template_kwargs)


def _filled(field: str, template: str, question: Question, values: Values) -> str:
    try:
        return rendered(template, values)
    except TooLongError as error:
        raise InputError(field, f"question {quoted(question.id)} {error}") from error
    except ValueError as error:
        raise InputError(field, f"question {quoted(question.id)}: {error}") from error


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
        f"such as {token!r} (id {other.get(token)}, the student's {own.get(token)}); "
        "set the teacher's tokenizer to own to compare texts of tokens",
    )


def encode_prompt(tokenizer: Any, text: PromptText) -> list[int]:
    """Token ids of a prompt.

    Raises:
        InputError: a chat prompt, but the tokenizer has no chat template, or one that refuses it.
    """
    if not text.chat:
        return [int(i) for i in tokenizer(text.user)["input_ids"]]
    if tokenizer.chat_template is None:
        raise InputError("prompt.chat", "true, but the model has no chat template; set it to false")
    user = {"role": "user", "content": text.user}
    if text.system is None:
        return _chat(tokenizer, [user], text)
    whole = _chat(tokenizer, [{"role": "system", "content": text.system}, user], text)
    if whole == _chat(tokenizer, [user], text):
        raise InputError("prompt", "the model's chat template leaves out system messages; put the text in the template")
    return whole


def _chat(tokenizer: Any, messages: list[dict[str, str]], text: PromptText) -> list[int]:
    with reading("it does not work with the model's chat template", partial(InputError, "prompt")):
        rendered = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=True, return_dict=True, **text.arguments
        )
    return [int(i) for i in rendered["input_ids"]]
