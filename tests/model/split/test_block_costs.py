"""What blocks cost, and what a stage table says of them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dask_infer.model.shapes.trace_errors import Example
from dask_infer.model.split import block_costs as module
from dask_infer.model.split import profile
from dask_infer.model.split.block_costs import fastest
from tests.model.split.models import FLOATS, TOKENS, Layer, Masked, Tied, split_module


def test_profile_needs_no_weights():
    spec, chain = split_module(nn.Sequential(Layer(), Layer(), Layer()), FLOATS)
    del spec
    costs = profile(chain, 1, 3, 16)
    assert len(costs) == 2
    assert all(cost.seconds > 0 for cost in costs)
    assert [cost.carry_bytes for cost in costs] == [16 * 8 * 4, 16 * 8 * 4]


def test_profile_of_texts_is_at_a_number_of_tokens():
    _, chain = split_module(Masked(), TOKENS, attention_mask=TOKENS)
    few, many = (profile(chain, 1, 2, 4, tokens=tokens)[0] for tokens in (8, 16))
    assert (few.carry_bytes, many.carry_bytes) == (4 * 8 * 33, 4 * 16 * 33)


def test_profile_leaves_the_modules_without_memory():
    _, chain = split_module(nn.Sequential(Layer(), Layer()), FLOATS)
    modules = chain.layers()
    profile(chain, 0, 2, 4)
    assert all(p.is_meta for module in modules.values() for p in module.parameters())


def test_profile_runs_where_sizes_are_unknown():
    class Drops(nn.Linear):
        def forward(self, x):
            return super().forward(x)[x.sum(1) > -torch.inf]

    _, chain = split_module(nn.Sequential(Drops(8, 8), Drops(8, 8)), FLOATS)
    assert [cost.carry_bytes for cost in profile(chain, 1, 2, 4)] == [4 * 8 * 4]


def test_blocks_and_repr_show_sizes():
    _, chain = split_module(Tied(), TOKENS)
    first, *_, last = chain.blocks
    assert (first.name, first.parameters, first.nbytes) == ("embed", 160, 640)
    assert first.cut_bytes_per_row == 128 * 8 * 4
    assert last.nbytes == 640 and last.cut_bytes_per_row == 0
    assert chain.nbytes == sum(block.nbytes for block in chain.blocks) - 640
    assert repr(chain) == "<Chain Tied 5 blocks 1.7 KiB>"


def test_bytes_that_cross_follow_the_dtype():
    module = nn.Sequential(nn.Linear(8, 100), nn.Linear(100, 8))
    for dtype, width in (("float32", 4), ("bfloat16", 2)):
        _, chain = split_module(module, Example("floating", (8,)), dtype=dtype)
        assert chain.blocks[0].cut_bytes_per_row == 100 * width


# Work timed on a machine that may be busy


class Machine:
    """Clocks that a test turns, in place of the system's."""

    def __init__(self, monkeypatch):
        self.wall = self.cpu = 0.0
        self.interruptions = self.runs = 0
        monkeypatch.setattr(module.time, "perf_counter", lambda: self.wall)
        monkeypatch.setattr(module.time, "thread_time", lambda: self.cpu)
        monkeypatch.setattr(module, "_interruptions", lambda: self.interruptions)

    def seconds(self, *runs, alone=True):
        """Time work of which each run takes wall and CPU time, and is interrupted."""

        def work():
            wall, cpu, interruptions = runs[self.runs % len(runs)]
            self.runs += 1
            self.wall += wall
            self.cpu += cpu
            self.interruptions += interruptions

        return fastest(work, lambda: None, alone=alone)


@pytest.fixture
def machine(monkeypatch):
    return Machine(monkeypatch)


def test_the_fastest_run_counts(machine):
    runs = [(wall, wall, 0) for wall in (0.003, 0.002, 0.004)]
    assert machine.seconds(*runs) == pytest.approx(0.002)


def test_one_undisturbed_run_is_better_than_the_cpu_time_of_others(machine):
    # In the second the rest of the time is sleep.
    found = machine.seconds((0.05, 0.01, 2), (0.03, 0.01, 0), (0.05, 0.01, 1))
    assert found == pytest.approx(0.03)


def test_where_all_runs_are_interrupted_cpu_time_counts(machine):
    found = machine.seconds((0.06, 0.021, 1), (0.06, 0.02, 1))
    assert found == pytest.approx(0.02)


def test_cpu_time_of_one_thread_says_nothing_of_several(machine):
    assert machine.seconds((0.03, 0.02, 1), alone=False) == pytest.approx(0.03)


@pytest.mark.parametrize(("wall", "runs"), [(30.0, 1), (0.001, module.RUNS)])
def test_long_work_is_run_once_and_short_work_a_few_times(machine, wall, runs):
    machine.seconds((wall, wall, 0))
    assert machine.runs == runs


def test_the_systems_own_clocks():
    seconds = fastest(lambda: sum(range(1000)), lambda: None, alone=True)
    assert 0 < seconds < module.TIME_LIMIT
