"""Layer groups on workers of their own, as a user runs them."""

import asyncio

import dask
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pytest
import torch
from distributed import Client

import dask_infer
from dask_infer import Layout, PartitionError, PlacementError

from .conftest import groups, held, near, wait_until, workers


@pytest.mark.parametrize("stages", [2, 3, 4])
def test_stages_give_what_the_whole_model_gives(
    client, ddf, pdf, model, expected, stages
):
    pred = ddf.infer.predict(model, parallel=Layout(stages=stages))
    near(pred.compute(), expected, pdf)


@pytest.mark.parametrize("microbatch", [1, 7, 31, 1000])
def test_exact_row_counts_whatever_the_microbatch(
    client, ddf, pdf, model, expected, microbatch
):  # PP-7
    layout = Layout(stages=2, microbatch=microbatch)
    near(ddf.infer.predict(model, parallel=layout).compute(), expected, pdf)


@pytest.mark.parametrize("rows", [0, 1, 2, 13])
def test_fewer_rows_than_stages_and_none_at_all(
    client, pdf, model, expected, rows
):  # PP-7
    few = dd.from_pandas(pdf.iloc[:rows], npartitions=1)
    pred = few.infer.predict(model, parallel=Layout(stages=3, microbatch=4))
    near(pred.compute(), expected[:rows], pdf.iloc[:rows])


def test_empty_partitions_among_full_ones(client, ddf, pdf, model, expected):  # DI-11
    positive = ddf[ddf.a > 2.5].infer.predict(model, parallel=Layout(stages=2))
    keep = (pdf.a > 2.5).to_numpy()
    near(positive.compute(), expected[keep], pdf[keep])


def test_the_users_cuts_are_taken(client, ddf, pdf, model, expected):  # PP-4
    layout = Layout(stages=["1", "6"])
    near(ddf.infer.predict(model, parallel=layout).compute(), expected, pdf)
    table = dask_infer.replicas().sort_values("stage")
    sizes = [
        sum(p.nbytes for p in model[a:b].parameters())
        for a, b in [(0, 1), (1, 6), (6, None)]
    ]
    assert table["bytes"].tolist() == sizes


def test_unknown_cuts_and_too_many_stages_are_refused(ddf, model):  # PP-4
    with pytest.raises(ValueError, match="no module"):
        ddf.infer.predict(model, parallel=Layout(stages=["layer.7"]))
    with pytest.raises(ValueError, match="at most stages="):
        ddf.infer.predict(model, parallel=Layout(stages=50))


def test_a_stage_holds_its_own_tensors_on_a_worker_of_its_own(
    client, ddf, model
):  # PP-12
    ddf.infer.predict(model, parallel=Layout(stages=3)).compute()
    table = dask_infer.replicas()
    assert sorted(table.stage) == [0, 1, 2]
    assert table.worker.is_unique
    assert table["bytes"].sum() == sum(p.nbytes for p in model.parameters())
    assert (table.rows == len(ddf)).all()
    assert (table.idle > 0).all()


def test_stages_hold_their_resource_until_they_go(
    client, ddf, pdf, model, expected
):  # PP-12
    pred = ddf.infer.predict(model, parallel=Layout(stages=2), resources={"GPU": 1})
    near(pred.compute(), expected, pdf)
    gpus = {
        address
        for address, worker in client.scheduler_info()["workers"].items()
        if worker["resources"].get("GPU")
    }
    assert set(dask_infer.replicas().worker) == gpus
    waits = client.submit(int, 7, resources={"GPU": 1}, pure=False)
    plain = client.map(lambda x: x + 1, range(20), pure=False)
    assert client.gather(plain) == list(range(1, 21))
    assert not waits.done()
    dask_infer.unload(model)
    assert waits.result(timeout=20) == 7


def test_the_users_module_is_untouched(client, ddf, model):  # PP-5
    import pickle

    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    ddf.infer.predict(model, parallel=Layout(stages=2)).compute()
    assert model.training
    after = pickle.loads(pickle.dumps(model)).state_dict()
    assert all(after[name].equal(value) for name, value in before.items())


