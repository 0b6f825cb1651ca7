"""One stage in this process: a few blocks of a model, with their own tensors alone."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
from torch import nn

from dask_infer.errors import ModelLoadError
from dask_infer.model.formats.format import load_errors
from dask_infer.model.registry import format_of
from dask_infer.model.runtime.footprint import parse_dtype, tensor_bytes
from dask_infer.model.runtime.kept_memory import KeptMemory
from dask_infer.model.runtime.loaded_model import LoadedModel
from dask_infer.model.shapes.fake_model import named_tensors
from dask_infer.model.split.chain import Chain
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
        _fill(spec, chain, module, place)
    return LoadedStage(spec, chain, start, stop, module, place)


def _fill(
    spec: ModelSpec, chain: Chain, module: nn.Module, device: torch.device
) -> None:
    """Put each tensor where the stage holds it, one object for all of its names."""
    places = defaultdict(list)
    for name, _ in named_tensors(module):
        places[chain.first_name(name)].append(name)
    tied = defaultdict(list)
    for other, first in chain.aliases.items():
        tied[first].append(other)
    asked = {n: tuple(tied[n]) for n in places if n not in chain.constants}
    found = {**format_of(spec).read_tensors(spec, asked), **chain.constants}
    if missing := sorted(places.keys() - found.keys()):
        some = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
        where = spec.weights or spec.path or spec.name
        raise ModelLoadError(f"{where} lacks weights of {spec.name}: {some}")
    for name, names in places.items():
        put(chain, module, names, found[name], device)


def put(
    chain: Chain,
    module: nn.Module,
    names: list[str],
    tensor: torch.Tensor,
    device: torch.device,
) -> None:
    """Put one tensor into a stage under all its names."""
    expected = chain.tensors[chain.first_name(names[0])]
    if tuple(tensor.shape) != expected.shape:
        raise ModelLoadError(
            f"{chain.name}: {names[0]} has shape {tuple(tensor.shape)}, its "
            f"architecture wants {expected.shape}"
        )
    ready: torch.Tensor = tensor.detach().to(device, expected.dtype)
    if expected.is_parameter:
        ready = nn.Parameter(ready, requires_grad=False)
    for name in names:
        parent, _, leaf = name.rpartition(".")
        setattr(module.get_submodule(parent), leaf, ready)
