"""Data-parallel inference on real clusters of processes and of threads."""

import asyncio
import os
import signal
import time
import warnings

import dask
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pytest
import torch
from dask.dataframe.utils import assert_eq
from distributed import Client, LocalCluster
from distributed.protocol.pickle import dumps

import dask_infer
from dask_infer.graph.tasks import run_partition

N = 400


@pytest.fixture
def pdf():
    rng = np.random.default_rng(3)
    return pd.DataFrame(rng.normal(size=(N, 2)).astype("float32"), columns=["a", "b"])


@pytest.fixture
def ddf(pdf):
    return dd.from_pandas(pdf, npartitions=8)


@pytest.fixture
def model():
    torch.manual_seed(7)
    return torch.nn.Sequential(
        torch.nn.Linear(2, 5), torch.nn.ReLU(), torch.nn.Linear(5, 1)
    )


@pytest.fixture
def expected(pdf, model):
    with torch.inference_mode():
        return model(torch.tensor(pdf.to_numpy(copy=True)))[:, 0].numpy()


def near(result, expected):
    np.testing.assert_allclose(np.asarray(result, "float64"), expected, atol=1e-5)


class CountsLoads:
    """Writes a line for every time it is built, with the process that did."""

    def __init__(self, log):
        time.sleep(0.3)
        with open(log, "a") as file:
            file.write(f"{os.getpid()}\n")

    def __call__(self, x):
        return x


def loads(log):
    return log.read_text().split() if log.exists() else []


def test_equals_the_model_by_hand(client, ddf, model, expected):
    near(ddf.infer.predict(model)["prediction"].compute(), expected)


def test_one_load_a_process_with_racing_threads(tmp_path, ddf, store):  # DI-02
    source = dask_infer.ModelSource.from_factory(CountsLoads, str(tmp_path / "log"))
    with Client(n_workers=1, threads_per_worker=4, dashboard_address=None) as client:
        pred = ddf.infer.predict(source, columns="a", meta="float32")
        pred.compute()
        pred.sum().compute()
        assert len(loads(tmp_path / "log")) == 1
        client.restart()
        pred.compute()
        assert len(loads(tmp_path / "log")) == 2


def test_graph_does_not_grow_with_the_model(client, ddf):  # DI-03
    sizes = {}
    for width in (10_000, 60_000_000):
        module = torch.nn.Linear(2, width, bias=False, dtype=torch.float32)
        head = torch.nn.Sequential(module, torch.nn.AdaptiveAvgPool1d(1))
        pred = ddf.infer.predict(head, keep=False)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            graph = pred.optimize().__dask_graph__()
        tasks = [len(dumps(task)) for task in graph.values()]
        assert max(tasks) < 100_000
        sizes[width] = sum(tasks)
        del module, head
    assert max(sizes.values()) < 1.1 * min(sizes.values())


def test_a_slow_load_does_not_block_the_event_loop(client, ddf):  # DI-16
    class Slow:
        def __init__(self):
            time.sleep(2)

        def __call__(self, x):
            return x

    future = client.compute(ddf.infer.predict(Slow, columns="a", meta="float32"))
    time.sleep(0.5)
    started = time.perf_counter()
    client.run(os.getpid)
    answered = time.perf_counter() - started
    assert not future.done() or answered < 1
    future.result()


def test_cpu_threads_in_spite_of_the_nanny(store, ddf):  # DI-17
    class Threads(torch.nn.Module):
        def forward(self, x):
            return x[:, 0] * 0 + torch.get_num_threads()

    with Client(n_workers=1, threads_per_worker=1, dashboard_address=None) as client:
        env = client.run(lambda: os.environ["OMP_NUM_THREADS"])
        assert set(env.values()) == {"1"}
        pred = ddf.infer.predict(Threads(), columns=["a", "b"], meta="float32")
        assert set(pred["prediction"].compute()) == {dask.system.CPU_COUNT}


def test_a_killed_worker_costs_nothing(client, ddf, model, expected, tmp_path):  # DI-20
    mark = tmp_path / "killed"

    def postprocess(output, frame):
        time.sleep(0.05)
        if frame.index[0] >= 200 and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return output

    pred = ddf.infer.predict(model, postprocess=postprocess)
    near(pred["prediction"].compute(), expected)
    assert mark.exists()


def test_computable_after_the_model_is_gone(client, ddf, model, expected):  # DI-21
    pred = ddf.infer.predict(model)
    del model
    near(pred["prediction"].compute(), expected)


def test_equal_weights_share_a_replica_also_across_clients(
    cluster, ddf, model
):  # SP-06
    import copy

    columns = ["model", "rows"]
    with Client(cluster) as one:
        dask_infer.unload(client=one)
        ddf.infer.predict(model).compute()
        before = dask_infer.replicas(one)
    with Client(cluster) as two:
        twin = copy.deepcopy(model)
        ddf.infer.predict(twin).compute()
        after = dask_infer.replicas(two)
        assert len(after) == len(before) <= 2
        assert after[columns].rows.sum() == before[columns].rows.sum() + N
        with torch.no_grad():
            twin[0].bias += 1
        ddf.infer.predict(twin).compute()
        assert len(dask_infer.replicas(two)) > len(after)


