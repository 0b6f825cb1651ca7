"""What batches hand from one layer group to the next: in memory, or in a file.

Values beyond the budget go to files that have no name from the moment they are opened,
so that nothing leaves one behind: no error, and no kill. The first batches stay in
memory: they are the first that the next group takes.
"""

from __future__ import annotations

import tempfile
import threading
import weakref
from typing import Any, NamedTuple

import torch

from dask_infer.errors import PartitionError
from dask_infer.metrics.recorder import add, meter
from dask_infer.model.runtime.footprint import as_bytes

#: A tensor that is a view of so many times its own bytes is copied.
VIEW = 2


class TensorPlace(NamedTuple):
    """Where a tensor is in a file."""

    offset: int
    dtype: torch.dtype
    shape: tuple[int, ...]


class Activations:
    """Values of batches between two groups, for all threads of a process.

    At most `budget` bytes stay in memory; the others go to `directory`, or to that of
    the system.
    """

    def __init__(self, budget: int, directory: str | None) -> None:
        self.budget, self.directory = budget, directory
        #: Bytes in memory.
        self.held = 0
        self._lock = threading.Lock()
        self._file: SpillFile | None = None

    def __repr__(self) -> str:
        return f"<Activations {self.held} of {self.budget} bytes in memory>"

    def put(self, values: dict[Any, Any]) -> Stored:
        """Keep values by name."""
        tensors = {name: v for name, v in values.items() if _is_dense(v)}
        nbytes = sum(tensor.nbytes for tensor in tensors.values())
        with self._lock:
            fits = self.held + nbytes <= self.budget
            if fits:
                self.held += nbytes
            elif self._file is None:
                self._file = SpillFile(self.directory)
            file = None if fits else self._file
        if file is None:
            return Stored(self, {n: _compact(v) for n, v in values.items()}, nbytes)
        with meter("transfer"):
            written = {name: file.write(tensor) for name, tensor in tensors.items()}
        add("spilled_bytes", nbytes)
        others = {name: v for name, v in values.items() if name not in written}
        return Stored(self, others, 0, file, written)

    def next_file(self) -> None:
        """Write to a new file: this one is closed with the last that reads it."""
        self._file = None

    def release(self, stored: Stored) -> None:
        """Have room for other values."""
        with self._lock:
            self.held -= stored.nbytes
            stored.nbytes = 0


class Stored:
    """Values of one batch, or of some of its rows."""

    def __init__(
        self,
        owner: Activations,
        values: dict[Any, Any],
        nbytes: int,
        file: SpillFile | None = None,
        places: dict[Any, TensorPlace] | None = None,
    ) -> None:
        self._owner, self._values = owner, values
        #: Bytes in memory.
        self.nbytes = nbytes
        self.file, self._places = file, places or {}

    def load(self) -> dict[Any, Any]:
        """Return the values."""
        file, values = self.file, self._values
        if file is None:
            return values
        with meter("transfer"):
            read = {name: file.read(at) for name, at in self._places.items()}
        return {**values, **read}

    def release(self) -> None:
        """Let go of them; a second call does nothing."""
        self._owner.release(self)
        self._values, self.file, self._places = {}, None, {}


class SpillFile:
    """A file without a name that tensors are written to, one after the other.

    Closed with the last of the stored values that are in it.
    """

    def __init__(self, directory: str | None) -> None:
        self._file = tempfile.TemporaryFile(  # noqa: SIM115
            prefix="dask-infer-", dir=directory, buffering=0
        )
        weakref.finalize(self, self._file.close)
        self._directory = directory or tempfile.gettempdir()
        self._lock = threading.Lock()
        self._end = 0

    def write(self, tensor: torch.Tensor) -> TensorPlace:
        """Append a tensor.

        Raises
        ------
        PartitionError
            If the disk is full.
        """
        data = as_bytes(tensor).data
        with self._lock:
            place = TensorPlace(self._end, tensor.dtype, tuple(tensor.shape))
            self._file.seek(self._end)
            self._end += len(data)
            try:
                while data:
                    data = data[self._file.write(data) :]
            except OSError as error:
                raise PartitionError(
                    f"activations between two layer groups cannot be written to "
                    f"{self._directory}: {error}; raise infer.sweep.activations, which "
                    "may stay in memory, give the workers a larger local directory, or "
                    "use smaller partitions"
                ) from error
        return place

    def read(self, place: TensorPlace) -> torch.Tensor:
        """Return a tensor."""
        tensor = torch.empty(place.shape, dtype=place.dtype)
        data = as_bytes(tensor).data
        with self._lock:
            self._file.seek(place.offset)
            while data:
                data = data[self._file.readinto(data) :]
        return tensor


def _is_dense(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.layout is torch.strided


def _compact(value: Any) -> Any:
    """Return a tensor without the rest of what it is a view of."""
    if not _is_dense(value) or not value.nbytes:
        return value
    whole = value.untyped_storage().nbytes()
    return value.clone() if whole > VIEW * value.nbytes else value
