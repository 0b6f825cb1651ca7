"""`python -m tests.oracle.collect 5000`: every disagreement, the smallest of a kind.

Unlike the tests it goes on after the first; kinds differ in model and message.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import tempfile
import time
from collections import Counter
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")


def main() -> None:
    """Draw, check, and print what disagrees."""
    parser = argparse.ArgumentParser()
    parser.add_argument("draws", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--models", nargs="*", default=[])
    options = parser.parse_args()

    from tests.oracle.compare import check
    from tests.oracle.drive import drive, settled
    from tests.oracle.requests import WEIGHTED, Draw

    found: dict[Any, tuple[int, str]] = {}
    counts: Counter[Any] = Counter()
    seconds: Counter[str] = Counter()
    drawn: Counter[str] = Counter()
    chosen = options.models or [""]
    names = tuple(n for n in WEIGHTED if any(part in n for part in chosen))

    def collect(draw: Draw) -> None:
        start = time.process_time()
        try:
            check(draw)
        except Exception as error:
            text = f"{type(error).__name__}: {error}"
            kind = draw.entry, re.sub(r"[\d.\[\]]+", "#", text.split("\n")[0])[:60]
            counts[kind] += 1
            size = len(repr(draw))
            if kind not in found or size < found[kind][0]:
                found[kind] = size, text
        seconds[draw.entry] += time.process_time() - start
        drawn[draw.entry] += 1

    with tempfile.TemporaryDirectory() as store, settled(store):
        start = time.process_time()
        drive(options.seed, options.draws, collect, names)
    for kind, (_, text) in sorted(found.items()):
        print(f"== {kind[0]}: {counts[kind]} of {drawn[kind[0]]}\n{text[:1500]}\n")
    total = sum(drawn.values())
    each = 1000 * (time.process_time() - start) / max(total, 1)
    print(f"{total} draws, {each:.1f} ms each, {len(found)} kinds, seed {options.seed}")
    slow = [(n, f"{1000 * s / drawn[n]:.0f} ms") for n, s in seconds.most_common(6)]
    print("slowest:", slow, file=sys.stderr)


if __name__ == "__main__":
    main()