def test_replicas_and_unload(client, ddf, model):
    dask_infer.unload()
    assert len(dask_infer.replicas()) == 0
    ddf.infer.predict(model).compute()
    table = dask_infer.replicas()
    assert list(table.columns) == [
        "worker", "model", "device", "stage", "shard", "bytes", "rows", "idle",
    ]  # fmt: skip
    assert set(table.worker) <= set(client.scheduler_info()["workers"])
    assert set(table.model) == {"Sequential"}
    assert table.rows.sum() == N
    assert table.stage.isna().all()
    assert (table.bytes == sum(p.nbytes for p in model.parameters())).all()
    assert (table.idle >= 0).all()
    dask_infer.unload(model)
    assert len(dask_infer.replicas()) == 0
    ddf.infer.predict(model).compute()


def test_persist_parquet_and_collections_together(
    client, ddf, model, expected, tmp_path
):
    pred = ddf.infer.predict(model)
    kept = pred.persist()
    near(kept["prediction"].compute(), expected)
    pred.to_parquet(tmp_path / "out")
    near(pd.read_parquet(tmp_path / "out")["prediction"], expected)
    total, rows = dask.compute(pred["prediction"].sum(), pred)
    assert total == pytest.approx(expected.sum(), rel=1e-4)
    assert_eq(rows, pred)


def test_a_threaded_cluster(threaded_client, ddf, model, expected):
    near(ddf.infer.predict(model)["prediction"].compute(), expected)
    assert set(dask_infer.replicas().worker) == set(
        threaded_client.scheduler_info()["workers"]
    )


def test_processes_scheduler(ddf, model, expected):
    pred = ddf.infer.predict(model)["prediction"]
    near(pred.compute(scheduler="processes", num_workers=2), expected)


def test_an_asynchronous_client(cluster, ddf, model, expected):
    async def run():
        async with Client(cluster.scheduler_address, asynchronous=True) as client:
            pred = ddf.infer.predict(model)
            result = await client.compute(pred["prediction"])
            near(result, expected)
            assert len(await dask_infer.replicas(client)) >= 1
            await dask_infer.unload(model, client)
            assert "Sequential" not in set((await dask_infer.replicas(client)).model)

    asyncio.run(run())


def test_two_clients_on_one_cluster(cluster, ddf, model, expected):
    with Client(cluster) as one, Client(cluster, set_as_default=False) as two:
        pred = ddf.infer.predict(model)["prediction"]
        futures = [one.compute(pred), two.compute(pred + 0)]
        for future in futures:
            near(future.result(), expected)


def test_vectors_shuffle_merge_and_sort(client, ddf, pdf):
    class Embed(torch.nn.Module):
        def forward(self, x):
            return torch.stack([x[:, 0], x[:, 1], x.sum(dim=1)], dim=1)

    ddf = dd.from_pandas(pdf.assign(k=np.arange(N) % 10), npartitions=8)
    pred = ddf.infer.predict(Embed(), columns=["a", "b"], output="v")
    shuffled = pred.shuffle("k").compute().sort_index()
    near(shuffled["v"].infer.to_numpy()[:, 2], (pdf.a + pdf.b).to_numpy())
    names = dd.from_pandas(pd.DataFrame({"k": range(10), "n": list("abcdefghij")}), 2)
    merged = pred.merge(names, on="k").compute()
    near(merged["v"].infer.to_numpy()[:, 0], merged.a.to_numpy())
    indexed = pred.persist().set_index("a").compute()
    near(indexed["v"].infer.to_numpy()[:, 1], indexed.b.to_numpy())


def test_one_row_on_many_workers(client, pdf, model):  # SP-16
    one = dd.from_pandas(pdf.iloc[:1], npartitions=1)
    assert len(one.infer.predict(model).compute()) == 1


def test_a_model_too_large_for_the_worker_is_refused(store, pdf):
    with (
        LocalCluster(
            n_workers=1,
            threads_per_worker=1,
            memory_limit="600 MiB",
            dashboard_address=None,
        ) as cluster,
        Client(cluster),
    ):
        big = torch.nn.Linear(2, 40_000_000, bias=False)
        head = torch.nn.Sequential(big, torch.nn.AdaptiveAvgPool1d(1))
        pred = dd.from_pandas(pdf.iloc[:4], npartitions=1).infer.predict(head)
        with pytest.raises(dask_infer.ModelLoadError, match=r"memory.limit"):
            pred.compute()


def test_a_class_missing_on_the_worker_is_named(client, ddf, tmp_path, monkeypatch):
    (tmp_path / "only_here.py").write_text(
        "class Model:\n    def __call__(self, x):\n        return x\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    import only_here

    pred = ddf.infer.predict(only_here.Model, columns="a", meta="float32")
    with pytest.raises(dask_infer.ModelLoadError, match="only_here"):
        pred.compute()


def test_the_task_function_is_a_plain_function(pdf, model):
    pred = dd.from_pandas(pdf, npartitions=1).infer.predict(model)
    result = run_partition(pdf, pred.expr._job_bytes, ("a", "prediction"))
    assert list(result.columns) == ["a", "prediction"]


def test_a_device_that_is_missing_names_model_and_worker(client, ddf, model):
    pred = ddf.infer.predict(model, device="cuda:99")
    found = r'model "Sequential" on worker \S+127\.0\.0\.1\S+: device="cuda:99"'
    with pytest.raises(dask_infer.PlacementError, match=found):
        pred.compute()
