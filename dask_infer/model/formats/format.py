"""What a model format is, and what the rest of the package asks one.

One file of this folder is one format: a subclass of `Format`, of which
`dask_infer.model.registry` has one object. The rest of the package asks that object
what its models need; no other file compares formats.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, cast

import torch
from torch.export import ExportedProgram

from dask_infer.device.out_of_memory import is_out_of_memory
from dask_infer.errors import InferError, ModelLoadError
from dask_infer.model.formats.checkpoints.safetensors_checkpoint import (
    Parts,
    TensorNames,
    Tensors,
)
from dask_infer.model.identity.content_key import content_key
from dask_infer.model.identity.file_key import file_key
from dask_infer.model.runtime.import_library import EXTRAS, remedy_for
from dask_infer.model.runtime.loaded_model import LoadedModel
from dask_infer.model.runtime.place_module import Placement
from dask_infer.model.shapes.boosting import Described
from dask_infer.model.shapes.fake_model import named_tensors
from dask_infer.model.shapes.trace_errors import Example, cannot_trace
from dask_infer.model.shapes.traced_outputs import Traced
from dask_infer.model.split_refusals import AS_MODULE, CannotSplit
from dask_infer.model.store.blob_store import PendingBlob, read_blob
from dask_infer.spec import ArgumentKey, Fitted
from dask_infer.spec.model_spec import Interface, ModelSpec


class FileCall(NamedTuple):
    """A call whose outputs the files of a model declare."""

    #: One row of each argument, by place or by name.
    examples: Mapping[ArgumentKey, Example]
    #: Counts of rows and of tokens.
    counts: tuple[int, int]
    method: str | None = None
    #: Floating dtype that the model runs in; None as it is.
    dtype: str | None = None


class NotAModelError(ModelLoadError, TypeError):
    """What was given is nothing that can be run."""


@dataclass
class Recognised:
    """What `predict` was given, as the workers will read it."""

    spec: ModelSpec
    #: How the model will want its batches, as far as the client can see.
    interface: Interface = "tensor"
    #: What may be looked at here: the user's module, estimator, program, function, or
    #: what builds the model.
    live: Any = None
    #: What `snapshot` writes; None where nothing has to be written.
    pending: PendingBlob | None = None
    #: The model's own tokenizer, where the user's object has one.
    tokenizer: Any = None

    def snapshot(self) -> None:
        """Write what workers will read; it stays on disk while the spec's blob lives.

        Raises
        ------
        ModelLoadError
            If the store cannot take it.
        """
        if self.pending is not None:
            self.pending.write()
            self.pending = None


class Format:
    """One model format. Its class attributes are facts, its methods the work.

    A subclass needs `kind`, `load`, and either `recognise` or `suffixes`.
    """

    #: Name of the format in specs.
    kind: ClassVar[str]
    #: How errors name its files: ``"*.onnx"``; empty for objects.
    pattern: ClassVar[str] = ""
    #: Endings of its files, in small letters.
    suffixes: ClassVar[tuple[str, ...]] = ()
    #: Extra of this package that installs what it needs, and the modules thereof.
    extra: ClassVar[str] = ""
    libraries: ClassVar[tuple[str, ...]] = ()
    #: How its models want their batches, if nothing else is known.
    interface: ClassVar[Interface] = "tensor"
    #: `dtype=` may choose the floating dtype.
    has_dtype: ClassVar[bool] = True
    #: It runs on the CPU unless the user asks for a device: see `takes_host`.
    on_host: ClassVar[bool] = False
    #: Its objects were fitted: `described_outputs` reads their attributes.
    is_fitted: ClassVar[bool] = False
    #: Its files say what it returns: `declared_outputs` reads them.
    declares_outputs: ClassVar[bool] = False

    def __init_subclass__(cls) -> None:
        EXTRAS.update(dict.fromkeys(cls.libraries, cls.extra))

    def takes_host(self) -> bool:
        """Whether ``device="auto"`` is the CPU for it, in this process."""
        return self.on_host

    # What the user gave

    def recognise(self, given: Any, method: str | None) -> Recognised | None:
        """Return an object of this format as a model; None where it is of another.

        `given` is what the user gave, or a `ModelSource`; `method` will be called.
        """
        return None

    def is_at(self, path: Path) -> bool:
        """Whether the file or directory is of this format, by its names alone."""
        return not path.is_dir() and path.suffix.lower() in self.suffixes

    def check(self, path: Path, trust: bool) -> None:
        """Raise `ModelLoadError` for a file that is damaged or not to be trusted.

        Only headers are read: nothing is unpickled or run.
        """

    def files(self, path: Path) -> list[Path]:
        """Return the files whose change is a change of the model."""
        return [path]

    def nbytes(self, path: Path) -> int:
        """Return the projected bytes resident of the model at `path`."""
        return sum(file.stat().st_size for file in self.files(path))

    def recognise_path(self, path: Path, trust: bool) -> Recognised:
        """Return the model at `path`, checked; workers read it at the same path."""
        self.check(path, trust)
        spec = ModelSpec(
            key=file_key((self.kind, trust), path, self.files(path)),
            name=path.name if path.is_dir() else path.stem,
            kind=self.kind,
            path=str(path),
            trust=trust,
            nbytes=self.nbytes(path),
        )
        return Recognised(spec, self.interface)

    def pickled(self, model: Any, in_eval: Iterable[object] = ()) -> Recognised:
        """Return a model that travels as a pickle of the content store.

        `in_eval` are the modules in it that `load` puts into ``eval()``.
        """
        key = content_key((self.kind, model), in_eval)
        pending = PendingBlob(model, key)
        spec = ModelSpec(
            key=key,
            name=_name(model),
            kind=self.kind,
            blob=pending.blob,
            nbytes=pending.nbytes,
        )
        return Recognised(spec, self.interface, live=model, pending=pending)

    # What the call needs to know

    def check_method(self, live: Any, method: str | None) -> None:
        """Raise `MissingMethodError` where the client sees that there is no such."""

    def signature(self, live: Any, method: str | None) -> inspect.Signature | None:
        """Return how a call may look; None where shapes or the worker decide."""
        return None

    def brings_tokenizer(self, spec: ModelSpec) -> bool:
        """Whether a tokenizer lies beside the model."""
        return False

    def feature_names(self, live: Any, columns: Iterable[Any]) -> list[Any] | None:
        """Return the columns that the model was fitted on; None where it knows none."""
        return None

    def fitted(self, live: Any) -> Fitted | None:
        """Return what the model was fitted on; None for what was not fitted."""
        return None

    def described_outputs(
        self,
        live: Any,
        method: str | None,
        call_kwargs: Mapping[str, Any] | None,
        given: Mapping[Any, str] | None,
    ) -> list[Described]:
        """Return what a fitted object's attributes say that it returns, by array.

        `given` has the dtypes of the columns that it gets; None where not known.

        Raises
        ------
        CannotTrace
            They do not say.
        """
        raise NotImplementedError

    def declared_outputs(self, spec: ModelSpec, call: FileCall) -> Traced:
        """Return what the model's files declare that a call returns.

        Raises
        ------
        CannotTrace
            They leave it open.
        ArityMismatch, ShapeMismatch
            The inputs are not those that the files declare.
        MissingMethodError
            Models of this format have no such method.
        """
        raise NotImplementedError

    def traceable_module(self, spec: ModelSpec, live: Any) -> torch.nn.Module:
        """Return the torch module, its weights not read where that can be avoided.

        `live` is what the user gave; None to read the spec's own.

        Raises
        ------
        CannotTrace
            There is none before the model runs.
        """
        try:
            return cast(torch.nn.Module, self.open_to_split(spec, live))
        except CannotSplit as error:
            reason = f"what it returns is only known by calling it: {error.reason}"
            raise cannot_trace(spec.name, reason) from error

    # What a worker does

    def load(self, spec: ModelSpec, placement: Placement) -> LoadedModel:
        """Return the model, ready to be called; `dtype` is None unless `has_dtype`."""
        raise NotImplementedError

    def weight_files(self, spec: ModelSpec) -> list[Path]:
        """Return the safetensors files that the weights are read from, if any."""
        return []

    # What stages need

    def open_to_split(
        self, spec: ModelSpec, live: Any
    ) -> torch.nn.Module | ExportedProgram:
        """Return what is split, its weights not read where that can be avoided.

        `live` is the caller's module, or what builds it; None to read the spec's own.

        Raises
        ------
        CannotSplit
            Its layers are only known once it is loaded, or never.
        """
        reason = f"this {self.kind} has no layers that can be distinguished"
        raise CannotSplit(spec.name, reason, AS_MODULE)

    def read_tensors(
        self, spec: ModelSpec, names: TensorNames, parts: Parts
    ) -> Tensors:
        """Read these tensors of what `open_to_split` returned, and no others.

        What is not found is left out. Of tensors that shards divide `parts` says what
        is needed; the whole may be returned where its memory is mapped, as here.
        """
        module = cast(torch.nn.Module, self.open_to_split(spec, None))
        found = dict(named_tensors(module))
        return {name: found[name].detach() for name in names if name in found}


def _name(model: Any) -> str:
    if isinstance(model, functools.partial):
        return _name(model.func)
    name = getattr(model, "__name__", None)
    if not isinstance(name, str):
        return type(model).__name__
    return "lambda" if name == "<lambda>" else name


def with_article(name: str) -> str:
    """Return ``"a Net"`` or ``"an Embedder"``."""
    return f"{'an' if name[:1].lower() in 'aeiou' else 'a'} {name}"


def some(names: Iterable[str]) -> str:
    """Return names for a message: the first five in alphabetical order."""
    ordered = sorted(names)
    return ", ".join(ordered[:5]) + (", ..." if len(ordered) > 5 else "")


def read_object(spec: ModelSpec) -> Any:
    """Unpickle what a spec holds, its tensors mapped from the store's file."""
    if spec.blob is None:
        raise ModelLoadError(f"{spec.name}: its spec holds no pickled object")
    return read_blob(spec.blob)


