"""What the loss of a stage costs: time until it is back, and work done twice."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import dask
import torch
from distributed import Client, Nanny, Scheduler, SpecCluster
from torch import nn

import dask_infer
from benchmarks import measure
from benchmarks.pipeline.model import Head, frame
from dask_infer import Layout
from dask_infer.pipeline.scheduler.group_table import TOPIC

HEADER = (
    "stage killed | noticed s | ready again s | range | job s | undisturbed s | "
    "microbatches run again a stage | worst"
)
STAGES = 3
#: What each worker has: that of the feeder nothing, and there is one stage's to spare.
HELD: tuple[dict[str, float], ...] = ({}, *({"STAGE": 1} for _ in range(STAGES + 1)))


@contextlib.contextmanager
def workers() -> Iterator[Client]:
    """Client of a fresh cluster of processes, one for each of `HELD`."""
    spec = {
        number: {"cls": Nanny, "options": {"nthreads": 1, "resources": held}}
        for number, held in enumerate(HELD)
    }
    options = {"dashboard": False, "dashboard_address": ":0", "port": 0}
    scheduler = {"cls": Scheduler, "options": options}
    with (
        # On a busy machine a process takes longer to be back than Dask waits for it.
        dask.config.set({"distributed.deploy.lost-worker-timeout": "10 minutes"}),
        SpecCluster(workers=spec, scheduler=scheduler, silence_logs=50) as cluster,
        Client(cluster) as client,
    ):
        yield client


def _warm() -> None:
    """Import what a worker that has run anything has imported."""
    import dask_infer.graph.tasks
    import dask_infer.pipeline.worker.serve_stage
    import dask_infer.run.partition  # noqa: F401


class Counts(nn.Module):
    """A layer that sleeps, and leaves a byte in a file for every forward."""

    def __init__(self, file: Path, seconds: float) -> None:
        super().__init__()
        self.file, self.seconds = str(file), seconds
        self.linear = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the layer's output, later."""
        if type(x) is torch.Tensor:  # and no fake one, as shapes are found with
            time.sleep(self.seconds)
            with open(self.file, "ab") as file:
                file.write(b"x")
        return self.linear(x)


class Job:
    """A pipeline of three stages, and all its microbatches."""

    def __init__(
        self, client: Client, place: Path, options: argparse.Namespace
    ) -> None:
        self.client = client
        self.microbatches = options.microbatches
        self.files = [place / str(stage) for stage in range(STAGES)]
        layers = [Counts(file, options.sleep) for file in self.files]
        model = nn.Sequential(nn.Embedding(1000, 8), *layers, Head(8))
        layout = Layout(stages=["2", "3"], microbatch=1, replicas=1)
        ddf = frame(self.microbatches, self.microbatches // 8)
        self.pred = ddf.infer.predict(
            model,
            columns="ids",
            keep=False,
            parallel=layout,
            resources={"STAGE": 1},
        )
        known = client.scheduler_info()["workers"]
        self.feeder = [a for a, worker in known.items() if not worker["resources"]]

    def run(self, stage: int | None) -> dict[str, float]:
        """Run all once, and kill a stage's worker halfway."""
        for file in self.files:
            file.write_bytes(b"")
        start = time.perf_counter()
        future = self.client.compute(self.pred, workers=self.feeder)
        if stage is None:
            assert len(future.result()) == self.microbatches
            return {"job": time.perf_counter() - start}
        while self.files[-1].stat().st_size < self.microbatches // 2:
            time.sleep(0.005)
        killed = self.kill(stage)
        result = future.result()
        job = time.perf_counter() - start
        assert len(result) == self.microbatches and result["prediction"].notna().all()
        again = [file.stat().st_size - self.microbatches for file in self.files]
        return {"job": job, "again": sum(again) / STAGES, **self.events_after(killed)}

    def kill(self, stage: int) -> float:
        """Kill the worker of a stage; return when."""
        table = dask_infer.replicas(client=self.client)
        address = table.worker[table.stage == stage].iloc[0]
        (pid,) = self.client.run(os.getpid, workers=[address]).values()
        killed = time.time()
        os.kill(pid, signal.SIGKILL)
        return killed

    def events_after(self, killed: float) -> dict[str, float]:
        """Seconds from a kill until the coordinator knew it, and all stages served."""
        events = [
            (at, str(event["event"]))
            for at, event in self.client.get_events(TOPIC)
            if at > killed
        ]
        lost = [at for at, what in events if "is gone" in what]
        serves = [at for at, what in events if "serves" in what]
        return {"noticed": lost[0] - killed, "ready": serves[-1] - killed}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--microbatches", type=int, default=160)
    parser.add_argument("--sleep", type=float, default=0.02)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as place,
        measure.fresh_store(),
        workers() as client,
    ):
        job = Job(client, Path(place), options)

        def call(stage: int | None) -> dict[str, float]:
            client.wait_for_workers(len(HELD))
            client.run(_warm)
            return job.run(stage)

        call(None)  # loads the model
        calls = {s: (lambda s=s: call(s)) for s in (None, *range(STAGES))}
        answers = measure.interleave(calls, options.rounds)
    base = measure.median([run["job"] for run in answers.pop(None)])
    lines = []
    for stage, runs in answers.items():
        found = {key: [run[key] for run in runs] for key in runs[0]}
        lines.append(
            [stage, f"{measure.median(found['noticed']):.2f}",
             f"{measure.median(found['ready']):.2f}", measure.spread(found["ready"]),
             f"{measure.median(found['job']):.2f}", f"{base:.2f}",
             f"{measure.median(found['again']):.1f}", f"{max(found['again']):.1f}"]
        )  # fmt: skip
    print(measure.machine(), measure.table(HEADER.split(" | "), lines), sep="\n\n")


if __name__ == "__main__":
    main()