def test_the_window_is_reached_and_never_exceeded(client, pdf, model):  # PP-9
    many = dd.from_pandas(pd.concat([pdf] * 5), npartitions=8, sort=False)
    layout = Layout(stages=2, microbatch=5, window=3)
    many.infer.predict(model, parallel=layout).compute()

    def peaks(dask_worker):
        from dask_infer.pipeline.worker.microbatch_comms import comms_of

        return [
            stage.window.peak
            for stage in comms_of(dask_worker).stages.values()
            if not stage.index
        ]

    assert [peak for found in client.run(peaks).values() for peak in found] == [3, 3]


def test_bfloat16_crosses_workers(client, ddf, pdf, model, expected):  # PP-11
    pred = ddf.infer.predict(model, parallel=Layout(stages=2), dtype="bfloat16")
    result = pred.compute()
    assert result["prediction"].dtype == "float32"
    np.testing.assert_allclose(result["prediction"], expected, atol=0.05)


def broken(above):
    """A model whose middle refuses some values."""
    return torch.nn.Sequential(
        torch.nn.Linear(2, 4), Fails(above), torch.nn.Linear(4, 1)
    )


class Fails(torch.nn.Module):
    def __init__(self, above):
        super().__init__()
        self.above = above

    def forward(self, x):
        real = type(x) is torch.Tensor  # and no fake one, as shapes are found with
        if real and bool((x.abs() > self.above).any()):
            raise RuntimeError("a value is beyond the sensor's range")
        return x


def test_an_exception_in_a_stage_comes_back_once_with_stage_and_rows(
    client, pdf
):  # PP-11
    bad = pdf.copy()
    bad.loc[bad.index[100], "a"] = 1e6
    pred = dd.from_pandas(bad, npartitions=4).infer.predict(
        broken(1e3), parallel=Layout(stages=["1", "2"])
    )
    with pytest.raises(PartitionError, match="beyond the sensor's range") as raised:
        pred.compute()
    assert "rows" in str(raised.value)
    causes = str(raised.value.__cause__.__cause__)
    assert "stage 1 of 3 on worker" in causes
    assert "in forward" in causes


def test_bad_rows_are_isolated_through_a_pipeline(client, pdf):  # BM-17
    bad = pdf.copy()
    bad.loc[bad.index[[7, 100, 101]], "a"] = 1e6
    model = broken(1e3)
    pred = dd.from_pandas(bad, npartitions=3).infer.predict(
        model, parallel=Layout(stages=["1", "2"]), on_error="quarantine"
    )
    result = pred.compute()
    failed = result.infer_error.notna().to_numpy()
    assert np.flatnonzero(failed).tolist() == [7, 100, 101]
    assert result.infer_error[failed].str.contains("beyond the sensor's range").all()
    with torch.inference_mode():
        good = model(torch.tensor(pdf[~failed].to_numpy(copy=True)))[:, 0]
    np.testing.assert_allclose(result["prediction"][~failed], good, atol=1e-5)


def test_postprocess_sees_the_rows_and_the_inputs(client, ddf, pdf, model, expected):
    def shifted(output, frame, inputs):
        assert len(output) == len(frame) == len(inputs)
        return output[:, 0] + inputs[:, 0]

    pred = ddf.infer.predict(model, parallel=Layout(stages=2), postprocess=shifted)
    near(pred.compute(), expected + pdf.a.to_numpy(), pdf)


def test_two_pipelines_work_side_by_side(client, ddf, pdf, model, expected):  # PP-13
    other = torch.nn.Sequential(
        torch.nn.Linear(2, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1)
    )
    one = Layout(stages=2, replicas=1)
    a = ddf.infer.predict(model, parallel=one)
    b = ddf.infer.predict(other, parallel=one)
    first, second = dask.compute(a, b)
    near(first, expected, pdf)
    with torch.inference_mode():
        near(second, other(torch.tensor(pdf.to_numpy(copy=True)))[:, 0].numpy(), pdf)
    table = dask_infer.replicas()
    assert len(table) == 4 and table.worker.is_unique


