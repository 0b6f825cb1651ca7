"""What a sweep costs over the undivided model, and beside accelerate's offloading."""

from __future__ import annotations

import argparse
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import measure, peers
from benchmarks.sweep.model import forget, write

HERE = Path(__file__).parent
HEADER = (
    "rows | page cache | contender | seconds | range | CPU s | added MiB | "
    "over max(read, compute)"
)
ROWS = (32, 128, 256, 1000)
OURS, PEERS = ("whole", "sweep"), ("cpu_offload", "disk_offload")


def read(files: list[Path]) -> float:
    """Seconds that it takes to read all weights once, from disk."""

    def once() -> None:
        buffer = bytearray(8 * 2**20)
        for file in files:
            with file.open("rb", buffering=0) as data:
                while data.readinto(buffer):
                    pass

    forget(files)
    return measure.timed(once)[0]


def contend(
    name: str, layers: int, folder: Path, rows: int, cache: str
) -> dict[str, Any]:
    """Run one contender in a process of its own."""
    arguments = [name, str(layers), str(folder), str(rows), cache]
    if name in OURS:
        command = [sys.executable, "-m", "benchmarks.sweep.ours", *arguments]
    else:
        command = [str(peers.interpreter()), str(HERE / "offload.py"), *arguments]
    return measure.run(command, OMP_NUM_THREADS="1")


def compare(
    rows: int, cache: str, folder: Path, options: argparse.Namespace
) -> list[list[Any]]:
    """Lines of the table for one number of rows and one state of the page cache."""
    names = [*OURS, *(PEERS if peers.interpreter().exists() else ())]
    calls = {
        name: partial(contend, name, options.layers, folder, rows, cache)
        for name in names
        if not (cache == "cold" and name in ("whole", "cpu_offload"))
    }
    compute = partial(contend, "whole", options.layers, folder, rows, "warm")
    files = list(folder.glob("*.safetensors"))
    calls |= {"compute": compute, "read": partial(read, files)}
    answers = measure.interleave(calls, options.rounds)
    computes = [answer["seconds"] for answer in answers.pop("compute")]
    reads = answers.pop("read") if cache == "cold" else [0.0]
    answers.pop("read", None)
    bound = max(measure.median(reads), measure.median(computes))
    sums = {round(a["sum"] / 10) for each in answers.values() for a in each}
    assert len(sums) == 1, sums
    lines = []
    for name, each in answers.items():
        seconds = [answer["seconds"] for answer in each]
        cpu = measure.median([answer["cpu"] for answer in each])
        mib = measure.median([answer["mib"] for answer in each])
        middle = measure.median(seconds)
        figures = [f"{middle:.2f}", measure.spread(seconds), f"{cpu:.2f}"]
        lines.append(
            [rows, cache, name, *figures, f"{mib:.0f}", f"{middle / bound:.2f}"]
        )
    note = f"compute {measure.median(computes):.2f}, read {measure.median(reads):.2f}"
    print(f"{rows} rows, {cache}: {note}", *lines, sep="\n", file=sys.stderr)
    return lines


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", nargs="+", type=int, default=ROWS)
    parser.add_argument("--cache", nargs="+", default=["warm", "cold"])
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    measure.DATA.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=measure.DATA) as place, measure.fresh_store():
        folder = Path(place)
        write(options.layers, folder)
        lines = [
            line
            for rows in options.rows
            for cache in options.cache
            for line in compare(rows, cache, folder, options)
        ]
    print(measure.machine(), measure.table(HEADER.split(" | "), lines), sep="\n\n")


if __name__ == "__main__":
    main()
