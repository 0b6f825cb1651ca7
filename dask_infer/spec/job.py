"""Everything one partition task needs to know, frozen."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from dask_infer.spec.auto_spec import AutoSpec
from dask_infer.spec.group_spec import GroupSpec
from dask_infer.spec.input_spec import Inputs, Undecided
from dask_infer.spec.model_spec import Blob, ModelSpec
from dask_infer.spec.output_spec import ERROR_COLUMN, Outputs

__all__ = ["Blob", "Code", "Job", "LayerGroups"]


@dataclass(frozen=True)
class Code:
    """What the user gave besides the model; unpickled on workers only."""

    preprocess: Callable[..., Any] | None = None
    postprocess: Callable[..., Any] | None = None
    #: A tokenizer, the directory of one, or a callable.
    tokenizer: Any = None
    call_kwargs: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class LayerGroups:
    """A model that each process runs one layer group after the other."""

    #: The model as a chain of blocks, without weights.
    chain: Blob
    #: How many groups, "auto" for as few as fit, or the modules at which to cut.
    stages: int | Literal["auto"] | tuple[str, ...] = "auto"


@dataclass(frozen=True)
class Job:
    """One `predict` call: the model, what it reads, what it writes, and how.

    User code (preprocess, postprocess, tokenizer, call keyword arguments) travels
    pickled in `code`, so that the scheduler need not import it.
    """

    model: ModelSpec
    inputs: Inputs
    outputs: Outputs
    #: Pickled `Code`: preprocess, postprocess, tokenizer, call_kwargs.
    code: Blob
    method: str | None = None
    #: Most rows of one forward; None lets the policy choose.
    batch_size: int | None = None
    #: Most padded tokens of one forward; "auto", or None for no limit.
    batch_tokens: int | Literal["auto"] | None = "auto"
    #: Floating dtype the model runs in; None as loaded.
    dtype: str | None = None
    device: str = "auto"
    #: Seconds that a load or a forward may take.
    timeout: float | None = None
    on_error: Literal["raise", "null", "quarantine"] = "raise"
    #: Largest part of a partition that may fail before the job stops.
    max_errors: float = 0.5
    row_wise: bool = True
    #: What the worker has to find out about the inputs; None where all is known.
    undecided: Undecided | None = None
    #: The workers that hold the model; None where each process holds it itself.
    group: GroupSpec | None = None
    #: The layer groups that are swept; None where the model is not cut, or a group is.
    sweep: LayerGroups | None = None
    #: What a group request chooses one of them from, where ``parallel="auto"``.
    auto: AutoSpec | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """Columns that the prediction adds: the outputs, and that of errors."""
        added = (ERROR_COLUMN,) if self.quarantine else ()
        return (*self.outputs.names, *added)

    @property
    def rate_key(self) -> str:
        """Name under which its times are remembered, the same under every layout."""
        content = (
            self.model.key,
            self.model.compile,
            self.inputs.columns,
            self.method,
            self.batch_size,
            self.batch_tokens,
            self.dtype,
            self.code.key,
        )
        return hashlib.sha256(repr(content).encode()).hexdigest()[:16]

    @property
    def nullable(self) -> bool:
        """Whether rows may be missing in the outputs."""
        return self.on_error != "raise"

    @property
    def quarantine(self) -> bool:
        """Whether a column says which rows failed and why."""
        return self.on_error == "quarantine"

    def __repr__(self) -> str:
        inputs = ", ".join(map(str, self.inputs.columns))
        outputs = ", ".join(map(str, self.names))
        return f"<{self.model.name}: {inputs} -> {outputs}>"
