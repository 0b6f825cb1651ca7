"""Jobs of LAYOUTS' size order: models, workers and rows as numbers."""

from __future__ import annotations

from math import inf

from dask_infer.plan.facts import BlockFacts, WorkerFacts
from dask_infer.plan.layouts.job_facts import JobFacts

GB = 10**9
#: Floating operations a second.
GPU, CPU = 1e14, 2e11


def crew(count, gigabytes, *, a_host=None, **options):
    """Equal workers, so many on each host."""
    memory = None if gigabytes is None else int(gigabytes * GB)
    return tuple(
        WorkerFacts(f"w{i}", memory, host=f"h{i // (a_host or count)}", **options)
        for i in range(count)
    )


def layers(
    number, nbytes, seconds=1.0, *, cut=0, activations=0, first=None, whole=False
):
    """A chain of equal blocks; `first` has more bytes, or alone can be divided."""
    sizes = [nbytes // number] * number
    if first is not None:
        sizes[0] = first
    return tuple(
        BlockFacts(
            f"h.{i}",
            size,
            seconds / number,
            cut if i else 0,
            activations,
            divisible=0 if whole and i else size,
            exchanges=2,
        )
        for i, size in enumerate(sizes)
    )


def language_model(
    parameters, itemsize, workers, *, rows, partitions, flops, tokens, blocks=32,
    width=4096, load_rate=1e9, store_rate=inf, **options,
):  # fmt: skip
    """A decoder that reads rows of so many tokens."""
    nbytes = int(parameters * itemsize)
    seconds = 2 * parameters * tokens / flops
    cut = 16 * tokens * width * itemsize
    return JobFacts(
        nbytes,
        workers,
        rows,
        partitions,
        seconds,
        blocks=layers(blocks, nbytes, 16 * seconds, cut=cut, activations=GB // 2),
        load_rate=load_rate,
        store_rate=store_rate,
        **options,
    )


def small(workers=None, *, rows=10_000, partitions=100, **options):
    """A job of no size, whose numbers a test changes."""
    workers = crew(4, 4) if workers is None else workers
    known = {"row_seconds": 1e-3, "blocks": layers(4, GB, 16e-3)}
    return JobFacts(GB, workers, rows, partitions, **{**known, **options})


CASES = {
    "7B on four GPUs of 24 GB": (
        language_model(7e9, 2, crew(4, 24), rows=100_000, partitions=1000, flops=GPU,
                       tokens=512),
        "data",
    ),
    "70B on eight GPUs of 80 GB": (
        # They share the bus of their host.
        language_model(70e9, 2, crew(8, 80), rows=100_000, partitions=1000, flops=GPU,
                       tokens=512, blocks=80, width=8192, load_rate=0.75e9),
        "stages=2",
    ),
    "a table model on 100 workers": (
        JobFacts(4 * 10**6, crew(100, 4, a_host=10), 10**9, 10_000, 1e-6,
                 prepare_seconds=1e-6, blocks=layers(4, 4 * 10**6, 16e-6)),
        "data",
    ),
    "70B on two GPUs of 24 GB": (
        language_model(70e9, 2, crew(2, 24), rows=10_000, partitions=100, flops=GPU,
                       tokens=512, blocks=80, width=8192, load_rate=6e9),
        "sweep",
    ),
    "1.3B on three CPU workers and a GPU": (
        language_model(1.3e9, 2,
                       (*crew(1, 24, speed=500.0, one_at_a_time=True),
                        *(WorkerFacts(f"cpu{i}", 16 * GB, host=f"c{i}", holds=0)
                          for i in range(3))),
                       rows=100_000, partitions=100, flops=CPU, tokens=128,
                       prepare_seconds=2e-3, resources=(("GPU", 1.0),)),
        "replicas",
    ),
    "7B on sixteen GPUs for few rows, from one store": (
        language_model(7e9, 2, crew(16, 80, a_host=2), rows=2000, partitions=8,
                       flops=GPU, tokens=512, store_rate=1e9),
        "stages=16",
    ),
    "13B on eight CPU workers of 16 GB": (
        language_model(13e9, 4, crew(8, 9.6, a_host=1), rows=10_000, partitions=100,
                       flops=CPU, tokens=128, blocks=40, width=5120),
        "sweep",
    ),
    "30 GB in one block on four workers of 16 GB": (
        JobFacts(32 * GB, crew(4, 12, a_host=1), 100_000, 100, 1e-4,
                 blocks=layers(5, 2 * GB, 16e-4, first=30 * GB,
                                                     cut=16 * 4096)),
        "shards=4",
    ),
    "20 GB that shards alone divide, on three workers of 9 GB": (
        JobFacts(20 * GB, crew(3, 9), 1000, 10, 1e-3, uncut="its code cannot be traced",
                 blocks=layers(1, 20 * GB)),
        "shards=3",
    ),
    "30 GB in one block before layers that nothing divides, on six of 20 GB": (
        JobFacts(62 * GB, crew(6, 20), 1000, 10, 1e-3,
                 blocks=layers(5, 40 * GB, 16e-3, first=30 * GB, whole=True)),
        "stages=3, shards=2",
    ),
    "8 GB that cannot be cut, on workers of 4 GB": (
        JobFacts(8 * GB, crew(4, 4), 1000, 10, 1e-3, uncut="no layers are visible"),
        None,
    ),
}  # fmt: skip
