"""Who uses a group: clients that come and go, graphs that need little of it."""

import threading

import dask.dataframe as dd
import numpy as np
import pandas as pd
import pytest
import torch
from distributed import Client, LocalCluster

import dask_infer
from dask_infer import Layout

from ..conftest import QUIET
from .conftest import groups, held, near, wait_until
from .test_bugs import by_hand, slow

CUTS = ["1", "2"]


def served():
    table = dask_infer.replicas()
    return table.rows.sum() if len(table) else 0


def test_two_clients_at_once_have_a_pipeline_each(four, client, ddf, pdf):  # PP-13
    # A spare replica that gave way was taken for one that failed.
    models = [slow(0.002), torch.nn.Sequential(*list(slow(0.002))[::2])]
    cuts, results = [["1"], ["1"]], [None, None]

    def work(number):
        with Client(four, set_as_default=False) as own:
            layout = Layout(stages=cuts[number], microbatch=9)
            pred = ddf.infer.predict(models[number], parallel=layout)
            results[number] = own.compute(pred).result()

    threads = [threading.Thread(target=work, args=(n,)) for n in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for model, result in zip(models, results, strict=True):
        near(result, by_hand(model, pdf), pdf)


def test_the_client_that_started_a_group_leaves_midway(four, client, pdf):  # PP-15
    model = slow(0.01)
    ddf = dd.from_pandas(pdf, npartitions=20, sort=False)
    pred = ddf.infer.predict(model, parallel=Layout(stages=CUTS, microbatch=5))
    with Client(four, set_as_default=False) as first:
        started = first.compute(pred)
        wait_until(served)
        (before,) = groups(client)
        assert not started.done()
        other = client.compute(pred.a.sum() + pred["prediction"].sum())
    expected = pdf.a.sum() + by_hand(model, pdf).sum()
    assert other.result() == pytest.approx(expected, abs=1e-2)
    (after,) = groups(client)
    assert after["instances"] == before["instances"]


def test_a_compute_while_a_persist_of_the_same_pipeline_runs(client, pdf):  # PP-15
    model = slow(0.01)
    ddf = dd.from_pandas(pdf, npartitions=20, sort=False)
    layout = Layout(stages=CUTS, microbatch=5)
    kept = ddf.infer.predict(model, parallel=layout).persist()
    wait_until(served)
    shifted = ddf.assign(a=ddf.a + 1).infer.predict(model, parallel=layout)
    moved = pdf.assign(a=pdf.a + 1)
    near(shifted.compute(), by_hand(model, moved), moved)
    near(kept.compute(), by_hand(model, pdf), pdf)
    assert len(groups(client)) == 1


def test_a_prediction_that_is_not_read_makes_no_group_request(client, ddf, pdf, model):
    pred = ddf.infer.predict(model, parallel=Layout(stages=2))
    assert len(pred) == len(pdf)
    assert pred.a.sum().compute() == pytest.approx(pdf.a.sum(), rel=1e-4)
    assert pred.index.compute().equals(pdf.index)
    assert not groups(client)


def test_head_and_filters_send_only_the_rows_they_need(
    client, ddf, pdf, model, expected
):  # DI-19
    pred = ddf.infer.predict(model, parallel=Layout(stages=2, replicas=1))
    near(pred.head(3), expected[:3], pdf.iloc[:3])
    assert set(dask_infer.replicas().rows) == {3}
    keep = (pdf.a > 1).to_numpy()
    near(pred[pred.a > 1].compute(), expected[keep], pdf[keep])
    assert set(dask_infer.replicas().rows) == {3 + keep.sum()}


def test_what_is_written_is_what_is_computed(
    client, ddf, pdf, model, expected, tmp_path
):
    pred = ddf.infer.predict(model, parallel=Layout(stages=2))
    pred.to_parquet(tmp_path / "out")
    near(pd.read_parquet(tmp_path / "out").sort_index(), expected, pdf)


def test_batches_whose_rows_influence_each_other_stay_whole(client, ddf, pdf):
    class Centred(torch.nn.Module):
        def forward(self, x):
            return x - x.mean(0)

    model = torch.nn.Sequential(Centred(), torch.nn.Linear(2, 1))
    pred = ddf.infer.predict(
        model, parallel=Layout(stages=["1"]), row_wise=False, batch_size=1000
    )
    parts = [by_hand(model, part.compute()) for part in ddf.partitions]
    near(pred.compute(), np.concatenate(parts), pdf)


def test_tied_weights_are_held_by_the_stages_that_use_them(client, ddf, pdf):  # PP-3
    layer = torch.nn.Linear(2, 2)
    model = torch.nn.Sequential(layer, torch.nn.Tanh(), layer, torch.nn.Linear(2, 1))
    pred = ddf.infer.predict(model, parallel=Layout(stages=["1", "3"]))
    near(pred.compute(), by_hand(model, pdf), pdf)


def test_an_exported_program_in_stages(client, ddf, pdf, model, expected, tmp_path):
    batch = torch.export.Dim("batch", min=1, max=4096)
    program = torch.export.export(
        model, (torch.zeros(4, 2),), dynamic_shapes=({0: batch},)
    )
    torch.export.save(program, tmp_path / "model.pt2")
    pred = ddf.infer.predict(tmp_path / "model.pt2", parallel=Layout(stages=2))
    near(pred.compute(), expected, pdf)


@pytest.mark.parametrize("options", [{}, {"microbatch": 2}])
def test_texts_through_the_stages_of_a_real_model(client, minilm, options):  # PP-8
    texts = [f"{'word ' * (1 + n % 9)}number {n}" for n in range(23)]
    ddf = dd.from_pandas(pd.DataFrame({"text": texts}), npartitions=3)
    call = {"columns": "text", "output": "vector"}
    whole = ddf.infer.predict(str(minilm), **call).compute(scheduler="sync")
    layout = Layout(stages=2, replicas=1, **options)
    pred = ddf.infer.predict(str(minilm), parallel=layout, **call).compute()
    np.testing.assert_allclose(
        pred.vector.infer.to_numpy(), whole.vector.infer.to_numpy(), atol=1e-5
    )
    assert len(dask_infer.replicas()) == 2


def test_adaptive_scaling_down_leaves_stages_where_they_are(
    store, pdf, model, expected
):
    ddf = dd.from_pandas(pdf, npartitions=30, sort=False)
    layout = Layout(stages=2, replicas=1, microbatch=4)
    with (
        LocalCluster(n_workers=4, threads_per_worker=1, **QUIET) as cluster,
        Client(cluster) as client,
    ):
        pred = ddf.infer.predict(model, parallel=layout)
        near(pred.compute(), expected, pdf)
        (before,) = groups(client)
        cluster.adapt(minimum=0, maximum=4, interval="100 ms", wait_count=1)
        wait_until(lambda: len(client.scheduler_info()["workers"]) == 2)
        near(pred.compute(), expected, pdf)
        (after,) = groups(client)
        assert after["instances"] == before["instances"]
        dask_infer.unload()
        wait_until(lambda: not held(client))
