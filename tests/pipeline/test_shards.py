"""Layers whose weights several workers share, as a user runs them."""

import contextlib
import os
import signal
import time

import dask
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pytest
import torch
from distributed import Client

import dask_infer
from dask_infer import Layout, OutputError, PartitionError, PlacementError

from .conftest import groups, near, wait_until, workers

MICROBATCH = 13
ALONE, STAGES = Layout(shards=2, replicas=1), Layout(stages=2, shards=2)


class Meets(torch.nn.Module):
    """Does something on one shard, once a forward."""

    def __init__(self, shard):
        super().__init__()
        self.shard = shard

    def forward(self, x):
        if type(x) is torch.Tensor:  # and no fake one, as shapes are found with
            from dask_infer.model.split.shards.collective import current_collective

            shard = None
            with contextlib.suppress(RuntimeError):  # where blocks are timed
                shard = current_collective().shard
            if shard == self.shard:
                self.act(x)
        return x * 1


class Fails(Meets):
    def act(self, x):
        if bool((x.abs() > 1e3).any()):
            raise RuntimeError("a value is beyond the sensor's range")


class Kills(Meets):
    """Kills its process at the n-th forward, once."""

    def __init__(self, shard, log, at):
        super().__init__(shard)
        self.log, self.at = str(log), at

    def act(self, x):
        if len(x) != MICROBATCH:  # as it is timed
            return
        with open(self.log, "a") as file:
            file.write("x")
        if os.path.getsize(self.log) == self.at:
            os.kill(os.getpid(), signal.SIGKILL)


class Gate(Meets):
    """Stops at each forward until a file is there."""

    def __init__(self, shard, log, gate):
        super().__init__(shard)
        self.log, self.gate = str(log), str(gate)

    def act(self, x):
        if len(x) == MICROBATCH:  # and is not timed
            open(self.log, "w").close()
            while not os.path.exists(self.gate):
                time.sleep(0.01)


def with_part(part):
    """Layers that are divided, before and after `part`."""
    torch.manual_seed(3)
    return torch.nn.Sequential(
        torch.nn.Linear(2, 9), part, torch.nn.Linear(9, 8), torch.nn.Tanh(),
        torch.nn.Linear(8, 1),
    )  # fmt: skip


def by_hand(model, pdf):
    plain = torch.nn.Sequential(*(m for m in model if not isinstance(m, Meets)))
    with torch.inference_mode():
        return plain(torch.tensor(pdf.to_numpy(copy=True)))[:, 0].numpy()


@pytest.mark.parametrize(
    "layout", [ALONE, STAGES, Layout(shards=3), Layout(stages=1, shards=4), "tensor"]
)
def test_shards_give_what_the_whole_model_gives(
    client, ddf, pdf, model, expected, layout
):
    near(ddf.infer.predict(model, parallel=layout).compute(), expected, pdf)


def test_a_shard_holds_its_part_on_a_worker_of_its_own(client, ddf, pdf, model):
    ddf.infer.predict(model, parallel=STAGES).compute()
    table = dask_infer.replicas().sort_values(["stage", "shard"])
    assert table.stage.tolist() == [0, 0, 1, 1]
    assert table["shard"].tolist() == [0, 1, 0, 1]
    assert table.worker.is_unique
    assert (table.rows == len(pdf)).all()
    whole = sum(p.nbytes for p in model.parameters())
    assert table["bytes"].max() < 0.3 * whole


def test_replicas_of_shards_share_the_rows(client, ddf, pdf, model, expected):
    layout = Layout(shards=2, replicas=2, microbatch=7)
    near(ddf.infer.predict(model, parallel=layout).compute(), expected, pdf)
    table = dask_infer.replicas()
    assert table["shard"].tolist().count(0) == 2
    assert (table.rows > 0).all()
    assert table.rows.sum() == 2 * len(pdf)


@pytest.mark.parametrize("microbatch", [1, 7, 31])
def test_exact_row_counts_whatever_the_microbatch(
    client, ddf, pdf, model, expected, microbatch
):
    layout = Layout(stages=2, shards=2, microbatch=microbatch)
    near(ddf.infer.predict(model, parallel=layout).compute(), expected, pdf)