def test_replicas_of_a_pipeline_share_the_rows(client, ddf, pdf, model, expected):
    pred = ddf.infer.predict(model, parallel=Layout(stages=2, microbatch=5))
    near(pred.compute(), expected, pdf)
    table = dask_infer.replicas()
    assert len(table) == 4 and table.worker.is_unique
    assert table[table.stage == 0].rows.sum() == len(pdf)


def test_an_idle_pipeline_makes_room(client, ddf, pdf, model, expected):  # PP-13
    other = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 1))
    ddf.infer.predict(other, parallel=Layout(stages=2), resources={"GPU": 1}).compute()
    pred = ddf.infer.predict(model, parallel=Layout(stages=2), resources={"GPU": 1})
    near(pred.compute(), expected, pdf)
    assert len(groups(client)) == 1


def test_too_few_workers_are_refused_by_name_and_number(client, ddf, model):  # PP-13
    with dask.config.set({"infer.placement.grace": "0.3 s"}):
        pred = ddf.infer.predict(model, parallel=Layout(stages=3), resources={"GPU": 1})
        lacking = ddf.infer.predict(model, resources={"TPU": 2})
    with pytest.raises(PlacementError, match=r"3 .*2 "):
        pred.compute()
    with pytest.raises(PlacementError, match=r"TPU=2.*--resources"):
        lacking.compute()
    wait_until(lambda: not held(client))


def test_computes_clients_and_a_persist_share_a_group(
    four, client, ddf, pdf, model, expected
):  # PP-15
    pred = ddf.infer.predict(model, parallel=Layout(stages=2))
    kept = pred.persist()
    near(pred.compute(), expected, pdf)
    with Client(four, set_as_default=False) as other:
        again = other.compute(
            ddf.infer.predict(model, parallel=Layout(stages=2)).b.sum()
        )
        near(other.compute(pred).result(), expected, pdf)
        again.result()
    near(kept.compute(), expected, pdf)
    assert len(groups(client)) == 1


def test_a_group_outlives_the_client_that_started_it(
    four, client, ddf, pdf, model, expected
):  # PP-15
    with Client(four, set_as_default=False) as first:
        pred = ddf.infer.predict(model, parallel=Layout(stages=2))
        near(first.compute(pred).result(), expected, pdf)
    (before,) = groups(client)
    near(ddf.infer.predict(model, parallel=Layout(stages=2)).compute(), expected, pdf)
    (after,) = groups(client)
    assert after["instances"] == before["instances"]


def test_idle_stages_are_let_go(client, ddf, model):
    with dask.config.set({"infer.stage.idle-timeout": "0.2 s"}):
        ddf.infer.predict(model, parallel=Layout(stages=2)).compute()
    wait_until(lambda: not groups(client) and not held(client))
    wait_until(lambda: not len(dask_infer.replicas()))


def test_cancelling_leaves_nothing_behind(client, pdf):  # PP-15
    class Slow(torch.nn.Module):
        def forward(self, x):
            import time

            time.sleep(0.05)
            return x

    slow = torch.nn.Sequential(torch.nn.Linear(2, 4), Slow(), torch.nn.Linear(4, 1))
    ddf = dd.from_pandas(pdf, npartitions=40)
    with dask.config.set({"infer.stage.idle-timeout": "0.2 s"}):
        layout = Layout(stages=["1", "2"], microbatch=2)
        future = client.compute(ddf.infer.predict(slow, parallel=layout))
    wait_until(lambda: len(dask_infer.replicas()) and dask_infer.replicas().rows.sum())
    future.cancel()
    del future
    wait_until(lambda: not groups(client) and not held(client))


def test_a_restart_leaves_nothing_behind(client, ddf, pdf, model, expected):  # PP-15
    pred = ddf.infer.predict(model, parallel=Layout(stages=2))
    pred.compute()
    client.restart()
    assert not groups(client) and not held(client)
    near(pred.compute(), expected, pdf)


