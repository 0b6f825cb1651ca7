"""What a sweep costs over the undivided model, and beside accelerate's offloading."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import measure, peers
from benchmarks.sweep.limited import limited
from benchmarks.sweep.model import write

HERE = Path(__file__).parent
HEADER = (
    "rows | memory | contender | seconds | range | CPU s | added MiB | "
    "over max(read, compute)"
)
ROWS = (32, 128, 256, 1000)
OURS, PEERS = ("whole", "sweep"), ("cpu_offload", "disk_offload")


def forget(folder: Path) -> None:
    """Drop files from the page cache: they count where they are read again."""
    os.sync()
    for file in folder.rglob("*.*"):
        handle = os.open(file, os.O_RDONLY)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(handle)


def read(folder: Path) -> float:
    """Seconds that it takes to read all weights once, from disk."""

    def once() -> None:
        buffer = bytearray(8 * 2**20)
        for file in folder.glob("*.safetensors"):
            with file.open("rb", buffering=0) as data:
                while data.readinto(buffer):
                    pass

    forget(folder)
    return measure.timed(once)[0]


def contend(
    name: str, layers: int, folder: Path, rows: int, mib: int = 0
) -> dict[str, Any]:
    """Run one contender in a process of its own, which may get so much memory."""
    arguments = [name, str(layers), str(folder), str(rows)]
    if name in OURS:
        command = [sys.executable, "-m", "benchmarks.sweep.ours", *arguments]
    else:
        command = [str(peers.interpreter()), str(HERE / "offload.py"), *arguments]
    settings = {"OMP_NUM_THREADS": "1"}
    if mib:
        forget(folder)
        # Else accelerate's free memory stays with the process, which is killed.
        settings["MALLOC_MMAP_THRESHOLD_"] = str(2**20)
    with limited(mib * 2**20) as prefix:
        return measure.run([*prefix, *command], **settings)


def compare(
    rows: int, mib: int, folder: Path, options: argparse.Namespace
) -> list[list[Any]]:
    """Lines of the table for one number of rows and one limit of memory."""
    names = [*OURS, *(PEERS if peers.interpreter().exists() else ())]
    calls = {
        name: partial(contend, name, options.layers, folder, rows, mib)
        for name in names
    }
    compute = partial(contend, "whole", options.layers, folder, rows)
    calls |= {"compute": compute, "read": partial(read, folder)}
    answers = measure.interleave(calls, options.rounds)
    computes = [answer["seconds"] for answer in answers.pop("compute")]
    reads = answers.pop("read")
    if not mib:
        reads = [0.0]
    bound = max(measure.median(reads), measure.median(computes))
    sums = {round(a["sum"] / 10) for each in answers.values() for a in each}
    assert len(sums) == 1, sums
    lines = []
    for name, each in answers.items():
        seconds = [answer["seconds"] for answer in each]
        cpu = measure.median([answer["cpu"] for answer in each])
        added = measure.median([answer["mib"] for answer in each])
        middle = measure.median(seconds)
        figures = [f"{middle:.2f}", measure.spread(seconds), f"{cpu:.2f}"]
        memory = f"{mib} MiB" if mib else "not limited"
        lines.append(
            [rows, memory, name, *figures, f"{added:.0f}", f"{middle / bound:.2f}"]
        )
    note = f"compute {measure.median(computes):.2f}, read {measure.median(reads):.2f}"
    print(f"{rows} rows, {mib} MiB: {note}", *lines, sep="\n", file=sys.stderr)
    return lines


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", nargs="+", type=int, default=ROWS)
    # 0: no limit
    parser.add_argument("--memory-mib", nargs="+", type=int, default=[0, 1024])
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    measure.DATA.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=measure.DATA) as place, measure.fresh_store():
        folder = Path(place)
        write(options.layers, folder)
        if peers.interpreter().exists():
            contend("disk_offload", options.layers, folder, 1)  # writes its files
        lines = [
            line
            for rows in options.rows
            for mib in options.memory_mib
            for line in compare(rows, mib, folder, options)
        ]
    print(measure.machine(), measure.table(HEADER.split(" | "), lines), sep="\n\n")


if __name__ == "__main__":
    main()