def no_dtype(spec: ModelSpec) -> ModelLoadError:
    """Return the error for a dtype that was asked of what has none."""
    return ModelLoadError(
        f"{spec.name} is no torch model: it runs in the dtypes it has; leave dtype= out"
    )


@contextlib.contextmanager
def load_errors(spec: ModelSpec) -> Iterator[None]:
    """Raise `ModelLoadError`, which names model, cause and remedy, for any failure.

    Memory that ran out stays what it is: the caller answers that.
    """
    try:
        yield
    except Exception as error:
        gone = [p for p in (spec.path, spec.weights) if p and not os.path.exists(p)]
        if gone:
            raise ModelLoadError(
                f"{spec.name}: there is no {gone[0]} on this machine; workers read "
                "that path: copy the files to all machines, or share a file system"
            ) from error
        if isinstance(error, InferError) or is_out_of_memory(error):
            raise
        raise ModelLoadError(_explain(spec, error)) from error


def _explain(spec: ModelSpec, error: Exception) -> str:
    where = f" from {spec.path}" if spec.path else ""
    if isinstance(error, ModuleNotFoundError) and error.name:
        return (
            f"{spec.name}{where} needs the module {error.name}, which this worker "
            f"cannot import; {remedy_for(error.name)}"
        )
    if isinstance(error, AttributeError) and "Can't get attribute" in str(error):
        return (
            f"{spec.name}{where} needs a class that this worker's copy of its module "
            f"does not have ({error}); install the same version on the workers or send "
            "it with client.upload_file"
        )
    cause = str(error).strip() or "no message"
    return f"{spec.name}{where} cannot be loaded: {type(error).__name__}: {cause}"
