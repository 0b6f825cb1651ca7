"""Splitting by export of the glue, the code around layers, which run as they are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch._guards import detect_fake_mode
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.export import ExportedProgram
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.overrides import TorchFunctionMode

from dask_infer.model.shapes.call_arguments import by_key
from dask_infer.model.split.assemble import assemble
from dask_infer.model.split.chain import Chain
from dask_infer.model.split.export.candidates import (
    candidates,
    check_cuts,
    is_sequential,
    items_around,
    opaque_layers,
    outermost,
)
from dask_infer.model.split.export.exported_graph import Graph, GraphReader, functional
from dask_infer.model.split.export.fingerprint import fingerprint
from dask_infer.model.split.export.layer_operator import CallSite, OpaqueLayers
from dask_infer.model.split.export.model_state import changed, described
from dask_infer.model.split.export.size_guards import Guard, guards_of
from dask_infer.model.split.export.split_source import SplitSource
from dask_infer.model.split.nesting import take_apart
from dask_infer.model.split_refusals import (
    CannotSplit,
    NotExactError,
    cause_of,
    is_fixed,
    is_users_file,
    line_of,
)


def split_glue(source: SplitSource, cuts: tuple[str, ...] | None) -> Chain:
    """Export the code around the layers, and cut between their calls.

    Raises
    ------
    CannotSplit
        If torch cannot follow the code.
    """
    module, name = source.module, source.spec.name
    check_cuts(name, module, cuts)
    layers = opaque_layers(module, cuts or ())
    paths = list(cuts) if cuts else candidates(module)
    try:
        graph, guards = _read(source, layers)
    except Exception as error:
        refusal = error
        try:
            if cuts or outermost(module, layers) == layers:
                raise
            # Code of a layer around other layers: that one may be opaque.
            layers, paths = outermost(module, layers), outermost(module, paths)
            graph, guards = _read(source, layers)
        except Exception:
            reason = f"torch cannot follow it: {cause_of(refusal)}"
            raise CannotSplit(name, reason) from refusal
    places = places_of(name, graph, paths, cuts)
    if cuts is None:
        places = _without_peaks(module, graph, places)
        places = {_started(graph, path, places): n for path, n in places.items()}
    return assemble(source, graph, places, guards, exact_cuts=cuts is not None)


def places_of(
    name: str, graph: Graph, paths: list[str], cuts: tuple[str, ...] | None
) -> dict[str, int]:
    """Return the place of the first step of each module that runs."""
    for path in cuts or ():
        if path not in graph.places:
            reason = f'it never runs its module "{path}"'
            raise CannotSplit(name, reason, "cut before modules that it runs")
    return {path: graph.places[path] for path in paths if path in graph.places}


def _without_peaks(
    module: nn.Module, graph: Graph, places: dict[str, int]
) -> dict[str, int]:
    """Drop cuts inside a layer where more tensors cross than before and after it.

    That is how blocks with a residual inside a list inside a layer look.
    """
    values, kept = graph.program.values, {}
    ordered = sorted(places, key=lambda path: places[path])
    counts = [
        sum(name in values for name in graph.program.live(places[path]))
        for path in ordered
    ]
    for place, path in enumerate(ordered):
        lower = [count < counts[place] for count in counts]
        is_peak = any(lower[:place]) and any(lower[place + 1 :])
        if not (is_peak and items_around(module, path)):
            kept[path] = places[path]
    return kept


def _started(graph: Graph, path: str, places: Mapping[str, int]) -> str:
    """Return the largest module that starts with a piece and holds no other."""
    names = path.split(".")
    for count in range(1, len(names)):
        outer = ".".join(names[:count])
        inside = [other for other in places if other.startswith(f"{outer}.")]
        if inside == [path] and graph.places.get(outer) == places[path]:
            return outer
    return path


def _read(source: SplitSource, paths: list[str]) -> tuple[Graph, tuple[Guard, ...]]:
    """Return the graph, and the sizes that it is right for."""
    mode = FakeTensorMode(allow_non_fake_inputs=True, shape_env=ShapeEnv())
    module = source.traceable(mode)
    marks = {path: fingerprint(source.on_meta.get_submodule(path)) for path in paths}
    layers = OpaqueLayers(module, marks, mode)
    root = _Root(module, layers.sites)
    with layers:
        exported = _export(module, source, root)
        # Decompositions lose some guards (torch 2.13: of a minimum of sizes).
        lines = exported._guards_code
        exported = functional(exported, layers.sites)
    examples, sites = source.examples, layers.sites
    guards = guards_of(lines, source.module.forward, examples)
    opaque = {site.path for site in sites.values()}
    has_glue = not is_sequential(source.module, opaque)
    reader = GraphReader(exported, root.structure, examples, sites, has_glue=has_glue)
    return reader.read(), guards


class _Root:
    """Lets a copy return the leaves of its output, and notes what goes wrong in it.

    Torch raises where code asks for a value (``if x.sum() > 0``). Within a ``try`` of
    the model the export would go on, along a branch that the model does not take.
    """

    #: Structure of the output.
    structure: Any = None

    def __init__(self, module: nn.Module, sites: Mapping[int, CallSite]) -> None:
        self._module, self._sites = module, sites
        self._caught: list[BaseException] = []
        self._kept: str | None = None
        self._shapes: Any = None
        replaced: Any = module
        replaced._compiled_call_impl = self._call  # hooks of the model run within

    def _call(self, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        self._watch((args, kwargs))
        leaves: list[Any] = []
        before = described(self._module)
        try:
            with _NoStrides(self._sites):
                output = self._module._call_impl(*args, **kwargs)
            self.structure = take_apart(output, leaves)
        except Exception as error:
            raise _FailedError from error
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
        """Raise the first error that the model's own code caught; refuse state."""
        for error in self._caught:
            trace = error.__traceback__  # starts in the frame that caught it
            if trace and is_users_file(trace.tb_frame.f_code.co_filename):
                raise error
        if self._kept is not None:
            raise NotExactError(f'it changes its "{self._kept}" as it runs')


