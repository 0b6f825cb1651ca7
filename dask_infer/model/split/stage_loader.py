"""One stage in this process: a few blocks of a model, with their own tensors alone."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

import torch
from torch import nn

from dask_infer.errors import ModelLoadError
from dask_infer.model.formats.checkpoints.safetensors_checkpoint import Part
from dask_infer.model.formats.format import load_errors, some
from dask_infer.model.registry import format_of
from dask_infer.model.runtime.footprint import parse_dtype, tensor_bytes
from dask_infer.model.runtime.kept_memory import KeptMemory
from dask_infer.model.runtime.loaded_model import LoadedModel
from dask_infer.model.shapes.fake_model import named_tensors
from dask_infer.model.split.chain import Chain
from dask_infer.model.split.nesting import UnknownValue, put_together, take_apart
from dask_infer.model.split.shards import DividedTensor, Shard
from dask_infer.model.split.shards.division import Axes
from dask_infer.plan.units import in_bytes
from dask_infer.spec.model_spec import ModelSpec
from dask_infer.spec.token_rules import TokenRules


class LoadedStage(LoadedModel):
    """Blocks [start, stop) of a chain: values by name in, values by name out.

    Parameters
    ----------
    chain
        The whole model, weightless.
    module
        The stage, its tensors in place.
    """

    def __init__(
        self,
        spec: ModelSpec,
        chain: Chain,
        start: int,
        stop: int,
        module: nn.Module,
        device: torch.device,
    ) -> None:
        super().__init__(spec, "tensor", module, tensor_bytes(module))
        self.device, self.floating = device, chain.floating
        self._name = f"{chain.name} [{start}:{stop}]"
        keywords = frozenset(name for name in chain.inputs if isinstance(name, str))
        self._rules = TokenRules(
            keywords,
            "attention_mask" in keywords,
            chain.pad,
            equal_lengths=chain.equal_lengths,
        )
        self._kept = KeptMemory()

    def __repr__(self) -> str:
        size = in_bytes(self.nbytes)
        return f"<LoadedStage {self._name} {size} {self.device}>"

    def call(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], method: str | None = None
    ) -> Any:
        """Return the carry after these blocks; the one given is left as it is."""
        module = self.target
        if module is None:
            raise RuntimeError(f"{self!r} was closed")
        with torch.inference_mode():
            return self._kept.run(module, lambda: module(*args))

    def close(self) -> None:
        """Free the tensors at once: a graph module would keep them, in a cycle."""
        if self.target is not None:
            for part in self.target.modules():
                part._parameters.clear()
                part._buffers.clear()
        super().close()

    def token_rules(self, method: str | None) -> TokenRules:
        """Return how the whole model takes tokens."""
        return self._rules


def load_stage(
    spec: ModelSpec,
    chain: Chain,
    start: int,
    stop: int,
    *,
    device: str = "cpu",
    dtype: str | None = None,
    shard: Shard | None = None,
) -> LoadedStage:
    """Load blocks [start, stop) of a model, reading their own tensors and no others.

    Parameters
    ----------
    spec
        The model that the chain was split from: where its weights are.
    device
        Where the stage is to live: ``"cpu"``, ``"cuda:1"``, ``"mps"``.
    dtype
        Floating dtype to run in. A chain has one already; another is refused.
    shard
        Which of the workers that share the stage this is; only its parts of tensors
        are read. None for the whole stage.

    Raises
    ------
    ModelLoadError
        If tensors cannot be found or read; names the model and the cause.
    """
    wanted = parse_dtype(dtype)
    if wanted is not None and wanted != chain.floating:
        raise ValueError(
            f"dtype={dtype!r}: the chain was split for {chain.floating}; split the "
            "model again with that dtype"
        )
    place = torch.device(device)
    with load_errors(spec):
        module = chain.stage(start, stop, place)
        fill(spec, chain, module, place, shard)
        if shard is not None:
            join_outputs(module, layer_paths(chain, start, stop))
    return LoadedStage(spec, chain, start, stop, module, place)


def layer_paths(chain: Chain, start: int, stop: int) -> list[str]:
    """Return the paths of the model's own modules that blocks call, in order."""
    steps = chain.program.steps[chain.bounds[start] : chain.bounds[stop]]
    return list(dict.fromkeys(step.target for step in steps if step.kind == "layer"))


