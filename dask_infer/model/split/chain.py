"""A model as a chain of blocks, weightless: any interval of it becomes a stage."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import fx, nn
from torch.fx.node import map_aggregate

from dask_infer.errors import InputError
from dask_infer.model.identity import pickling
from dask_infer.model.shapes.trace_errors import label
from dask_infer.model.shapes.traced_outputs import Traced, compared, counts_beside
from dask_infer.model.split.export.size_guards import Guard
from dask_infer.model.split.layer_call import CalledLayer
from dask_infer.model.split.nesting import put_together
from dask_infer.model.split.shards.division import Shard
from dask_infer.model.split.steps import (
    Value,
    ValueRef,
    WeightRef,
    layers_of,
    weights_of,
)
from dask_infer.model.split.tensor_table import TensorTable
from dask_infer.plan.units import in_bytes
from dask_infer.spec import ArgumentKey
from dask_infer.spec.token_rules import TokenRules

#: What a chain's numbers of bytes are given for, where texts may have any length.
TOKENS = 128


@dataclass(frozen=True)
class Block:
    """The finest piece that a chain can be cut into."""

    #: Path of the module that it starts with.
    name: str
    #: Names of the parameters and buffers it needs; shared ones are in several blocks.
    tensors: tuple[str, ...]
    #: Numbers in its parameters.
    parameters: int
    #: Bytes of parameters and buffers.
    nbytes: int
    #: Bytes a row of what crosses to the next block; 0 after the last. Values whose
    #: size is known only once layers have run count nothing.
    cut_bytes_per_row: int


@dataclass(frozen=True, repr=False)
class Chain(TensorTable):
    """A model that was split; made by `split`."""

    #: Places of the steps between which the blocks are.
    bounds: tuple[int, ...]
    #: Name of the input at each place or keyword of the call.
    inputs: Mapping[ArgumentKey, str]
    #: The leaves of the model's output: a `ValueRef`, or the value itself.
    outputs: tuple[Any, ...]
    #: What is known of values, by name.
    values: Mapping[str, Value]
    #: Arguments that a caller may give and the model does not take.
    dropped: tuple[str, ...]
    #: Pickle of the modules that steps call, by path; read by stages alone.
    pickled_layers: bytes
    #: Pickle of the output's structure; read by whoever takes the outputs.
    structure: bytes
    #: Floating dtype of inputs.
    floating: torch.dtype
    #: Sizes of inputs for which it is what the model's code does.
    guards: tuple[Guard, ...]
    #: How the whole model takes tokens.
    tokens: TokenRules
    #: The finest cut, in order.
    blocks: tuple[Block, ...] = ()

    def __repr__(self) -> str:
        blocks, size = len(self.blocks), in_bytes(self.nbytes)
        return f"<Chain {self.name} {blocks} block{'s' * (blocks != 1)} {size}>"

    # Its tensors

    @property
    def nbytes(self) -> int:
        """Projected bytes of all tensors, shared ones once."""
        return self.stage_bytes(0, len(self.blocks))

    def stage_bytes(self, start: int, stop: int, shard: Shard | None = None) -> int:
        """Projected bytes of the tensors of blocks [start, stop), shared ones once.

        Parameters
        ----------
        shard
            The one that holds them; None where the stage is on one worker.
        """
        names = (n for block in self.blocks[start:stop] for n in block.tensors)
        return self.tensor_bytes(names, shard)

    def divisible_bytes(self, block: Block) -> int:
        """Projected bytes of the tensors of a block that shards divide."""
        return self.tensor_bytes(n for n in block.tensors if n in self.axes)

    def exchanges(self, block: Block) -> int:
        """Return how many divided weights a block has: each has outputs to join."""
        shapes = [self.tensors[n].shape for n in block.tensors if n in self.axes]
        return sum(len(shape) > 1 for shape in shapes)

    def layers(self) -> Mapping[str, nn.Module]:
        """Return the modules that steps call, by path, their tensors on meta."""
        layers: Mapping[str, nn.Module] = pickling.from_bytes(self.pickled_layers)
        return layers

    # What crosses its cuts

    @cached_property
    def _lives(self) -> dict[str, tuple[int, int]]:
        """Place after which each value exists, and the last that it must reach."""
        first = dict.fromkeys(self.inputs.values(), 0)
        first.update({step.name: n + 1 for n, step in enumerate(self.steps)})
        last = dict.fromkeys(first, 0)
        for place, step in enumerate(self.steps):
            last.update({read.name: place + 1 for read in step.reads})
        for leaf in self.outputs:
            if isinstance(leaf, ValueRef):
                last[leaf.name] = len(self.steps) + 1
        return {name: (made, last[name]) for name, made in first.items()}

    def live(self, step: int) -> tuple[str, ...]:
        """Return the values that cross a cut before a step, in order."""
        lives = self._lives.items()
        return tuple(name for name, (made, last) in lives if made <= step < last)

    def cut_names(self, place: int) -> tuple[str, ...]:
        """Return the names of what crosses before block `place`: the carry's.

        Block -1 stands for the end.
        """
        return self.live(self.bounds[place])

    def known(self, place: int, rows: int, tokens: int = TOKENS) -> dict[str, Any]:
        """Return a carry before block `place`, on meta, as far as it is known."""
        names = [name for name in self.cut_names(place) if name in self.values]
        return {name: self.values[name].on_meta(rows, tokens) for name in names}

    def example(
        self, place: int, rows: int, tokens: int = TOKENS
    ) -> dict[str, Any] | None:
        """Return a carry before block `place`; None where a size is unknown."""
        carry = self.known(place, rows, tokens)
        return carry if len(carry) == len(self.cut_names(place)) else None

    # Its calls

    def bind(
        self, args: Iterable[torch.Tensor], kwargs: Mapping[str, torch.Tensor]
    ) -> dict[str, Any]:
        """Return the first stage's carry for one call of the model.

        Raises
        ------
        InputError
            If arguments are missing, there are others than the model was split for, or
            their sizes are ones for which its code takes another branch.
        """
        given: dict[ArgumentKey, Any] = dict(enumerate(args))
        given.update((k, v) for k, v in kwargs.items() if k not in self.dropped)
        if given.keys() != self.inputs.keys():
            raise InputError(
                f'model "{self.name}" was split for the arguments '
                f"{_listed(self.inputs)}, it gets {_listed(given)}; call predict() "
                "again with these columns, or give a tokenizer= function the names "
                "that it returns as its attribute model_input_names"
            )
        for guard in self.guards:
            if not guard.holds(given):
                raise InputError(
                    f'model "{self.name}" was split along what its code does where '
                    f"{guard.text}, and gets a batch of {_shapes(given)}; use "
                    'parallel="data", or build it of modules in an nn.Sequential'
                )
        named = {self.inputs[key]: value for key, value in given.items()}
        return {name: named[name] for name in self.cut_names(0)}

    def stage(
        self,
        start: int,
        stop: int,
        device: str | torch.device = "cpu",
        *,
        layers: Mapping[str, nn.Module] | None = None,
    ) -> nn.Module:
        """Return blocks [start, stop) as a module with its tensors on meta.

        Parameters
        ----------
        device
            Where tensors that it makes as it runs will live.
        layers
            What `layers` returned, for stages that share it.

        Returns
        -------
        torch.nn.Module
            From carry to carry: a flat dictionary of tensors, numbers and None.
        """
        steps = self.steps[self.bounds[start] : self.bounds[stop]]
        layers = self.layers() if layers is None else layers
        parts: dict[str, Any] = {
            name: self.tensors[self.first_name(name)] for name in weights_of(steps)
        }
        graph = fx.Graph()
        carry = graph.placeholder("carry")
        nodes = {
            name: graph.call_function(operator.getitem, (carry, name))
            for name in self.cut_names(start)
        }

        def leaf(value: Any) -> Any:
            if isinstance(value, ValueRef):
                return nodes[value.name]
            if isinstance(value, WeightRef):
                return graph.get_attr(value.name)
            return torch.device(device) if isinstance(value, torch.device) else value

        for step in steps:
            args, kwargs = map_aggregate((step.args, dict(step.kwargs)), leaf)
            if step.kind == "layer":
                name, call = f"_call_of_{step.name}", pickling.from_bytes(step.call)
                parts[name] = CalledLayer(step.target, layers[step.target], *call)
                nodes[step.name] = graph.call_module(name, args)
            else:
                nodes[step.name] = graph.call_function(step.function(), args, kwargs)
        graph.output({name: nodes[name] for name in self.cut_names(stop)})
        stage = fx.GraphModule(parts, graph, "Stage")
        for path in layers_of(steps):  # a weight may be part of one
            stage.add_submodule(path, layers[path])
        return stage.eval()

    def output(self, carry: Mapping[str, Any]) -> Any:
        """Return the model's output from the last stage's carry."""
        flat = [
            carry[leaf.name] if isinstance(leaf, ValueRef) else leaf
            for leaf in self.outputs
        ]
        return put_together(pickling.from_bytes(self.structure), flat)

    def traced(self) -> Traced | None:
        """Return what the model returns for a batch; None where a size is unknown."""
        values = [self.values[n] for n in self.cut_names(-1) if n in self.values]
        found = []
        for counts in counts_beside({size for value in values for size in value.shape}):
            carry = self.example(-1, *counts)
            if carry is None:
                return None
            floating = str(self.floating).removeprefix("torch.")
            output = self.output(carry)
            found.append(Traced(output, *counts, floating, dropped=self.dropped))
        return compared(*found)


def _shapes(given: Mapping[ArgumentKey, torch.Tensor]) -> str:
    return ", ".join(f"{label(k)} {tuple(t.shape)}" for k, t in given.items())


def _listed(keys: Iterable[ArgumentKey]) -> str:
    names = [f'"{key}"' if isinstance(key, str) else f"{key + 1}" for key in keys]
    return ", ".join(names) or "none"
