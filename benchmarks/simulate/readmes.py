"""Predictions of figures in other READMEs that nothing was calibrated on."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from benchmarks.simulate import calibration, recurrence, tasks
from benchmarks.simulate.calibration import JOB, READY, SCHEDULER, WORKER
from benchmarks.simulate.recurrence import Loss, Pipeline

#: From the last output of a partition until the next one is fed.
BETWEEN = SCHEDULER.value + WORKER.value
#: Repetitions of what is drawn at random.
DRAWS = 20


@dataclass(frozen=True)
class Prediction:
    """One figure, predicted and measured, in the same unit."""

    benchmark: str
    case: str
    predicted: float
    measured: float

    @property
    def error(self) -> float:
        """By how much of the measured it is too large."""
        return self.predicted / self.measured - 1


def jitter(stages: int, seconds: float, share: float) -> Callable[[], Sequence[float]]:
    """Return stage times as benchmarks/window sleeps."""
    draw = random.Random(0)
    return lambda: [seconds * max(0.1, draw.gauss(1, share)) for _ in range(stages)]


def window_rate(
    stages: int, window: int, microbatches: int, sleep: float, slow: float = 1.0
) -> float:
    """Microbatches a second of benchmarks/window.

    Parameters
    ----------
    slow
        How many times longer all CPU takes than on an idle machine.
    """
    pipeline = Pipeline(
        jitter(stages, sleep, 0.3), stages, window, slow * calibration.hop(8e6),
        feeders=stages, between=slow * BETWEEN,
    )  # fmt: skip
    parts = [8] * (microbatches // 8)
    seconds = [recurrence.run(pipeline, parts).seconds for _ in range(DRAWS)]
    return microbatches / (sum(seconds) / DRAWS + slow * JOB.value)


def recovery(
    stage: int | None, microbatches: int, sleep: float, slow: float = 1.0
) -> tuple[float, float]:
    """Seconds of benchmarks/recovery, and forwards that ran again a stage."""
    parts = [8] * (microbatches // 8)
    pipeline = Pipeline(
        lambda: [sleep] * 3, 3, 6, slow * calibration.hop(0), between=slow * BETWEEN
    )
    if stage is not None:
        # Killed when the last stage has run half of them, in the middle of a partition.
        half = recurrence.run(pipeline, parts[: len(parts) // 2]).seconds
        loss = Loss(stage, half + 4 * sleep, slow * READY.value)
        pipeline = replace(pipeline, loss=loss)
    found = recurrence.run(pipeline, parts)
    return found.seconds + slow * JOB.value, sum(found.again) / 3


def predictions() -> Iterator[Prediction]:
    """Go through the READMEs."""
    for stages, measured in ((4, 3.55), (8, 3.74)):
        pipeline = Pipeline(
            lambda stages=stages: [0.05] * stages, stages, 2 * stages,  # type: ignore[misc]
            calibration.hop(0), feeders=stages, between=BETWEEN,
        )  # fmt: skip
        seconds = recurrence.run(pipeline, [8] * 8).seconds + JOB.value
        yield Prediction("depth", f"{stages} stages, seconds", seconds, measured)
    rates = {
        2: {1: 8.9, 2: 15.8, 4: 17.1, 6: 18.1, 8: 17.8},
        4: {1: 4.4, 4: 14.4, 8: 16.4, 12: 16.8, 16: 16.5},
    }
    for stages, by_window in rates.items():
        for window, measured in by_window.items():
            rate = window_rate(stages, window, 64, 0.05)
            case = f"{stages} stages, window {window}, microbatches/s"
            yield Prediction("window", case, rate, measured)
    for stage, measured in {None: 4.51, 0: 4.64, 1: 4.66, 2: 4.59}.items():
        seconds, _ = recovery(stage, 160, 0.02)
        case = "undisturbed" if stage is None else f"stage {stage} killed"
        yield Prediction("recovery", f"{case}, seconds", seconds, measured)
    cases = {
        (1, 8): 2.27, (3, 4): 3.26, (4, 1): 1.15, (4, 4): 4.17, (8, 1): 2.35,
        (16, 2): 8.70,
    }  # fmt: skip
    for (partitions, each), measured in cases.items():
        pipeline = Pipeline(
            lambda: [1.0], 1, 2, calibration.hop(0), 4, 4, between=BETWEEN
        )
        found = recurrence.run(pipeline, [each] * partitions).seconds + JOB.value
        case = f"{partitions} partitions of {each}, seconds"
        yield Prediction("replicas_elsewhere", case, found, measured)
    # The time of a whole model from data-parallel, beside it in the same rounds.
    for workers, whole, measured in ((2, 4.04, 4.31), (3, 4.09, 4.29)):
        each = whole / 24 * min(2, workers) / workers * max(1, workers / 2)
        pipeline = Pipeline(
            lambda stages=workers, each=each: [each] * stages, workers, 2 * workers,  # type: ignore[misc]
            calibration.hop(800e3), feeders=workers, between=BETWEEN,
        )  # fmt: skip
        seconds = recurrence.run(pipeline, [1] * 24).seconds
        case = f"{workers} stages, 2 cores, seconds"
        yield Prediction("pipeline", case, seconds, measured)
    for workers, partitions, measured in (
        (2, 10, 3.986),
        (2, 1000, 1.885),
        (4, 1000, 1.624),
    ):
        cluster = tasks.Cluster(workers, SCHEDULER.value, WORKER.value, cores=2)
        found = 1e3 * tasks.run(cluster, partitions, lambda _: [0.0]) / partitions
        case = f"{partitions} partitions, {workers} workers, ms each"
        yield Prediction("noop", case, found, measured)
