"""What is resident, as seen by a process that may not have loaded anything yet."""

import logging
import os
import signal
import sys
import types

import dask.dataframe as dd
import pandas as pd
import pytest
import torch
from distributed import Client

import dask_infer
from dask_infer.replica.residents import rows_here, unload_here


def test_a_process_that_is_importing_has_no_replicas_yet(monkeypatch):
    # Asked on a worker's event loop while a task imports the module for the first time.
    name = "dask_infer.replica.cache"
    monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    assert rows_here() == []
    unload_here(None)


@pytest.mark.parametrize(
    "ask",
    [dask_infer.replicas, dask_infer.why, lambda given: dask_infer.unload(None, given)],
)
def test_what_is_no_client_or_closed_is_refused(ask):
    with pytest.raises(TypeError, match="client= is DataFrame; pass a"):
        ask(dd.from_pandas(pd.DataFrame({"a": [1.0]}), npartitions=1))
    with Client(n_workers=0, processes=False, dashboard_address=None) as client:
        pass
    with pytest.raises(OSError, match="client= is closed"):
        ask(client)


def test_a_load_is_logged_with_what_it_took(caplog):
    frame = dd.from_pandas(pd.DataFrame({"a": [1.0, 2.0]}), npartitions=1)
    with caplog.at_level(logging.INFO, "dask_infer.replica"):
        model = torch.nn.Linear(1, 1)
        frame.infer.predict(model, columns=["a"]).compute(scheduler="sync")
        frame.infer.predict(model, columns=["a"]).compute(scheduler="sync")
    (line,) = [text for text in caplog.messages if " loaded in " in text]
    assert line.startswith('model "Linear" loaded in ')
    assert line.endswith("8 B on cpu of worker local, from the content store")


def dies_when_asked():
    """Replaces, on a worker, what lists and frees its replicas."""
    from dask_infer.replica import residents

    residents._cache = lambda: os.kill(os.getpid(), signal.SIGKILL)


def test_a_worker_that_is_lost_while_it_is_asked_has_no_replicas(client):
    one, other = client.scheduler_info()["workers"]
    frame = dd.from_pandas(pd.DataFrame({"a": [1.0, 2.0]}), npartitions=1)
    pred = frame.infer.predict(torch.nn.Linear(1, 1), columns=["a"])
    client.compute(pred, workers=[other]).result()
    client.run(dies_when_asked, workers=[one])
    table = dask_infer.replicas()
    assert set(table.worker) == {other}
    client.wait_for_workers(2, timeout=60)
    (one,) = set(client.scheduler_info()["workers"]) - {other}
    client.run(dies_when_asked, workers=[one])
    dask_infer.unload()
    client.wait_for_workers(2, timeout=60)
    assert dask_infer.replicas().empty
