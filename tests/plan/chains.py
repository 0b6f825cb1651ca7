"""Chains of blocks and sets of workers, drawn or written down, for tests of plans."""

from __future__ import annotations

from itertools import combinations, pairwise, permutations

from hypothesis import strategies as st

from dask_infer.plan.facts import BANDWIDTH, BlockFacts, WorkerFacts, need
from dask_infer.plan.stage_plan import stage_plan

#: Bytes that take an eighth of a second, so that sums of floats are exact.
EIGHTH = int(BANDWIDTH / 8)


def chain(seconds, nbytes=None, cuts=None, activations=None):
    """Blocks b0, b1, ... with these numbers; cuts in eighths of a second."""
    nothing = [0] * len(seconds)
    cuts = [EIGHTH * cut for cut in cuts or nothing]
    columns = (nbytes or nothing, seconds, cuts, activations or nothing)
    return [
        BlockFacts(f"b{i}", *facts)
        for i, facts in enumerate(zip(*columns, strict=True))
    ]


def crew(*memory, speed=1.0):
    return [WorkerFacts(f"w{i}", room, speed) for i, room in enumerate(memory)]


def chains(least=1, most=10):
    eighths = st.integers(0, 40).map(lambda n: n / 8)
    small = st.integers(0, 12)
    cuts = st.integers(0, 40).map(lambda n: n * EIGHTH)
    block = st.tuples(st.integers(1, 12), eighths, cuts, small)
    return st.lists(block, min_size=least, max_size=most).map(
        lambda rows: [BlockFacts(f"b{i}", *row) for i, row in enumerate(rows)]
    )


def crews(most=4, speeds=(0.5, 1.0, 2.0)):
    rooms = st.none() | st.integers(5, 80)
    worker = st.tuples(rooms, st.sampled_from(speeds))
    return st.lists(worker, min_size=1, max_size=most).map(
        lambda rows: [WorkerFacts(f"w{i}", *row) for i, row in enumerate(rows)]
    )


def every_layout(blocks, workers, stages):
    """Every cut on every order of workers that fits."""
    for inner in combinations(range(1, len(blocks)), stages - 1):
        bounds = (0, *inner, len(blocks))
        needs = [need(blocks[a:b]) for a, b in pairwise(bounds)]
        for chosen in permutations(workers, stages):
            if all(n <= w.room for n, w in zip(needs, chosen, strict=True)):
                yield stage_plan(blocks, bounds, chosen)