@pytest.mark.parametrize("rows", [0, 1, 2])
def test_few_rows_and_none_at_all(client, pdf, model, expected, rows):
    few = dd.from_pandas(pdf.iloc[:rows], npartitions=1)
    near(
        few.infer.predict(model, parallel=ALONE).compute(),
        expected[:rows],
        pdf.iloc[:rows],
    )


def test_empty_partitions_among_full_ones(client, ddf, pdf, model, expected):
    positive = ddf[ddf.a > 2.5].infer.predict(model, parallel=STAGES)
    keep = (pdf.a > 2.5).to_numpy()
    near(positive.compute(), expected[keep], pdf[keep])


def test_shards_hold_their_resource(client, ddf, pdf, model, expected):
    pred = ddf.infer.predict(model, parallel=ALONE, resources={"GPU": 1})
    near(pred.compute(), expected, pdf)
    held = client.scheduler_info()["workers"]
    assert all(held[w]["resources"].get("GPU") for w in dask_infer.replicas().worker)


def test_two_jobs_at_once(client, ddf, pdf, model, expected):
    other = with_part(torch.nn.Identity())
    a = ddf.infer.predict(model, parallel=ALONE)
    b = ddf.infer.predict(other, parallel=ALONE)
    for result, right in zip(
        dask.compute(a, b), (expected, by_hand(other, pdf)), strict=True
    ):
        near(result, right, pdf)


def test_bfloat16_and_postprocess(client, ddf, pdf, model, expected):
    def shifted(output, frame, inputs):
        return output[:, 0].float() + inputs[:, 0].float()

    pred = ddf.infer.predict(
        model, parallel=ALONE, dtype="bfloat16", postprocess=shifted
    )
    result = pred.compute()["prediction"] - pdf.a
    np.testing.assert_allclose(result, expected, atol=0.05)


def test_batches_whose_rows_influence_each_other_stay_whole(client, ddf, pdf):
    class Centred(torch.nn.Module):
        def forward(self, x):
            return x - x.mean(0)

    torch.manual_seed(4)
    model = torch.nn.Sequential(
        torch.nn.Linear(2, 9), Centred(), torch.nn.Linear(9, 8), torch.nn.Linear(8, 1)
    )
    pred = ddf.infer.predict(model, parallel=STAGES, row_wise=False, batch_size=1000)
    parts = [by_hand(model, part.compute()) for part in ddf.partitions]
    near(pred.compute(), np.concatenate(parts), pdf)


@pytest.mark.parametrize("layout", [ALONE, STAGES])
def test_an_exported_program_in_shards(
    client, ddf, pdf, model, expected, tmp_path, layout
):
    batch = torch.export.Dim("batch", min=1, max=4096)
    program = torch.export.export(
        model, (torch.zeros(4, 2),), dynamic_shapes=({0: batch},)
    )
    torch.export.save(program, tmp_path / "model.pt2")
    pred = ddf.infer.predict(tmp_path / "model.pt2", parallel=layout)
    near(pred.compute(), expected, pdf)
    whole = sum(p.nbytes for p in model.parameters())
    assert dask_infer.replicas()["bytes"].max() < whole / layout.stages * 0.62


class Branches(torch.nn.Module):
    """Nothing that can be cut, and weights that are read past their layers."""

    def __init__(self):
        super().__init__()
        self.first, self.second = torch.nn.Linear(2, 8), torch.nn.Linear(8, 8)
        self.register_buffer("shift", torch.ones(8), persistent=False)

    def forward(self, x):
        x = self.first(x) + self.shift
        if x.sum() > 0:
            x = x + 1
        return (self.second(x) @ self.second.weight.T).sum(1) * self.first.weight[0, 1]


def test_a_model_that_cannot_be_cut_runs_in_shards(client, pdf):
    torch.manual_seed(2)
    model = Branches()
    few = pdf.iloc[:20]
    pred = dd.from_pandas(few, npartitions=1).infer.predict(
        model, parallel=Layout(shards=2, microbatch=20), batch_size=20, meta="float32"
    )
    with torch.inference_mode():
        right = model(torch.tensor(few.to_numpy(copy=True))).numpy()
    near(pred.compute(), right, few)
    with pytest.raises(PlacementError, match="cannot be split"):
        dd.from_pandas(few, npartitions=1).infer.predict(
            model, parallel=STAGES, meta="float32"
        )


