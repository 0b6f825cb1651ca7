"""What can go wrong, by name. Every message says the cause, then the remedy."""

from __future__ import annotations


class InferError(Exception):
    """Base of every error of dask_infer."""


class InputError(InferError, ValueError):
    """A column or a row cannot become what the model reads."""


class OutputError(InferError, ValueError):
    """What the model returned cannot become the promised columns."""


class ModelLoadError(InferError):
    """The model cannot be found, trusted, read or held in memory."""


class PlacementError(InferError):
    """No worker can hold the model, a stage or a replica."""


class PartitionError(InferError):
    """A partition failed on a worker; the cause is chained."""
