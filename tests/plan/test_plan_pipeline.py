"""Layouts of pipelines, with their tables and reasons."""

from __future__ import annotations

from dask_infer.plan.facts import BlockFacts
from dask_infer.plan.plan_pipeline import plan_pipeline
from tests.plan.chains import chain, crew

MIB = 2**20


def layers(count, *, nbytes=MIB, seconds=0.01, cut=1024):
    return [
        BlockFacts(f"h.{i}", nbytes, seconds, cut, parameters=nbytes // 4)
        for i in range(count)
    ]


def test_auto_takes_the_fewest_stages():
    plan = plan_pipeline(layers(6), crew(*[3 * MIB] * 5), "auto")
    assert plan.bounds == (0, 3, 6)
    assert plan.reasons == (
        "2 stages: the fewest that fit 6.0 MiB of weights.",
        "Stage 0 is the slowest: 30.0 ms a microbatch; mean load 100%.",
    )


def test_a_number_of_stages():
    plan = plan_pipeline(layers(6), crew(*[None] * 6), 3)
    assert plan.bounds == (0, 2, 4, 6)
    assert plan.reasons[0] == "3 stages: as asked, for 6.0 MiB of weights."


def test_a_slow_message_is_named():
    blocks = chain([1, 1], cuts=[0, 80])
    plan = plan_pipeline(blocks, crew(None, None), 2)
    assert (
        plan.reasons[1]
        == "The message into stage 1 is the slowest: 10.00 s for 33.5 GiB."
    )


def test_one_stage_and_blocks_that_take_no_time():
    plan = plan_pipeline(chain([0.0, 0.0]), crew(None), 1)
    assert plan.bounds == (0, 2)
    assert plan.table().splitlines()[1].split()[-2:] == ["100%", "w0"]


def test_the_table_as_text():
    blocks = [*layers(3), BlockFacts("head", 2 * MIB, 0.004, 64, parameters=500_000)]
    plan = plan_pipeline(blocks, crew(None, None), 2)
    assert plan.table().splitlines() == [
        "stage  blocks     parameters    bytes  projected  of slowest  worker",
        "    0  h.0..h.1      524,288  2.0 MiB    20.0 ms        100%  w0",
        "    1  h.2..head     762,144  3.0 MiB    14.0 ms         70%  w1",
        *plan.reasons,
    ]