# --- when something fails --------------------------------------------------------


@pytest.mark.parametrize("shard", [0, 1])
def test_an_error_of_one_shard_comes_back_once(client, pdf, shard):
    bad = pdf.copy()
    bad.loc[bad.index[100], "a"] = 1e6
    model = with_part(Fails(shard))
    pred = dd.from_pandas(bad, npartitions=4).infer.predict(model, parallel=ALONE)
    with pytest.raises(PartitionError, match="beyond the sensor's range") as raised:
        pred.compute()
    causes = str(raised.value.__cause__.__cause__)
    assert f"stage 0 of 1, shard {shard} on worker" in causes


class KeepsWeightsSmall(torch.nn.Module):
    """Changes a weight that is divided, each time it runs."""

    def __init__(self):
        super().__init__()
        self.inner = torch.nn.Linear(2, 8)
        self.outer = torch.nn.Linear(8, 1)

    def forward(self, x):
        self.inner.weight.data.clamp_(-0.1, 0.1)
        return self.outer(self.inner(x))


@pytest.mark.parametrize("on_error", ["raise", "null"])
def test_a_model_that_changes_divided_weights_is_refused(client, ddf, on_error):
    pred = ddf.infer.predict(KeepsWeightsSmall(), parallel=ALONE, on_error=on_error)
    changes = r'"KeepsWeightsSmall": .*changes in place a weight.*use parallel='
    with pytest.raises(OutputError, match=changes):
        pred.compute()


@pytest.mark.parametrize("shard", [0, 1])
def test_bad_rows_are_isolated_and_the_next_microbatch_is_right(client, pdf, shard):
    bad = pdf.copy()
    bad.loc[bad.index[[7, 100, 101]], "a"] = 1e6
    model = with_part(Fails(shard))
    pred = dd.from_pandas(bad, npartitions=3).infer.predict(
        model, parallel=Layout(stages=2, shards=2), on_error="quarantine"
    )
    result = pred.compute()
    failed = result.infer_error.notna().to_numpy()
    assert np.flatnonzero(failed).tolist() == [7, 100, 101]
    good = by_hand(model, pdf)[~failed]
    np.testing.assert_allclose(result["prediction"][~failed], good, atol=1e-5)


@pytest.mark.parametrize("shard", [0, 1])
@pytest.mark.parametrize(
    "layout", [{"stages": 1}, pytest.param({"stages": 2}, marks=pytest.mark.slow)]
)
def test_a_shard_is_killed(client, pdf, log, shard, layout):
    model = with_part(Kills(shard, log, 9))
    spread = Layout(shards=2, microbatch=MICROBATCH, replicas=1, **layout)
    few = pdf.iloc[: MICROBATCH * 26]
    ddf = dd.from_pandas(few, npartitions=13, sort=False)
    near(ddf.infer.predict(model, parallel=spread).compute(), by_hand(model, few), few)
    assert os.path.getsize(log) > 26  # the one that killed was run again
    assert groups(client)[0]["instances"][0]["epoch"] >= 1


@pytest.mark.slow
@pytest.mark.parametrize("shard", [0, 1])
def test_a_shard_is_stopped(store, pdf, log, tmp_path, shard):
    model = with_part(Gate(0, log, tmp_path / "open"))
    ddf = dd.from_pandas(pdf, npartitions=20, sort=False)
    layout = Layout(shards=2, microbatch=MICROBATCH, replicas=1)
    with (
        workers(*[{"STAGE": 1}] * 3, {}) as cluster,
        Client(cluster) as client,
        dask.config.set(
            {"infer.stage.stall-timeout": "20 s", "infer.placement.grace": "60 s"}
        ),
    ):
        pred = ddf.infer.predict(model, parallel=layout, resources={"STAGE": 1})
        held = client.scheduler_info()["workers"].items()
        plain = [address for address, worker in held if not worker["resources"]]
        future = client.compute(pred, workers=plain)  # not where it is stopped
        wait_until(log.exists, 240)
        table = dask_infer.replicas()
        frozen = table.worker[table["shard"] == shard].item()
        pid = client.run(os.getpid, workers=[frozen])[frozen]
        os.kill(pid, signal.SIGSTOP)
        (tmp_path / "open").touch()
        try:
            wait_until(lambda: groups(client)[0]["instances"][0]["epoch"] >= 1, 120)
            near(future.result(timeout=240), by_hand(model, pdf), pdf)
        finally:
            os.kill(pid, signal.SIGCONT)
        (instance,) = groups(client)[0]["instances"]
        assert frozen not in instance["stages"][0]


