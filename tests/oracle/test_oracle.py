"""Values equal those of each row alone, whatever the partitions, sizes and schedulers.

`ORACLE_SEED` chooses the draws (printed with every failure, so that a run is repeated
by it), `ORACLE_CHUNKS` how many thousand are drawn: two in `make test`. `make slow`
draws 94,000 others in two processes beside each other, or as many thousand as
`ORACLE_SLOW` says, and 10,000 on a cluster of processes. Unless a seed is given, draws
are the same each time, so that a change is judged by itself.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from distributed import Client

from tests.oracle.catalogue import CATALOGUE, ROOMS
from tests.oracle.compare import Disagreement, check
from tests.oracle.drive import drive, settled
from tests.oracle.frames import Column, Frame
from tests.oracle.requests import Draw, Run

SEED = int(os.environ.get("ORACLE_SEED", "0"))
CHUNKS = int(os.environ.get("ORACLE_CHUNKS", "2"))
CHUNK = 1000
SLOW = int(os.environ.get("ORACLE_SLOW", "94"))
CLUSTER, PROCESSES = 10, 2


#: Seeds of the slow tests begin after those of the fast one.
AFTER = SEED + CHUNKS


def run(
    first: int, store: Path | None, compute: Callable[..., Any] | None = None
) -> None:
    """Check a thousand draws of a seed."""
    print(f"seed {first}: repeat by ORACLE_SEED={first} ORACLE_CHUNKS=1")
    with settled(store and str(store)):
        drive(first, CHUNK, lambda draw: check(draw, compute, None if store else 1))


@pytest.mark.timeout(600)
@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_each_row_is_as_alone(chunk: int, tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    run(SEED + chunk, tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(5400)
def test_more_draws() -> None:
    each = SLOW // PROCESSES
    command = [sys.executable, "-m", "pytest", "-q", "-x", __file__, "-m", "not slow"]
    started = [
        subprocess.Popen(
            [*command, "-k", "alone"],
            env=os.environ
            | {
                "ORACLE_SEED": str(AFTER + place * each),
                "ORACLE_CHUNKS": str(each),
                "OMP_NUM_THREADS": "1",
            },
            stdout=subprocess.PIPE,
            text=True,
        )
        for place in range(PROCESSES)
    ]
    outputs = [process.communicate()[0] for process in started]
    assert not any(process.returncode for process in started), "\n".join(outputs)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_draws_on_a_cluster(client: Client) -> None:
    client.run(os.environ.update, OMP_NUM_THREADS="1")
    for chunk in range(CLUSTER):
        run(AFTER + SLOW + chunk, None, on_the_cluster)


def on_the_cluster(collection: Any, scheduler: str) -> Any:
    """Compute by the client, whatever scheduler was drawn."""
    return collection.compute()


def test_the_catalogue_has_sixty_models() -> None:
    assert len(CATALOGUE) == sum(len(room.ENTRIES) for room in ROOMS) >= 60


def test_a_wrong_value_is_found() -> None:
    columns = {name: Column("float", "float64", (1.0, 2.0)) for name in "ab"}
    draw = Draw(
        "total",
        Frame(columns, rows=2),
        (("a", "b"),),
        {"columns": ["a", "b"], "meta": "float64"},
        {"": "prediction"},
        (Run((1, 1), "auto", "raise", "sync"),),
    )
    check(draw)
    with pytest.raises(Disagreement, match=r"row 1 .* got 4.5, expected 4.0"):
        check(draw, lambda collection, _: wrong(collection.compute(scheduler="sync")))


def wrong(frame: pd.DataFrame) -> pd.DataFrame:
    frame.iloc[1, -1] = 4.5
    return frame
