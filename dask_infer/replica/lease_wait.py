"""A lease's wait for other threads: logged once, and ended by its timeout."""

from __future__ import annotations

import logging
import threading
import time

from dask_infer.errors import ModelLoadError
from dask_infer.replica.worker_place import Place
from dask_infer.spec import ModelSpec

logger = logging.getLogger(__name__)


class Wait:
    """The wait of one lease for other threads, up to its timeout."""

    def __init__(
        self,
        changed: threading.Condition,
        spec: ModelSpec,
        place: Place,
        timeout: float | None,
    ) -> None:
        self._changed = changed
        self._spec = spec
        self._place = place
        self._timeout = timeout
        self._deadline = None if timeout is None else time.monotonic() + timeout
        self._logged = False

    def __call__(self, awaited: str) -> None:
        """Wait until something changed; the lock is held by the caller."""
        if not self._logged:
            self._logged = True
            logger.info('model "%s" waits for %s', self._spec.name, awaited)
        if self._deadline is None:
            self._changed.wait()
            return
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise ModelLoadError(
                f'model "{self._spec.name}" waited {self._timeout:g} s on worker '
                f"{self._place.worker} for {awaited}: raise timeout= or "
                "infer.replica.memory-limit"
            )
        self._changed.wait(left)