def test_a_shard_that_hangs_takes_a_fresh_replica(client, pdf, tmp_path):
    mark = str(tmp_path / "hung")

    class Hangs(Meets):
        def act(self, x):
            if bool((x.abs() > 1e3).any()) and not os.path.exists(mark):
                open(mark, "w").close()
                time.sleep(4)

    bad = pdf.copy()
    bad.iloc[50] = 1e6
    model = with_part(Hangs(1))
    pred = dd.from_pandas(bad, npartitions=6, sort=False).infer.predict(
        model, parallel=Layout(shards=2, microbatch=20), timeout="0.8 s",
        on_error="null",
    )  # fmt: skip
    result = pred.compute()
    good = result["prediction"].notna().to_numpy()
    np.testing.assert_allclose(
        result["prediction"][good], by_hand(model, bad)[good], rtol=1e-4, atol=1e-3
    )
    assert good.sum() >= len(pdf) - 20


def test_too_few_workers_are_named(client, ddf, model):
    with dask.config.set({"infer.placement.grace": "0.5 s"}):
        pred = ddf.infer.predict(model, parallel=Layout(shards=5))
    with pytest.raises(PlacementError, match=r"5 shards need 5 workers.* fewer shards"):
        pred.compute()


def test_what_cannot_be_divided_is_refused_by_name(ddf, model):
    class Doubles(torch.nn.Linear):
        def twice(self, x):
            return 2 * self(x)

    with pytest.raises(ValueError, match=r"method='twice'.*shards"):
        ddf.infer.predict(Doubles(2, 1), parallel=ALONE, method="twice")
    with pytest.raises(ValueError, match=r'dtype="int8": shards'):
        ddf.infer.predict(model, parallel=ALONE, dtype="int8")
    with pytest.raises(PlacementError, match="no weights that shards could divide"):
        ddf.infer.predict(torch.nn.LayerNorm(2), parallel=ALONE)
    with pytest.raises(PlacementError, match="no layers that can be distinguished"):
        ddf.infer.predict(lambda x: x, parallel=ALONE, meta="float32")


@pytest.mark.slow
def test_a_block_larger_than_a_workers_limit(store, tmp_path):
    import safetensors.torch

    words, width = 1_000_000, 80  # 305 MiB, and models may take 240 MiB of 900

    def build():
        return torch.nn.Sequential(
            torch.nn.Embedding(words, width),
            torch.nn.Flatten(),
            torch.nn.Linear(width, 1),
        )

    torch.manual_seed(0)
    model, file = build(), tmp_path / "model.safetensors"
    safetensors.torch.save_file(model.state_dict(), file)
    source = dask_infer.ModelSource.from_factory(build, weights=str(file))
    ids = np.random.default_rng(0).integers(0, words, 200)
    with torch.inference_mode():
        right = model(torch.from_numpy(ids)[:, None])[:, 0].numpy()
    del model
    frame = pd.DataFrame({"ids": ids})
    ddf = dd.from_pandas(frame, npartitions=4)
    with (
        workers({}, {}, memory_limit="900 MiB") as cluster,
        Client(cluster),
        dask.config.set({"infer.placement.grace": "1 s"}),
    ):
        whole = ddf.ids.infer.predict(source, parallel=Layout(stages=2))
        with pytest.raises(PlacementError, match="cannot be cut"):
            whole.compute()
        pred = ddf.ids.infer.predict(source, parallel="tensor")
        near(pred.compute().to_frame("prediction"), right, frame)
        assert dask_infer.replicas()["bytes"].max() < 200 * 2**20
