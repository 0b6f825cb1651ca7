"""Jobs predicted: those of other benchmarks, live ones, and some on large clusters."""

from __future__ import annotations

import argparse
import os
from typing import Any

from benchmarks import measure
from benchmarks.simulate.calibration import FIGURES
from benchmarks.simulate.live import Live, live
from benchmarks.simulate.readmes import Prediction, predictions
from benchmarks.simulate.scale import SIZES_HEADER, limits, sizes

LIVE_HEADER = (
    "kind | case | measured | predicted, idle | error | CPU takes times | "
    "predicted, so busy | error"
)
HEADER = ["benchmark", "case", "predicted", "measured", "error", "within 20 %"]


def line(found: Prediction) -> list[Any]:
    """One line of a table of predictions."""
    return [
        found.benchmark, found.case, f"{found.predicted:.2f}", f"{found.measured:.2f}",
        f"{found.error:+.0%}", "yes" if abs(found.error) <= 0.2 else "**no**",
    ]  # fmt: skip


def live_line(found: Live) -> list[Any]:
    """One line of the table of live runs."""
    idle, busy, slow = found
    return [
        idle.benchmark, idle.case, f"{idle.measured:.2f}",
        f"{idle.predicted:.2f}", f"{idle.error:+.0%}", f"{slow:.1f}",
        f"{busy.predicted:.2f}", f"{busy.error:+.0%}",
    ]  # fmt: skip


def main() -> None:
    """Predict, run, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=10**9)
    parser.add_argument("--workers", type=int, default=1000)
    parser.add_argument("--hosts", type=int, default=125)
    parser.add_argument("--row-us", type=float, default=20.0)
    parser.add_argument(
        "--partitions", nargs="+", type=int,
        default=[500, 1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000],
    )  # fmt: skip
    parser.add_argument(
        "--live", nargs="*", default=["tasks", "window", "loss"], help="jobs that run"
    )
    options = parser.parse_args()
    calibrated = [
        [each.what, f"{each.value:g} {each.unit}", each.source] for each in FIGURES
    ]
    print("Calibration\n")
    print(measure.table(["what", "value", "from"], calibrated))
    print("\nAgainst the READMEs\n")
    print(measure.table(HEADER, [line(found) for found in predictions()]))
    row = options.row_us * 1e-6
    print(f"\n{options.rows:,} rows of {options.row_us:g} us on {options.workers:,}\n")
    table = list(sizes(options.rows, options.workers, row, options.partitions))
    print(measure.table(SIZES_HEADER.split(" | "), table), "\n")
    print(*limits(options.workers, options.hosts, row), sep="\n")
    if options.live:
        load = ", ".join(f"{each:.1f}" for each in os.getloadavg())
        print(f"\nLive, load {load}: {measure.machine()}\n")
        runs = [live_line(found) for found in live(options)]
        print(measure.table(LIVE_HEADER.split(" | "), runs))


if __name__ == "__main__":
    main()