def join_outputs(stage: nn.Module, paths: Iterable[str]) -> None:
    """Have what layers return put together, where it is divided: code after it."""
    for path in paths:
        stage.get_submodule(path).register_forward_hook(_joined)


def _joined(layer: nn.Module, args: Any, output: Any) -> Any:
    leaves: list[Any] = []
    try:
        structure = take_apart(output, leaves)
    except UnknownValue:
        return output
    if not any(isinstance(leaf, DividedTensor) for leaf in leaves):
        return output
    whole = [x.whole() if isinstance(x, DividedTensor) else x for x in leaves]
    return put_together(structure, whole)


class TensorTable(Protocol):
    """What is known of the tensors of a model; a `Chain` is one."""

    @property
    def name(self) -> str:
        """What people call the model."""

    @property
    def tensors(self) -> Mapping[str, torch.Tensor]:
        """Every tensor by its first name, on meta."""

    @property
    def aliases(self) -> Mapping[str, str]:
        """First name of tensors that have several."""

    @property
    def constants(self) -> Mapping[str, torch.Tensor]:
        """Values of tensors that are in no checkpoint."""

    @property
    def axes(self) -> Axes:
        """The axis of each tensor that shards divide."""


def fill(
    spec: ModelSpec,
    table: TensorTable,
    module: nn.Module,
    device: torch.device,
    shard: Shard | None,
) -> None:
    """Put each tensor where the stage holds it, one object for all of its names."""
    places = names_in(table, module)
    tied = defaultdict(list)
    for other, first in table.aliases.items():
        tied[first].append(other)
    asked = {n: tuple(tied[n]) for n in places if n not in table.constants}
    parts = {} if shard is None else _parts(table, asked, shard)
    found = {**format_of(spec).read_tensors(spec, asked, parts), **table.constants}
    if missing := places.keys() - found.keys():
        where = spec.weights or spec.path or spec.name
        raise ModelLoadError(f"{where} lacks weights of {spec.name}: {some(missing)}")
    for name, names in places.items():
        put(table, module, names, found[name], device, shard)


def _parts(table: TensorTable, names: Iterable[str], shard: Shard) -> dict[str, Part]:
    """Return the axis and the items that a shard holds of divided tensors."""
    parts = {}
    for name in names:
        cut = shard.cut(name, table.tensors[name].shape, table.axes)
        if cut is not None:
            parts[name] = (cut.axis, cut.parts.ranges(shard.index))
    return parts


def names_in(table: TensorTable, module: nn.Module) -> dict[str, list[str]]:
    """Return the names of each tensor of a stage, by its first in the model."""
    names = defaultdict(list)
    for name, _ in named_tensors(module):
        names[table.aliases.get(name, name)].append(name)
    return names


def put(
    table: TensorTable,
    module: nn.Module,
    names: list[str],
    tensor: torch.Tensor,
    device: torch.device,
    shard: Shard | None = None,
) -> None:
    """Put one tensor, or what a shard holds of it, into a stage under all its names.

    Parameters
    ----------
    tensor
        The whole, or the shard's part of it.
    """
    first = table.aliases.get(names[0], names[0])
    expected, cut = table.tensors[first], None
    shape = tuple(expected.shape)
    if shard is not None and (cut := shard.cut(first, shape, table.axes)) is not None:
        if tuple(tensor.shape) == shape:
            tensor = cut.parts.take(tensor, cut.axis, shard.index)
        tensor = tensor.contiguous()
        shape = cut.parts.part_shape(shape, cut.axis, shard.index)
    if tuple(tensor.shape) != shape:
        raise ModelLoadError(
            f"{table.name}: {names[0]} has shape {tuple(tensor.shape)}, its "
            f"architecture wants {shape}"
        )
    is_parameter = isinstance(expected, nn.Parameter)
    ready: torch.Tensor = tensor.detach().to(device, expected.dtype)
    if cut is not None:
        about = (cut.axis, cut.parts, is_parameter, cut.stays)
        ready = DividedTensor(ready, *about)
    elif is_parameter:
        ready = nn.Parameter(ready, requires_grad=False)
    for name in names:
        parent, _, leaf = name.rpartition(".")
        setattr(module.get_submodule(parent), leaf, ready)
