"""What orchestration and storage cost, as a share of a whole run.

    python -m tests.benchmarks.overhead

Runs the demo from nothing in a fresh folder, its trees enlarged so that the run takes about five minutes on two CPU
cores, and tells where the time went. Storage is all time inside the store's calls; orchestration is the start of
Prefect's server, and what the flow's wall time holds beyond its stages.
"""

import os
import tempfile
import time
from pathlib import Path

from flows.command.environment import prepare
from tests.benchmarks.timing import add_time

DRAWS = 1600


def main() -> None:
    """Run and print a table."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        prepare()
        from prefect.client.orchestration import get_client

        from flows.command.configuration import checked, merged
        from flows.diagnose import diagnose
        from schemas.config import DemoConfig
        from tasks.demo.models import make_models, models_folder, models_of, write_inputs
        from tasks.run.session import open_session
        from tasks.store.store import Store

        imports = time.monotonic() - began
        storage = add_time(
            [(Store, name) for name in ("put_bytes", "get_bytes", "commit", "has", "load", "names", "remove")]
        )

        began = time.monotonic()
        demo, root = DemoConfig(), Path(folder)
        for wanted in models_of(demo):
            make_models(wanted, models_folder(root, wanted))
        training = time.monotonic() - began

        began = time.monotonic()
        with get_client(sync_client=True) as client:
            client.api_healthcheck()
        server = time.monotonic() - began

        override = {"tree": {"kind": "forced", "draws": DRAWS}}
        config = checked(merged(write_inputs(root, demo, dict), override))
        began = time.monotonic()
        open_session(config)
        opening = time.monotonic() - began
        began = time.monotonic()
        run = diagnose(config)
        flow = time.monotonic() - began
        stages = sum(stage["seconds"] for stage in run["stages"].values())
        aggregate = run["stages"]["aggregate"]["seconds"]
        total = imports + training + server + opening + flow
        rows = {
            "imports": imports,
            "training of the demo's models": training,
            "start of Prefect's server (orchestration)": server,
            "flow and task runs (orchestration)": flow - stages,
            "store (storage)": storage[0],
            "stages, without the store": stages - storage[0],
            "  of which tables and report": aggregate,
            "checks before the run": opening,
        }
        print(f"{'what':45} seconds   share")
        for what, seconds in rows.items():
            print(f"{what:45} {seconds:7.1f} {100 * seconds / total:6.1f} %")
        cost = server + flow - stages + storage[0]
        print(f"{'whole run':45} {total:7.1f}")
        print(f"{'orchestration and storage':45} {cost:7.1f} {100 * cost / total:6.1f} %")


if __name__ == "__main__":
    main()
