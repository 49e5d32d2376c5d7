"""A check that never ends on one input, for the test of the pool's time limit."""

import time


def check(completion: str, answer: str, cut: bool) -> bool:
    """True at once, or never."""
    while completion == "hang":
        time.sleep(1)
    return True
