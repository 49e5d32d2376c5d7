"""Time inside functions, outermost calls only."""

import time
from collections.abc import Callable, Sequence
from threading import get_ident
from typing import Any


def add_time(functions: Sequence[tuple[Any, str]]) -> list[float]:
    """Replace functions of classes or of modules' dictionaries by timed ones.

    Returns:
        the seconds inside any of them so far, in a list of one.
    """
    total, inside = [0.0], set[int]()
    for owner, name in functions:
        of_module = isinstance(owner, dict)
        function: Callable[..., Any] = owner[name] if of_module else getattr(owner, name)

        def timed(*args: Any, function: Callable[..., Any] = function, **kwargs: Any) -> Any:
            me = get_ident()
            if me in inside:
                return function(*args, **kwargs)
            inside.add(me)
            began = time.monotonic()
            try:
                return function(*args, **kwargs)
            finally:
                inside.discard(me)
                total[0] += time.monotonic() - began

        if of_module:
            owner[name] = timed
        else:
            setattr(owner, name, timed)
    return total
