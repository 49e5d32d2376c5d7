"""`opdscope store` at many artefacts: seconds of ls, verify and gc.

python -m tests.benchmarks.store [--artefacts 100000]
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np

from tasks.store.codec import encode
from tasks.store.garbage import remove, unreachable
from tasks.store.keys import digest
from tasks.store.listing import damaged, holdings
from tasks.store.store import OBJECT, Store

T = TypeVar("T")


def main(artefacts: int) -> None:
    """Fill a store in a temporary folder with real artefacts, half of them referred to; print seconds."""
    with tempfile.TemporaryDirectory() as folder:
        store = Store(folder)
        arrays = {
            "prompt": np.zeros(64, dtype=np.int32),
            "tokens": np.zeros(2048, dtype=np.int32),
            "offsets": np.arange(0, 2049, 256),
            "correct": np.zeros(8, dtype=bool),
            "truncated": np.zeros(8, dtype=bool),
            "reward": np.zeros(8),
        }
        data = encode("rollouts", "0" * 64, arrays, {})  # its key is not looked at here
        keys = [digest(i) for i in range(artefacts)]
        for key in keys:
            path = Path(store.path("rollouts", key, OBJECT))
            path.parent.mkdir(parents=True)
            path.write_bytes(data)
        store.put_bytes(
            json.dumps([f"rollouts/{key}" for key in keys[::2]]).encode(), "runs", "kept", "references-diagnose.json"
        )
        timed(f"ls, {artefacts:,} artefacts of {len(data):,} bytes", lambda: holdings(store))
        timed("verify", lambda: damaged(store))
        free = timed("gc, looking", lambda: unreachable(store, 0.0))
        timed(f"gc, removing {len(free):,}", lambda: remove(store, free))
        left = {path.name for path in Path(store.path("rollouts")).iterdir()}
        assert left == set(keys[::2])


def timed(what: str, work: Callable[[], T]) -> T:
    """Print the seconds of some work."""
    began = time.perf_counter()
    out = work()
    print(f"{what}: {time.perf_counter() - began:.1f} s")
    return out


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--artefacts", type=int, default=100_000)
    main(parser.parse_args().artefacts)
