"""How the task of a partition takes part in a sweep, and leaves it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from dask_infer.replica.worker_place import Place
from dask_infer.run.runner import Abandoned
from dask_infer.run.sweep.open_sweep import open_sweep
from dask_infer.run.sweep.sweep_runner import SweepRunner
from dask_infer.spec import Job, UserCode


@contextlib.contextmanager
def sweep_runner(job: Job, code: UserCode, place: Place) -> Iterator[SweepRunner]:
    """Take part in the sweep of a job's model with the batches of one partition."""
    shared = open_sweep(job, place)
    with contextlib.ExitStack() as leases:
        runner = SweepRunner(job, code, place, shared, leases)
        shared.sweep.enter(runner, shared.activations())
        try:
            yield runner
        except Abandoned:
            from distributed import Reschedule

            # As of a `RemoteRunner`: the task may be wanted again.
            raise Reschedule from None
        finally:
            leases.close()
            shared.sweep.leave(runner)
            runner.release()
