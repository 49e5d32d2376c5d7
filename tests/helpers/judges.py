"""Verifiers such as users name in a configuration; nothing heavy is imported where they run."""

import os
import time


def failing(*given: object) -> bool:
    raise KeyError("a mistake")


def last_word(completion: str, answer: str) -> bool:
    if completion == "hang":
        time.sleep(600)
    return completion.split()[-1:] == [answer]


def unsure(completion: str, answer: str) -> str:
    return "perhaps"


def always(completion: str, answer: str) -> bool:
    return True


def leaving(*given: object) -> bool:
    raise SystemExit(0)


def sleeping(completion: str, answer: str) -> bool:
    time.sleep(600)
    return True


def dying(completion: str, answer: str) -> bool:
    os._exit(0)


def many(completion: str, answer: str) -> list[bool]:
    return [True]
