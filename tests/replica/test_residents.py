"""What is resident, told by a process that may not have loaded anything yet."""

import sys
import types

from dask_infer.replica.residents import rows_here, unload_here


def test_a_process_that_is_importing_has_no_replicas_yet(monkeypatch):
    # Asked on a worker's event loop while a task imports the module for the first time.
    name = "dask_infer.replica.cache"
    monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    assert rows_here() == []
    unload_here(None)
