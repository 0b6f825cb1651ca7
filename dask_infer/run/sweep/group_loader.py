"""The layer groups of a sweep as they come and go, and the next one read ahead.

A group is loaded mapped, so loading it reads nothing yet. One thread loads the group
after the one that runs and touches its pages. It keeps no lease while it waits for its
turn: no thread holds memory while it waits for more.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Iterator, Sequence

import torch

from dask_infer.metrics.recorder import meter
from dask_infer.model.runtime.footprint import as_bytes, tensors_of
from dask_infer.replica.cache import Replica, cache
from dask_infer.replica.worker_place import Place
from dask_infer.spec import Job, StageLayers

logger = logging.getLogger(__name__)

#: Bytes of a page.
PAGE = 4096


class GroupLoader:
    """The groups of a job's model in this process.

    The first `kept` groups stay once they are loaded. `reads_ahead` says that there is
    room for two groups.
    """

    def __init__(
        self,
        job: Job,
        place: Place,
        parts: Sequence[StageLayers],
        kept: int,
        reads_ahead: bool,
    ) -> None:
        self.job, self.place, self.parts, self.kept = job, place, parts, kept
        self.reads_ahead = reads_ahead
        self._reader: threading.Thread | None = None
        self._reads = -1
        #: Groups that stay, once they were loaded.
        self._stayed: set[int] = set()
        self._closed = threading.Event()
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def lease(self, group: int) -> Iterator[Replica]:
        """Hold a group, which makes room afterwards unless it is one that stays."""
        with contextlib.ExitStack() as held:
            with meter("load"):
                with self._lock:
                    reader = self._reader if group == self._reads else None
                if reader is not None:
                    reader.join()
                replica = held.enter_context(self._lease(group))
            if group < self.kept:
                self._stayed.add(group)
            try:
                yield replica
            finally:
                # Others that hold it would have it beside a second copy.
                if group >= self.kept and replica.leases == 1:
                    cache.discard(replica)

    def read_ahead(self, group: int) -> None:
        """Read a group while another one runs, unless another one is read."""
        if group >= len(self.parts) or group in self._stayed or not self.reads_ahead:
            return
        with self._lock:
            if self._reader is not None and self._reader.is_alive():
                return
            self._closed.clear()
            self._reads = group
            name = "dask-infer-read-ahead"
            self._reader = threading.Thread(
                target=self._read, args=(group,), name=name, daemon=True
            )
            self._reader.start()

    def close(self) -> None:
        """End the reading."""
        self._closed.set()
        with self._lock:
            reader, self._reader, self._reads = self._reader, None, -1
        if reader is not None:
            reader.join()

    def _lease(self, group: int) -> contextlib.AbstractContextManager[Replica]:
        job = self.job
        return cache.lease(
            job.model,
            self.place,
            device=job.device,
            dtype=job.dtype,
            timeout=job.timeout,
            part=self.parts[group],
        )

    def _read(self, group: int) -> None:
        try:
            with self._lease(group) as replica:
                if replica.device.torch_device.type != "cpu":
                    return
                for tensor in tensors_of(replica.loaded.target):
                    if self._closed.is_set():
                        return
                    _touch(tensor)
        except Exception as error:  # whoever needs the group will see it
            logger.debug("layer group %d was not read ahead: %r", group, error)


def _touch(tensor: torch.Tensor) -> None:
    """Read a byte of each page, without the interpreter's lock."""
    if tensor.layout is torch.strided and tensor.numel():
        as_bytes(tensor)[::PAGE].max()
