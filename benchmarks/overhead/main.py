"""Rows from parquet through a small model to parquet, by all contenders in one run."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from benchmarks import measure, peers
from benchmarks.overhead.data import write

HERE = Path(__file__).resolve().parent
LIMIT = "two_processes"
OURS = (LIMIT, "one_loop", "with_dask_infer", "map_partitions")
HEADER = (
    "contender | s | range | of the limit | M rows/s | s, ready | CPU s | files | "
    "versions"
)
PEERS = ("ray_data", "spark", "daft_cls")


def contender(name: str, data: Path, small: Path) -> dict[str, Any]:
    """Run one contender in a process of its own; its output stays for `check`."""
    python = peers.interpreter() if name in PEERS else sys.executable
    places = {"--data": data, "--small": small, "--out": output(name)}
    command = [str(python), str(HERE / "contenders" / f"{name}.py")]
    command += [str(part) for pair in places.items() for part in pair]
    ready = output(name).with_suffix(".ready")
    ready.parent.mkdir(parents=True, exist_ok=True)
    ready.write_text("")
    environment = _environment(str(python)) | {"BENCHMARK_READY": str(ready)}
    answer = measure.run(command, **environment)
    print(name, json.dumps(answer), file=sys.stderr, flush=True)
    return answer


def _environment(python: str) -> dict[str, str]:
    paths = [str(HERE / "contenders"), str(HERE.parent.parent)]
    return {
        "PYTHONPATH": ":".join(paths),
        "PYSPARK_PYTHON": python,
        "RAY_DEDUP_LOGS": "0",
        "DO_NOT_TRACK": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "DAFT_PROGRESS_BAR": "0",
    }


def output(name: str) -> Path:
    """Directory that a contender writes."""
    return measure.DATA / "overhead-out" / name


def check(name: str) -> None:
    """Raise unless a contender wrote the rows of the limit, in any order."""
    expected, seen = _written(LIMIT), _written(name)
    np.testing.assert_array_equal(seen[0], expected[0], err_msg=f"{name}: id")
    np.testing.assert_allclose(seen[1], expected[1], atol=1e-5, err_msg=name)
    assert seen[1].dtype == np.float32, f"{name}: predictions are {seen[1].dtype}"


def _written(name: str) -> tuple[np.ndarray, np.ndarray]:
    parts = sorted(output(name).rglob("*.parquet"))
    tables = [pq.ParquetFile(part).read(["id", "prediction"]) for part in parts]
    ids = np.concatenate([table["id"].to_numpy() for table in tables])
    values = np.concatenate([table["prediction"].to_numpy() for table in tables])
    order = np.argsort(ids, kind="stable")
    return ids[order], values[order]


def report(answers: dict[str, list[dict[str, Any]]], rows: int) -> str:
    """Markdown table, fastest first."""
    times = {name: [a["seconds"] for a in runs] for name, runs in answers.items()}
    limit = measure.median(times[LIMIT])
    lines = []
    for name in sorted(times, key=lambda name: measure.median(times[name])):
        middle = measure.median(times[name])
        versions = answers[name][0]["versions"]
        parts = len(list(output(name).rglob("*.parquet")))
        lines.append(
            [
                f"`{name}`",
                f"{middle:.2f}",
                measure.spread(times[name]),
                f"{middle / limit:.2f}",
                f"{rows / middle / 1e6:.2f}",
                _median(answers[name], "seconds_ready"),
                _median(answers[name], "cpu"),
                parts,
                ", ".join(f"{key} {value}" for key, value in versions.items()),
            ]
        )
    return measure.table(HEADER.split(" | "), lines)


def _median(runs: list[dict[str, Any]], key: str) -> str:
    return f"{measure.median([run[key] for run in runs]):.2f}"


def main() -> None:
    """Measure, check, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=4_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--only", nargs="+", default=[], help="names of contenders")
    arguments = parser.parse_args()
    measure.confine(arguments.cores)
    data = write(measure.DATA / f"overhead-{arguments.rows}", arguments.rows)
    small = write(measure.DATA / "overhead-small", 20_000, files=4)
    names = [LIMIT, *(n for n in arguments.only or (*OURS, *PEERS) if n != LIMIT)]
    calls: dict[str, Callable[[], dict[str, Any]]] = {
        name: partial(contender, name, data, small) for name in names
    }
    answers = measure.interleave(calls, arguments.rounds)
    for name in names:
        check(name)
    print(measure.machine(), report(answers, arguments.rows), sep="\n\n")
    shutil.rmtree(measure.DATA / "overhead-out")


if __name__ == "__main__":
    main()
