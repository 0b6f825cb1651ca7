"""How good is what auto chooses, and how near are the times that explain projects."""

from __future__ import annotations

import argparse
import gc
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import dask
import dask.dataframe as dd
import numpy as np
import pandas as pd

import dask_infer
from benchmarks import measure
from benchmarks.planner.models import SPEED, WIDTH, Model

HEADER = (
    "model | cluster | rows | partitions | auto takes | its seconds | best | seconds | "
    "auto / best | warm | projected | projected / warm"
)
MODELS = {
    "waits": Model(4, 20e-3, 80),
    "large": Model(8, 20e-3, 512),
    "computes": Model(4, 5e-3, 80, computes=True),
    "small": Model(2, 1e-3, 1),
}
#: Workers, resources of the first one, and what models may take on each.
CLUSTERS: dict[str, tuple[int, bool, str | None]] = {
    "2 workers": (2, False, None),
    "4 workers": (4, False, None),
    "4 workers, one with GPU": (4, True, None),
    "4 workers of 200 MiB": (4, False, "200 MiB"),
}
#: Model, cluster, rows, partitions.
CASES = [
    ("waits", "2 workers", 400, 20),
    ("waits", "2 workers", 300, 1),
    ("small", "2 workers", 4000, 20),
    ("computes", "2 workers", 1000, 10),
    ("waits", "4 workers", 800, 20),
    ("waits", "4 workers", 800, 5),
    ("large", "4 workers", 200, 2),
    ("small", "4 workers", 8000, 100),
    ("waits", "4 workers, one with GPU", 800, 20),
    ("large", "4 workers of 200 MiB", 800, 8),
    ("large", "4 workers of 200 MiB", 400, 40),
    ("large", "4 workers of 200 MiB", 200, 1),
]


@contextmanager
def cluster(name: str) -> Iterator[Any]:
    """Start one of `CLUSTERS`, whose processes have torch loaded."""
    from distributed import Client, Nanny, Scheduler, SpecCluster

    number, mixed, limit = CLUSTERS[name]
    workers = {
        i: {
            "cls": Nanny,
            "options": {
                "nthreads": 1,
                "resources": {"GPU": 1} if mixed and not i else {},
                "env": {SPEED: "50"} if mixed and not i else {},
            },
        }
        for i in range(number)
    }
    scheduler = {"cls": Scheduler, "options": {"dashboard_address": ":0"}}
    with ExitStack() as stack:
        if limit is not None:
            config = {"infer.replica.memory-limit": limit}
            stack.enter_context(dask.config.set(config))
        owner = SpecCluster(workers=workers, scheduler=scheduler, silence_logs=50)
        client = stack.enter_context(Client(stack.enter_context(owner)))
        client.wait_for_workers(number)
        client.run(_warm)
        yield client


def _warm() -> None:
    import dask_infer.pipeline.choice.auto_layout
    import dask_infer.run.partition
    import dask_infer.run.sweep.sweep_runner  # noqa: F401

    # A full collection of torch's objects takes 0.2 s of a core, in some runs.
    gc.collect()
    gc.freeze()


def compute(call: Callable[[], Any], *, unloaded: bool = True) -> float:
    """Return the seconds of a job, by default with weights that are to be loaded."""
    if unloaded:
        dask_infer.unload()
    time.sleep(0.5)  # until the scheduler has forgotten an earlier result
    seconds, result = measure.timed(call().compute)
    assert result["prediction"].map(len).eq(WIDTH).all()
    return seconds


def case(client: Any, name: str, rows: int, partitions: int, rounds: int) -> Any:
    """Return the plan, and the seconds of each layout that fits."""
    model = MODELS[name].build()
    frame = pd.DataFrame({"x": list(np.ones((rows, WIDTH), "float32"))})
    with dask.config.set({"dataframe.convert-string": False}):
        ddf = dd.from_pandas(frame, npartitions=partitions)
    options = {"columns": "x", "shapes": {"x": (WIDTH,)}, "keep": False}

    def call(parallel: Any, resources: Any = None) -> Callable[[], Any]:
        return lambda: ddf.infer.predict(
            model, parallel=parallel, resources=resources, **options
        )

    compute(call("auto"))  # what it measures is remembered
    plan = ddf.infer.explain(model, **options)
    able = [a for a in plan._found if not a.refused and a.kind != "shards"]
    calls = {a.name: call(a.layout, dict(a.resources) or None) for a in able}
    named = {key: (lambda key=key: compute(calls[key])) for key in calls}
    answers = measure.interleave(named, rounds)
    plan = ddf.infer.explain(model, **options)
    compute(call("auto"))
    events = [e["event"] for _, e in client.get_events("infer-groups")]
    taken = [e for e in events if 'parallel="auto"' in e][-1]
    name = taken.partition("takes ")[2].partition(":")[0]
    # What disturbs a run makes it slower.
    warm = min(compute(calls[name], unloaded=False) for _ in range(rounds))
    seconds = {key: min(runs) for key, runs in answers.items()}
    return plan, seconds, warm, name


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--cases", type=int, nargs="*")
    parser.add_argument("--verbose", action="store_true")
    options = parser.parse_args()
    chosen = [CASES[i] for i in options.cases] if options.cases else CASES
    lines = []
    with measure.fresh_store():
        for name in CLUSTERS:
            cases = [each for each in chosen if each[1] == name]
            if not cases:
                continue
            with cluster(name) as client:
                for each in cases:
                    plan, cold, warm, taken = case(
                        client, each[0], each[2], each[3], options.rounds
                    )
                    best = min(cold, key=lambda key: cold[key])
                    table = plan.table.set_index("layout")
                    projected = table.loc[taken, "run"]
                    if options.verbose:
                        print(plan, cold, warm, sep="\n", flush=True)
                    lines.append(
                        [*each[:2], each[2], each[3], taken, f"{cold[taken]:.2f}",
                         best, f"{cold[best]:.2f}", f"{cold[taken] / cold[best]:.2f}",
                         f"{warm:.2f}", f"{projected:.2f}",
                         f"{projected / warm:.2f}"]
                    )  # fmt: skip
                    print(lines[-1], os.getloadavg(), flush=True)
    print(measure.machine(), measure.table(HEADER.split(" | "), lines), sep="\n\n")


if __name__ == "__main__":
    main()
