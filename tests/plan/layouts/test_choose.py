"""Which layout is taken for which model, cluster and rows."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dask_infer.plan.facts import BlockFacts, WorkerFacts, need
from dask_infer.plan.layouts.alternative import Alternative
from dask_infer.plan.layouts.choose import (
    TIE,
    alternatives,
    choose,
    nothing_fits,
    reason,
)
from dask_infer.plan.layouts.job_facts import PARTITION, START, room
from dask_infer.plan.layouts.local_layouts import data
from dask_infer.plan.layouts.shards import in_shards
from dask_infer.spec import Layout

from .jobs import CASES, GB, crew, layers, small


@pytest.mark.parametrize("case", CASES)
def test_table_of_cases(case):
    facts, expected = CASES[case]
    chosen = choose(alternatives(facts))
    assert (chosen and chosen.name) == expected


def kind_by_hand(facts):
    """Answer the questions of the decision tree in ``docs/layouts.md``."""
    rooms = [room(worker) for worker in facts.workers]
    if min(rooms) >= facts.whole:
        if data(facts).load > data(facts).run:
            return "stages"
        speeds = [worker.speed for worker in facts.workers]
        return "replicas" if max(speeds) > 10 * min(speeds) else "data"
    if max(rooms) >= facts.whole:
        return "replicas"
    if max(need([block]) for block in facts.blocks) > max(rooms):
        return "shards"
    waiting = facts.part * max(worker.threads for worker in facts.workers)
    reading = facts.loading(facts.nbytes, len(facts.hosts))
    computes = waiting * facts.row_seconds > reading
    return "sweep" if computes or sum(rooms) < facts.whole else "stages"


@pytest.mark.parametrize("case", [name for name, (_, kind) in CASES.items() if kind])
def test_the_decision_tree_of_the_docs_agrees(case):
    facts, expected = CASES[case]
    kind = "shards" if "shards=" in expected else expected.partition("=")[0]
    assert kind_by_hand(facts) == kind


def named(facts, name):
    return next(each for each in alternatives(facts) if each.name == name)


def test_70b_on_two_stages_of_80_gb_leaves_a_tenth_free():
    facts, _ = CASES["70B on eight GPUs of 80 GB"]
    two = named(facts, "stages=2")
    assert two.memory == 70 * GB + GB // 2
    assert two.room == 72 * GB
    full = replace(facts, workers=crew(8, 78))
    assert choose(alternatives(full)).name == "stages=4"


def test_what_refuses_a_layout_is_a_number():
    facts, _ = CASES["30 GB in one block on four workers of 16 GB"]
    found = {each.name: each.refused for each in alternatives(facts)}
    assert found["data"] == "needs 29.8 GiB on every worker; w0 has 10.1 GiB"
    assert "27.9 GiB" in found["sweep"] and "10.1 GiB" in found["sweep"]
    assert "27.9 GiB" in found["stages=auto"]


def test_a_block_larger_than_a_worker_is_not_cut_by_dividing_bytes():
    facts, _ = CASES["30 GB in one block on four workers of 16 GB"]
    assert all(a.refused for a in alternatives(facts) if a.kind in ("stages", "sweep"))


def test_data_uses_no_more_workers_than_partitions():
    facts = small(crew(16, 4), partitions=3, rows=300, store_rate=1e9)
    assert data(facts).workers == 3
    assert data(facts).run == pytest.approx(START + PARTITION + 0.1)
    facts = replace(facts, workers=crew(16, 4, a_host=1))
    assert data(facts).load == 3.0


def test_a_small_worker_among_large_ones_refuses_data():
    workers = (*crew(3, 4), WorkerFacts("little", GB // 2))
    refused = data(small(workers)).refused
    assert refused == "needs 953.7 MiB on every worker; little has 429.2 MiB"
    remote = named(small(workers), "replicas")
    assert (remote.replicas, remote.layout) == (3, Layout(replicas=3))


def test_shards_hold_whole_what_cannot_be_divided():
    facts, _ = CASES["30 GB in one block on four workers of 16 GB"]
    whole = [replace(block, divisible=0) for block in facts.blocks]
    refused = named(replace(facts, blocks=tuple(whole)), "shards=auto").refused
    assert refused == "it has no weights that shards could divide"
    whole[0] = replace(whole[0], divisible=15 * GB)
    refused = named(replace(facts, blocks=tuple(whole)), "shards=auto").refused
    assert "w0 + w1 + w2 + w3, has 10.1 GiB" in refused


def test_where_few_shards_do_not_fit_the_fewest_that_do_are_compared():
    facts, _ = CASES["20 GB that shards alone divide, on three workers of 9 GB"]
    many = replace(facts, workers=crew(40, 1))
    assert [a.name for a in alternatives(many) if a.kind == "shards"] == ["shards=23"]
    few = named(replace(facts, workers=crew(2, 9)), "shards=auto").refused
    assert few.startswith('block "h.0" needs 9.3 GiB') and "w0 + w1" in few


def test_what_only_shards_divide_is_in_no_stages_and_no_sweep():
    facts, _ = CASES["20 GB that shards alone divide, on three workers of 9 GB"]
    refused = {a.name: a.refused for a in alternatives(facts)}
    assert refused["stages=auto"] == refused["sweep"] == facts.uncut != ""


def test_times_that_jobs_measured_in_shards_are_taken():
    facts, _ = CASES["30 GB in one block on four workers of 16 GB"]
    measured = replace(facts, sharded_seconds={4: 0.5})
    # All workers hold the one replica, which takes 100,000 rows of half a second.
    assert named(measured, "shards=4").run == pytest.approx(50_000, rel=0.1)
    assert named(facts, "shards=4").run < 10_000


def test_exchanges_take_as_long_between_fast_workers():
    facts, _ = CASES["30 GB in one block on four workers of 16 GB"]
    fast = replace(facts, workers=crew(4, 12, a_host=1, speed=200.0))
    slow, quick = (named(each, "shards=4").run for each in (facts, fast))
    assert slow > quick > 0.5 * slow


def test_pinned_models_stay_on_workers_with_the_resource():
    workers = (*crew(1, 4), WorkerFacts("plain", 4 * GB, holds=0))
    facts = small(workers, pinned=True, resources=(("GPU", 1.0),))
    chosen = choose(alternatives(facts))
    assert (chosen.kind, chosen.layout, chosen.replicas) == ("replicas", Layout(), 1)
    assert chosen.resources == (("GPU", 1.0),)


def made(kind, total, workers=1):
    return Alternative(kind, Layout(), workers=workers, replicas=1, load=0.0, run=total)


@pytest.mark.parametrize(
    ("totals", "kind"),
    [
        ({"data": 104.0, "shards": 100.0}, "data"),
        ({"data": 106.0, "shards": 100.0}, "shards"),
        ({"stages": 100.0, "sweep": 105.0}, "sweep"),
        ({"replicas": 100.0, "data": 100.0, "sweep": 100.0}, "data"),
        ({"sweep": 100.0, "replicas": 101.0}, "replicas"),
    ],
)
def test_within_five_percent_the_simpler_is_taken(totals, kind):
    found = [made(each, total) for each, total in totals.items()]
    assert choose(found).kind == kind


def test_within_five_percent_fewer_stages_are_taken():
    found = [made("stages", 100.0, 8), made("stages", 103.0, 4)]
    assert choose(found).workers == 4


def test_the_reason_is_one_line_with_what_was_refused():
    facts, _ = CASES["70B on two GPUs of 24 GB"]
    found = alternatives(facts)
    line = reason(choose(found), found)
    assert "\n" not in line
    assert line.startswith("sweep: ") and "data refused (needs 130.9 GiB" in line


def test_where_nothing_fits_each_refusal_is_named():
    facts, _ = CASES["8 GB that cannot be cut, on workers of 4 GB"]
    message = str(nothing_fits("big", alternatives(facts)))
    assert "needs 7.5 GiB on every worker; w0 has 3.4 GiB" in message
    assert "no layers are visible" in message


def drawn_jobs():
    worker = st.tuples(st.none() | st.integers(1, 12), st.sampled_from((0.5, 1.0, 4.0)))
    workers = st.lists(worker, min_size=1, max_size=5).map(
        lambda rows: tuple(
            WorkerFacts(f"w{i}", memory, speed, f"h{i // 2}", threads=1 + i % 2)
            for i, (memory, speed) in enumerate(rows)
        )
    )
    share = st.sampled_from((0, 0.5, 1))
    block = st.tuples(st.integers(1, 12), st.sampled_from((0.1, 1.0)), share)
    chain = st.lists(block, min_size=0, max_size=5).map(
        lambda rows: tuple(
            BlockFacts(f"b{i}", size, time, divisible=int(part * size), exchanges=1)
            for i, (size, time, part) in enumerate(rows)
        )
    )
    return st.builds(
        lambda workers, blocks, uncut, rows, partitions, cores, pinned: small(
            workers,
            rows=rows,
            partitions=partitions,
            blocks=blocks[:1] if uncut else blocks,
            uncut="" if blocks and not uncut else "no layers",
            cores=cores,
            pinned=pinned,
            load_rate=2.0,
        ),
        workers, chain, st.booleans(), st.integers(0, 500), st.integers(1, 9),
        st.none() | st.integers(1, 3), st.booleans(),
    )  # fmt: skip


def fits_by_brute_force(facts, shards, least_stages):
    """Whether any cut into stages of so many shards fits any workers."""
    rooms = sorted(int(room(w)) if w.memory else GB for w in facts.workers)[::-1]
    blocks = in_shards(facts.blocks, shards)
    most = min(len(blocks), len(rooms) // shards)
    for stages in range(least_stages, most + 1):
        for inner in combinations(range(1, len(blocks)), stages - 1):
            bounds = pairwise((0, *inner, len(blocks)))
            needs = sorted((need(blocks[a:b]) for a, b in bounds), reverse=True)
            each = [n for n in needs for _ in range(shards)]
            if all(n <= r for n, r in zip(each, rooms, strict=False)):
                return True
    return False


@settings(max_examples=200, deadline=None)
@given(drawn_jobs())
def test_what_is_chosen_fits_and_no_other_is_much_faster(facts):
    facts = replace(facts, nbytes=sum(block.nbytes for block in facts.blocks) or 5)
    found = alternatives(facts)
    chosen = choose(found)
    able = [each for each in found if not each.refused]
    assert (chosen is None) == (not able)
    for each in able:
        assert each.memory <= each.room
        assert each.workers <= len(facts.workers)
        assert 0 <= each.total < float("inf")
        assert chosen.total <= each.total * (1 + TIE) * (1 + 1e-9)
    whole_fits = all(facts.whole <= room(worker) for worker in facts.workers)
    assert (not data(facts).refused) == (whole_fits and not facts.pinned)
    kinds = {each.kind for each in able}
    cuts = not facts.uncut and fits_by_brute_force(facts, 1, least_stages=2)
    assert ("stages" in kinds) == cuts
    divides = any(block.divisible for block in facts.blocks) and any(
        fits_by_brute_force(facts, shards, least_stages=1)
        for shards in range(2, len(facts.workers) + 1)
    )
    assert ("shards" in kinds) == divides


def test_every_number_of_stages_that_fits_is_compared():
    facts = small(crew(6, 0.6), blocks=layers(6, GB, 16e-3))
    found = [each.name for each in alternatives(facts) if each.kind == "stages"]
    assert found == ["stages=2", "stages=3", "stages=4", "stages=5", "stages=6"]
    # 1 GB in six blocks: three of them fit into 0.54 GB.
    assert not named(facts, "stages=2").refused
