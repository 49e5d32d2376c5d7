"""Runs a diagnosis in a process of its own, counting decoded tokens, and kills itself at a chosen event.

    python -m tests.helpers.driver CONFIG.yaml COUNTS [EVENT]

An event is a decoding step, or the start, middle or end of a write to the store: moments spread over all that a run
does. After every step of a call the tokens that it decoded are appended to COUNTS, so that nothing that was decoded
before a kill goes uncounted, and at its end `call` with all its tokens.
"""

import os
import signal
import sys
from pathlib import Path
from typing import Any

import yaml

from flows.command.configuration import checked
from flows.diagnose import diagnose
from tasks.engines.transformers.batches import Batch
from tasks.engines.transformers.decoding import Decoder
from tasks.engines.transformers.sampler import TransformersSampler
from tasks.store.store import Store


def main(config: str, counts: str, event: int | None) -> None:
    """Run; never returns where the event is reached."""
    seen = 0

    def tick() -> None:
        nonlocal seen
        seen += 1
        if event is not None and seen >= event:
            os.kill(os.getpid(), signal.SIGKILL)

    log = os.open(counts, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    take, calls, put = Decoder.take, TransformersSampler.continue_prefixes, Store.put_bytes

    def counted_take(self: Decoder, batch: Batch, tokens: Any) -> None:
        running = sum(int(c.alive.sum()) for c in batch.cohorts)
        take(self, batch, tokens)
        os.write(log, b"%d\n" % running)
        tick()

    def counted_call(self: TransformersSampler, *args: Any) -> Any:
        ends = calls(self, *args)
        os.write(log, b"call %d\n" % sum(len(end.tokens) for end in ends))
        return ends

    def torn_put(self: Store, data: bytes, *parts: str) -> None:
        tick()
        if event is not None and seen + 1 == event:  # die half way through: only part of the bytes reach the disk
            target = Path(self.path(*parts))
            target.parent.mkdir(parents=True, exist_ok=True)
            target.with_name(f".{target.name}.torn").write_bytes(data[: len(data) // 2])
        tick()
        put(self, data, *parts)
        tick()

    for owner, name, method in (
        (Decoder, "take", counted_take),
        (TransformersSampler, "continue_prefixes", counted_call),
        (Store, "put_bytes", torn_put),
    ):
        setattr(owner, name, method)
    diagnose(checked(yaml.safe_load(Path(config).read_text())))
    os.write(log, b"events %d\n" % seen)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]) if len(sys.argv) > 3 else None)
