"""Export of the glue: the code around layers, which run as they are."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn
from torch._guards import detect_fake_mode
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.export import ExportedProgram
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.overrides import TorchFunctionMode

from dask_infer.model.runtime.footprint import with_attributes
from dask_infer.model.shapes.fake_model import named_tensors
from dask_infer.model.split.export.candidates import is_sequential
from dask_infer.model.split.export.exported_graph import ExportedGraph, functional
from dask_infer.model.split.export.layer_operator import OpaqueLayers
from dask_infer.model.split.export.model_state import changed, described
from dask_infer.model.split.export.size_guards import guards_of
from dask_infer.model.split.export.split_source import SplitSource
from dask_infer.model.split.nesting import Structure, take_apart
from dask_infer.model.split_refusals import (
    NotExactError,
    cause_of,
    is_fixed,
    is_users_file,
    line_of,
)


def export_glue(source: SplitSource, paths: Iterable[str]) -> ExportedGraph:
    """Return the code around the layers at some paths."""
    mode = FakeTensorMode(allow_non_fake_inputs=True, shape_env=ShapeEnv())
    module = source.traceable(mode)
    with OpaqueLayers(module, source.on_meta, paths, mode) as layers:
        root = _Root(module, layers, dict(named_tensors(source.module)))
        exported = _export(module, source, root)
        # Decompositions lose some guards (torch 2.13: of a minimum of sizes).
        lines = exported._guards_code
        exported = functional(exported, layers.sites.values())
    guards = guards_of(lines, source.module.forward, source.arguments())
    opaque = {site.path for site in layers.sites.values()}
    has_glue = not is_sequential(source.module, opaque)
    sites = {n: s._replace(has_glue=has_glue) for n, s in layers.sites.items()}
    return ExportedGraph(exported, source.examples, sites, root.structure, guards)


def _export(module: nn.Module, source: SplitSource, root: _Root) -> ExportedProgram:
    """Export a module in eval mode, with axes that may have any size."""
    given, shapes = source.arguments(), torch.export.ShapesCollection()
    for key, example in source.examples.items():
        free = [0, *(n for n, size in enumerate(example.shape, 1) if size is None)]
        shapes[given[key]] = dict.fromkeys(free, torch.export.Dim.DYNAMIC)
    args = tuple(tensor for key, tensor in given.items() if isinstance(key, int))
    kwargs = {key: tensor for key, tensor in given.items() if isinstance(key, str)}
    # Torch 2.13 lists what `**kwargs` take twice, and fails.
    named = inspect.signature(module.forward).parameters
    kwargs |= {key: value for key, value in source.extra.items() if key in named}
    root.extra = {k: value for k, value in source.extra.items() if k not in named}
    dynamic = shapes.dynamic_shapes(module, args, kwargs)
    try:
        with torch.no_grad():
            exported = torch.export.export(
                module, args, kwargs, dynamic_shapes=dynamic, strict=False
            )
    except Exception as error:
        if root.failed is not None:
            raise root.failed from None
        if is_fixed(error) and (place := root.fixed_at()) is not None:
            raise NotExactError(f"{cause_of(error)} (at {place})") from error
        raise
    root.check()
    return exported


class _Root(TorchFunctionMode):
    """Lets a copy return the leaves of its output, and notes what goes wrong in it.

    Torch raises where code asks for a value (``if x.sum() > 0``). Within a ``try`` of
    the model the export would go on, along a branch that the model does not take.

    Parameters
    ----------
    layers
        Those that run as they are.
    tensors
        What the export's parameters and buffers stand for, by name.
    """

    #: Structure of the output.
    structure: Structure = None
    #: What the call raised.
    failed: Exception | None = None
    #: Arguments of the call that are no inputs of the export.
    extra: Mapping[str, Any] = {}

    def __init__(
        self,
        module: nn.Module,
        layers: OpaqueLayers,
        tensors: Mapping[str, torch.Tensor],
    ) -> None:
        super().__init__()
        self._module, self._layers, self._tensors = module, layers, tensors
        self._caught: list[Exception] = []
        self._kept: str | None = None
        self._shapes: Any = None
        replaced: Any = module
        replaced._compiled_call_impl = self._call  # hooks of the model run within

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Refuse code that asks how tensors of layers lie in memory: unknown."""
        name = getattr(func, "__name__", "")
        if self._layers.sites and name in ("stride", "is_contiguous"):
            reason = f"it asks {name}() of what layers return: strides are not known"
            raise NotExactError(reason)
        return func(*args, **(kwargs or {}))

    def _call(self, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        self._watch((args, kwargs))
        for name, tensor in named_tensors(self._module):
            with_attributes(tensor, self._tensors[name])
        leaves: list[Any] = []
        before = described(self._module)
        self._layers.begin()
        try:
            with self:
                output = self._module._call_impl(*args, **kwargs, **self.extra)
            self.structure = take_apart(output, leaves)
        except Exception as error:  # torch would print the graph so far
            self.failed = error
        self._kept = changed(before, described(self._module))
        return tuple(leaves)

    def _watch(self, given: Any) -> None:
        """Note the errors that the environment of an export makes (torch 2.13)."""
        shapes: Any = getattr(detect_fake_mode(given), "shape_env", None)
        make: Any = getattr(shapes, "_make_data_dependent_error", None)
        self._shapes = shapes

        def noted(*args: Any, **kwargs: Any) -> Any:
            error = make(*args, **kwargs)
            self._caught.append(error)
            return error

        if make is not None:
            shapes._make_data_dependent_error = noted

    def fixed_at(self) -> str | None:
        """Return the line of the model's code that fixes a size."""
        for found in getattr(self._shapes, "replacements_slocs", {}).values():
            frame = found.framework_loc
            if frame is not None and is_users_file(frame.filename):
                return line_of(frame.filename, frame.lineno or 0)
        return None

    def check(self) -> None:
        """Raise what failed, what the model's own code caught first; refuse state."""
        if self.failed is not None:
            raise self.failed
        for error in self._caught:
            trace = error.__traceback__  # starts in the frame that caught it
            if trace and is_users_file(trace.tb_frame.f_code.co_filename):
                raise error
        if self._kept is not None:
            raise NotExactError(f'it changes its "{self._kept}" as it runs')
