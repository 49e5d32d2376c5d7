"""A teacher on a vLLM server, scored by the log-probabilities that it tells of a prompt's tokens.

Nothing of it is loaded here. Of each position the server tells its `top` likeliest tokens and the one that stands
there; what it gives to all others is known as a sum.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

from schemas.config import TeacherServer
from schemas.text import quoted
from tasks.engines.counts import MODEL_TIME, SCORED
from tasks.engines.protocol import EngineAwayError, EngineError
from tasks.engines.stopping import check_stopped
from tasks.engines.vllm import answers
from tasks.engines.vllm.bounds import NoAnswerError
from tasks.engines.vllm.connection import Connection, api_key
from tasks.engines.vllm.served import look_up_one

_PROBE = "The answer to 12 + 30 is 42, because 12 + 30 = 42.\nIs that right? Yes, it is."

_RESOLVED = 1e-7
"""The smallest probability of all other tokens that the numbers of a server, which are float32, can tell from none."""

_RESOLVED = 1e-7
"""The smallest probability of all other tokens that the numbers of a server, which are float32, can tell from none."""


class ServedTeacher:
    """The server of one teacher."""

    def __init__(self, settings: TeacherServer, tokenizer: Any) -> None:
        """Ask the server what it serves, and whether its tokens are the student's.

        Raises:
            EngineError: it cannot be reached, serves another model, or reads token ids as other texts.
        """
        self.settings, self.served = settings, look_up_one(settings.url, settings.model, settings.api_key_variable)
        probe = [int(token) for token in tokenizer(_PROBE, add_special_tokens=False)["input_ids"]]
        with self._connection() as connection:
            try:
                steps = self._ask(connection, probe)
            except NoAnswerError as error:
                raise EngineError(f"{settings.url} does not score a probe ({error})") from error
        for token, step in zip(probe[1:], steps[1:], strict=True):
            own, theirs = tokenizer.decode([token]), step.texts.get(token)
            if theirs is not None and theirs.strip() != own.strip():
                raise EngineError(
                    f"{settings.url} reads token {token} as {quoted(theirs)}, the student as {quoted(own)}; "
                    "a teacher on a server must share the student's tokenizer"
                )

    @property
    def identity(self) -> dict[str, object]:
        """What keys contain of it; a server does not tell the content of its model."""
        return {"served": self.served.model, "version": self.served.version, "top": self.settings.top}

    def check_length(self, tokens: int) -> None:
        """Refuse a sequence that is longer than the server takes; one token is sampled after it.

        Raises:
            EngineError: the message gives both lengths.
        """
        if tokens + 1 > self.served.length:
            raise EngineError(
                f"a sequence of {tokens} tokens is longer than {self.served.length - 1}, its server's limit"
            )

    def log_probs(self, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]]) -> list[torch.Tensor]:
        """Ids and log-probabilities before each token of completions, [T_i, 2, top + 1] each; -inf beyond what is told.

        Raises:
            EngineError: the server refuses, or gives a wrong answer.
            EngineAwayError: it does not answer.
        """

        def score(prompt: Sequence[int], completion: Sequence[int]) -> torch.Tensor:
            check_stopped()
            with self._connection() as connection:
                steps = self._ask(connection, [*prompt, *completion])[len(prompt) :]
            width = self.settings.top + 1
            out = torch.zeros(len(completion), 2, width, dtype=torch.float64)
            out[:, 1] = -torch.inf
            for row, step in zip(out, steps, strict=True):
                for place, (token, log_prob) in enumerate(list(step.log_probs.items())[:width]):
                    row[0, place], row[1, place] = token, log_prob
            return out

        for prompt, completion in zip(prompts, completions, strict=True):
            self.check_length(len(prompt) + len(completion))
        SCORED.add(sum(map(len, prompts)) + sum(map(len, completions)))
        try:
            with MODEL_TIME.measured(), ThreadPoolExecutor(self.settings.concurrency) as pool:
                return list(pool.map(score, prompts, completions))
        except NoAnswerError as error:
            raise EngineAwayError(str(error)) from error

    def _connection(self) -> Connection:
        return Connection(self.settings.url, api_key(self.settings.api_key_variable))

    def _ask(self, connection: Connection, tokens: Sequence[int]) -> list[answers.Step]:
        body = {
            "model": self.served.model,
            "prompt": [int(token) for token in tokens],
            "max_tokens": 1,
            "temperature": 0,
            "prompt_logprobs": self.settings.top,
            "add_special_tokens": False,
        }
        told = (len(tokens) + 1) * (self.settings.top + 2)
        answer = connection.ask("/v1/completions", body, seconds=self.settings.timeout, tokens=told)
        return answers.prompt_steps(answer, tokens)


class ServedView:
    """A teacher on a server, as a view of the student's completions: rows are -inf for tokens that it does not tell."""

    partial = True

    def __init__(
        self,
        teacher: ServedTeacher,
        prompt: Sequence[int],
        by_rollout: Sequence[Sequence[int]],
        vocabulary: int,
    ) -> None:
        self._teacher, self.prompt, self.by_rollout, self.vocabulary = teacher, prompt, by_rollout, vocabulary

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt."""
        return max(map(len, self.by_rollout or [self.prompt]))

    def hidden(self, rollouts: Sequence[int], completions: Sequence[Sequence[int]]) -> list[torch.Tensor]:
        """Told ids and log-probabilities, [T_i, 2, top + 1] each."""
        prompts = [self.by_rollout[r] if self.by_rollout else self.prompt for r in rollouts]
        return self._teacher.log_probs(prompts, completions)

    def rows(self, hidden: torch.Tensor, vocabulary: int) -> torch.Tensor:
        """Log-probabilities, in the last column that of all other tokens: [n, 2, top + 1] -> [n, vocabulary + 1]."""
        ids, log_probs = hidden[:, 0].long(), hidden[:, 1]
        told = (ids < vocabulary) & log_probs.isfinite()
        out = torch.full((len(hidden), vocabulary + 1), -torch.inf, dtype=torch.float64)
        row = torch.arange(len(hidden))[:, None].expand_as(ids)
        out[row[told], ids[told]] = log_probs[told]
        rest = 1 - log_probs.exp().sum(-1)
        out[:, -1] = rest.clamp(min=_RESOLVED).log()
        return out