def test_only_some_workers_have_the_resource(
    client, ddf, pdf, model, expected
):  # PP-16
    pred = ddf.infer.predict(model, resources={"GPU": 1}, batch_size=16)
    near(pred.compute(), expected, pdf)
    table = dask_infer.replicas()
    gpus = client.run_on_scheduler(
        lambda dask_scheduler: [
            w.address for w in dask_scheduler.workers.values() if w.resources
        ]
    )
    assert set(table.worker) == set(gpus)
    assert table.rows.sum() == len(pdf)
    assert table.stage.isna().all()


def test_estimators_and_functions_live_elsewhere_too(client, ddf, pdf):  # PP-16
    def double(x):
        return {"twice": x * 2, "name": [f"row {v:.1f}" for v in x]}

    meta = {"twice": "float32", "name": "string"}
    pred = ddf.infer.predict(double, columns="a", resources={"GPU": 1}, meta=meta)
    result = pred.compute()
    np.testing.assert_allclose(result.twice, pdf.a * 2)
    assert result.name.tolist() == [f"row {v:.1f}" for v in pdf.a]


def test_an_asynchronous_client(four, ddf, pdf, model, expected):
    async def run():
        async with Client(four.scheduler_address, asynchronous=True) as client:
            pred = ddf.infer.predict(model, parallel=Layout(stages=2))
            near(await client.compute(pred), expected, pdf)
            assert len(await dask_infer.replicas(client)) == 4
            await dask_infer.unload(model, client)

    asyncio.run(run())


def test_a_cluster_of_threads(ddf, pdf, model, expected):
    with Client(
        processes=False, n_workers=3, threads_per_worker=1, dashboard_address=":0"
    ):
        pred = ddf.infer.predict(model, parallel=Layout(stages=3, microbatch=9))
        near(pred.compute(), expected, pdf)


@pytest.mark.parametrize("scheduler", ["sync", "threads"])
def test_other_schedulers_say_what_is_missing(ddf, model, scheduler):
    pred = ddf.infer.predict(model, parallel=Layout(stages=2))
    with pytest.raises(PlacementError, match="distributed client"):
        pred.compute(scheduler=scheduler)


@pytest.mark.parametrize("rows", [1_000, pytest.param(10_000, marks=pytest.mark.slow)])
def test_thousands_of_tiny_microbatches(client, model, rows):
    pdf = pd.DataFrame(
        np.random.default_rng(1).normal(size=(rows, 2)).astype("f4"),
        columns=["a", "b"],
    )
    pred = dd.from_pandas(pdf, npartitions=10).infer.predict(
        model, parallel=Layout(stages=2, microbatch=1)
    )
    with torch.inference_mode():
        expected = model(torch.tensor(pdf.to_numpy(copy=True)))[:, 0].numpy()
    near(pred.compute(), expected, pdf)


def build_large():
    layers = [torch.nn.Linear(2048, 2048, bias=False) for _ in range(68)]
    return torch.nn.Sequential(*layers, torch.nn.Linear(2048, 1))


def test_a_model_larger_than_any_worker(store, tmp_path):  # AC
    from safetensors.torch import save_model

    weights, limit = tmp_path / "weights.safetensors", 2**30
    torch.manual_seed(0)
    whole = build_large()
    save_model(whole, weights)
    size = sum(p.nbytes for p in whole.parameters())
    assert size > limit
    random = np.random.default_rng(0)
    x = list(random.normal(size=(12, 2048)).astype("f4"))
    with torch.inference_mode():
        expected = whole(torch.tensor(np.stack(x)))[:, 0].numpy()
    del whole
    source = dask_infer.ModelSource.from_factory(build_large, weights=weights)
    with dask.config.set({"dataframe.convert-string": False}):
        ddf = dd.from_pandas(pd.DataFrame({"x": x}), npartitions=3)
    shapes = {"x": (2048,)}
    with workers(*[{}] * 5, memory_limit=limit) as cluster, Client(cluster):
        pred = ddf.infer.predict(
            source, columns="x", shapes=shapes, parallel="pipeline"
        )
        result = pred.compute()
        np.testing.assert_allclose(result["prediction"], expected, rtol=1e-3, atol=1e-6)
        table = dask_infer.replicas()
    assert len(table) == 4
    assert table["bytes"].max() < limit / 3
