"""Everything one partition task needs to know, frozen: of one model, or of several."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias

from dask_infer.spec.group_spec import AutoSpec, GroupSpec
from dask_infer.spec.input_spec import Inputs, Undecided
from dask_infer.spec.model_spec import Blob, ModelSpec
from dask_infer.spec.output_spec import ERROR_COLUMN, Outputs


@dataclass(frozen=True)
class UserCode:
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


#: What a job has of the layout that was chosen for a model: a group, the layer groups
#: of a sweep, or None where each process holds the model itself.
ChosenLayout: TypeAlias = GroupSpec | LayerGroups | None


class BaseJob:
    """What a job of one model and a job of several have in common."""

    outputs: Outputs
    on_error: Literal["raise", "null", "quarantine"]

    @property
    def names(self) -> tuple[str, ...]:
        """Columns that the prediction adds: the outputs, and that of errors."""
        added = (ERROR_COLUMN,) if self.quarantine else ()
        return (*self.outputs.names, *added)

    @property
    def nullable(self) -> bool:
        """Whether rows may be missing in the outputs."""
        return self.on_error != "raise"

    @property
    def quarantine(self) -> bool:
        """Whether a column says which rows failed and why."""
        return self.on_error == "quarantine"

    @property
    def parts(self) -> tuple[tuple[Job, str], ...]:
        """The jobs of single models, a head's last, and what each is for."""
        raise NotImplementedError

    @property
    def models(self) -> tuple[Job, ...]:
        """The jobs of single models, a head's last."""
        return tuple(model for model, _ in self.parts)

    @property
    def spread_models(self) -> tuple[Job, ...]:
        """Those of which a group is requested, or chosen."""
        return tuple(job for job in self.models if job.is_spread)


@dataclass(frozen=True)
class Job(BaseJob):
    """One `predict` call: the model, what it reads, what it writes, and how.

    User code (preprocess, postprocess, tokenizer, call keyword arguments) travels
    pickled in `code`, so that the scheduler need not import it.
    """

    model: ModelSpec
    inputs: Inputs
    outputs: Outputs
    #: Pickled `UserCode`: preprocess, postprocess, tokenizer, call_kwargs.
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
    #: What its rows are counted under, beside the model; empty where they are not.
    token: str = ""

    @property
    def name(self) -> str:
        """What people call the model."""
        return self.model.name

    @property
    def reads(self) -> tuple[Any, ...]:
        """Input columns."""
        return self.inputs.columns

    @property
    def parts(self) -> tuple[tuple[Job, str], ...]:
        """Itself, for its columns."""
        return ((self, ", ".join(map(str, self.names))),)

    @property
    def is_spread(self) -> bool:
        """Whether a group is requested, or one of several layouts chosen."""
        return self.group is not None or self.auto is not None

    def spread(self, chosen: Iterator[ChosenLayout]) -> Job:
        """Return this job in the next of the chosen layouts, if it was to be chosen."""
        found = next(chosen) if self.is_spread else None
        return self if self.auto is None else self.in_layout(found)

    def in_layout(self, layout: ChosenLayout) -> Job:
        """Return this job in a layout; None has each process hold the model."""
        if isinstance(layout, LayerGroups):
            return replace(self, sweep=layout)
        return self if layout is None else replace(self, group=layout)

    def reading(self, names: Collection[Any]) -> Job:
        """Return what has to run for these outputs: one model gives all or none."""
        return self

    @functools.cached_property  # asked for each partition
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

    def __repr__(self) -> str:
        inputs = ", ".join(map(str, self.inputs.columns))
        outputs = ", ".join(map(str, self.names))
        return f"<{self.model.name}: {inputs} -> {outputs}>"


@dataclass(frozen=True)
class Tower:
    """One of several models that read the same rows."""

    name: str
    job: AnyJob
    #: Its output columns: their names in `job`, and in what all towers give together.
    columns: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class TowersJob(BaseJob):
    """Several models on the same rows, and what combines their outputs.

    Without a head the towers' columns are the outputs. A head reads a frame of these
    columns. Where rows may fail, a tower's job is to say which (`ERROR_COLUMN`) if the
    head has to leave them out.
    """

    #: "Towers" or "Ensemble".
    name: str
    towers: tuple[Tower, ...]
    outputs: Outputs
    head: AnyJob | None = None
    on_error: Literal["raise", "null", "quarantine"] = "raise"

    @property
    def reads(self) -> tuple[Any, ...]:
        """Input columns of all towers."""
        return tuple(dict.fromkeys(c for tower in self.towers for c in tower.job.reads))

    @property
    def parts(self) -> tuple[tuple[Job, str], ...]:
        """The parts of its towers and its head."""
        jobs = [(tower.name, tower.job) for tower in self.towers]
        jobs += [] if self.head is None else [("head", self.head)]
        return tuple(
            (model, title if isinstance(job, Job) else f"{title}: {name}")
            for title, job in jobs
            for model, name in job.parts
        )

    def spread(self, chosen: Iterator[ChosenLayout]) -> TowersJob:
        """Return this job, of each model in the chosen layout."""
        towers = tuple(
            replace(tower, job=tower.job.spread(chosen)) for tower in self.towers
        )
        head = None if self.head is None else self.head.spread(chosen)
        return replace(self, towers=towers, head=head)

    def reading(self, names: Collection[Any]) -> TowersJob:
        """Return what has to run for these outputs.

        A head reads all towers, and any tower may have the error of a row.
        """
        if self.head is not None or ERROR_COLUMN in names:
            return self
        read = [column for column in self.outputs.columns if column.name in names]
        towers = []
        for tower in self.towers:
            columns = tuple((own, name) for own, name in tower.columns if name in names)
            job = tower.job.reading([own for own, _ in columns])
            towers += [replace(tower, job=job, columns=columns)] if columns else []
        outputs = replace(self.outputs, columns=tuple(read))
        return replace(self, towers=tuple(towers), outputs=outputs)

    def __repr__(self) -> str:
        towers = ", ".join(f"{tower.name}={tower.job!r}" for tower in self.towers)
        head = "" if self.head is None else f", head={self.head!r}"
        return f"<{self.name} {towers}{head}>"


#: One model, or several that are combined.
AnyJob: TypeAlias = Job | TowersJob
