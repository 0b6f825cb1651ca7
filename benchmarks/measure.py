"""Timing, memory and tables, shared by all benchmarks."""

from __future__ import annotations

import contextlib
import gc
import importlib.metadata
import json
import os
import pickle
import platform
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

HERE = Path(__file__).resolve().parent
#: Generated inputs and written outputs; ``DASK_INFER_BENCHMARK_DATA`` moves it.
DATA = Path(os.environ.get("DASK_INFER_BENCHMARK_DATA", HERE / ".data"))


def confine(cores: int) -> None:
    """Keep this process, and all that it starts, on so many CPU cores."""
    allowed = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, allowed[:cores])


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    """Wall time of one call, and its answer."""
    start = time.perf_counter()
    answer = call()
    return time.perf_counter() - start, answer


def interleave(
    contenders: Mapping[str, Callable[[], Any]], rounds: int
) -> dict[str, list[Any]]:
    """Answers of all contenders, one call each a round, the order rotating.

    A slow minute of the machine so falls on all of them, and none always follows
    the same neighbour.
    """
    names = list(contenders)
    answers: dict[str, list[Any]] = {name: [] for name in names}
    for number in range(rounds):
        shift = number % len(names)
        for name in names[shift:] + names[:shift]:
            answers[name].append(contenders[name]())
    return answers


def median(values: Sequence[float]) -> float:
    """Middle value."""
    return statistics.median(values)


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Smallest and largest value, as text."""
    return f"{min(values):.{digits}f}-{max(values):.{digits}f}"


def beside(
    runs: Sequence[Mapping[str, float]], base: Sequence[Mapping[str, float]]
) -> list[str]:
    """Median and range of the seconds, and ratios of seconds and CPU to the base.

    Each run is compared with that of the base in the same round.
    """
    seconds = [run["seconds"] for run in runs]
    ratios = (
        median([a[key] / b[key] for a, b in zip(runs, base, strict=True)])
        for key in ("seconds", "cpu")
    )
    shown = (f"{ratio:.2f}" for ratio in ratios)
    return [f"{median(seconds):.2f}", spread(seconds), *shown]


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Markdown table; the first column is text, the others numbers."""
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def machine(packages: Sequence[str] = ("dask", "torch", "pandas", "pyarrow")) -> str:
    """One line on the machine and the versions that made a figure."""
    versions = ", ".join(f"{p} {importlib.metadata.version(p)}" for p in packages)
    memory = psutil.virtual_memory().total / 2**30
    return (
        f"{len(os.sched_getaffinity(0))} cores of {_cpu()}, {memory:.0f} GiB, "
        f"Python {platform.python_version()}, {versions}"
    )


def _cpu() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()


def run(command: Sequence[str], **environment: str) -> dict[str, Any]:
    """Run a program whose last line on standard output is a JSON object."""
    done = subprocess.run(
        command, env={**os.environ, **environment}, capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-4000:]}")
    answer: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return answer


def own_pss(under: str = "") -> int:
    """Proportional set size of this process: a page shared by n counts 1/n in each.

    With `under`, only of the mappings of files below that directory.
    """
    total, counted = 0, not under
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first, *rest = line.split()
        if not first.endswith(":"):
            counted = not under or (bool(rest[4:]) and rest[4].startswith(under))
        elif first == "Pss:" and counted:
            total += 1024 * int(rest[0])
    return total


def settled_rss() -> int:
    """Resident set size of the calling process, garbage collected first."""
    gc.collect()
    return int(psutil.Process().memory_info().rss)


@contextlib.contextmanager
def fresh_store() -> Iterator[str]:
    """Empty content store, for this process and for clusters started meanwhile."""
    import dask

    with (
        tempfile.TemporaryDirectory(prefix="dask-infer-store-") as place,
        dask.config.set({"infer.store.path": place}),
    ):
        os.environ["DASK_INFER__STORE__PATH"] = place
        yield place


@contextlib.contextmanager
def cluster(workers: int, **worker_options: Any) -> Iterator[Any]:
    """Client of a fresh cluster; scheduler and workers are processes of their own."""
    from distributed import Client
    from distributed.deploy.subprocess import SubprocessCluster

    with (
        SubprocessCluster(
            n_workers=workers,
            threads_per_worker=1,
            dashboard_address=":0",
            worker_kwargs=worker_options,
        ) as owner,
        Client(owner) as client,
    ):
        client.wait_for_workers(workers)
        yield client


def expression_bytes(collection: Any) -> int:
    """Bytes of the expression, which is what a client sends to the scheduler."""
    from distributed.protocol.pickle import dumps

    return len(dumps(collection.optimize().expr))


def graph_bytes(collection: Any) -> int:
    """Bytes of all tasks, pickled one by one, as the scheduler sends them out."""
    graph = collection.optimize().__dask_graph__()
    return sum(map(_pickled, graph.values()))


def _pickled(task: Any) -> int:
    from distributed.protocol.pickle import dumps

    return len(dumps(task, protocol=pickle.HIGHEST_PROTOCOL))