class _NoStrides(TorchFunctionMode):
    """Refuses code that asks how tensors lie in memory, which of layers is not known.

    Parameters
    ----------
    sites
        Calls of layers so far.
    """

    def __init__(self, sites: Mapping[int, CallSite]) -> None:
        super().__init__()
        self._sites = sites

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Call `func`, unless its answer may be another in a stage."""
        name = getattr(func, "__name__", "")
        if self._sites and name in ("stride", "is_contiguous"):
            reason = f"it asks {name}() of what layers return: strides are not known"
            raise NotExactError(reason)
        return func(*args, **(kwargs or {}))


class _FailedError(Exception):
    """A call that failed; for other errors torch prints the graph so far."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name != "partial_fx_graph":
            super().__setattr__(name, value)


def _export(module: nn.Module, source: SplitSource, root: _Root) -> ExportedProgram:
    """Export a module in eval mode, with axes that may have any size."""
    args, kwargs = source.arguments()
    shapes = torch.export.ShapesCollection()
    given = by_key(args, kwargs)
    for key, axes in source.dynamic.items():
        shapes[given[key]] = dict.fromkeys(axes, torch.export.Dim.DYNAMIC)
    kwargs = {**kwargs, **source.extra}
    dynamic = shapes.dynamic_shapes(module, args, kwargs)
    try:
        with torch.no_grad():
            exported = torch.export.export(
                module, args, kwargs, dynamic_shapes=dynamic, strict=False
            )
    except _FailedError as error:
        assert error.__cause__ is not None
        raise error.__cause__ from None
    except Exception as error:
        if is_fixed(error) and (place := root.fixed_at()) is not None:
            raise NotExactError(f"{cause_of(error)} (at {place})") from error
        raise
    root.check()
    return exported
