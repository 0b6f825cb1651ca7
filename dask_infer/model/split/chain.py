"""A model as a chain of blocks, weightless: any interval of it becomes a stage."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import nn

from dask_infer.errors import InputError
from dask_infer.model.identity import pickling
from dask_infer.model.shapes.traced_outputs import Traced, compared, counts_beside
from dask_infer.model.split.export.size_guards import Guard
from dask_infer.model.split.nesting import put_together
from dask_infer.model.split.program import Program, ValueRef
from dask_infer.model.split.shards.division import Axes, Shard, axes_of
from dask_infer.plan.units import in_bytes
from dask_infer.spec import ArgumentKey

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
class Chain:
    """A model that was split; made by `split`."""

    #: What people call the model.
    name: str
    #: The finest cut, in order.
    blocks: tuple[Block, ...]
    program: Program
    #: Places of the program's steps between which the blocks are.
    bounds: tuple[int, ...]
    #: Name of the input at each place or keyword of the call.
    inputs: Mapping[ArgumentKey, str]
    #: Arguments that a caller may give and the model does not take.
    dropped: tuple[str, ...]
    #: Every tensor by its first name, on meta.
    tensors: Mapping[str, torch.Tensor]
    #: First name of tensors that have several.
    aliases: Mapping[str, str]
    #: Values of tensors that are in no checkpoint.
    constants: Mapping[str, torch.Tensor]
    #: Pickle of the modules that steps call, by path; read by stages alone.
    pickled_layers: bytes
    #: Pickle of the output's structure; read by whoever takes the outputs.
    structure: bytes
    #: Floating dtype of inputs.
    floating: torch.dtype
    #: Sizes of inputs for which it is what the model's code does.
    guards: tuple[Guard, ...]
    #: The model's padding token; None where it has none.
    pad: int | None
    #: Padding changes what it computes of other tokens.
    equal_lengths: bool

    def __repr__(self) -> str:
        blocks, size = len(self.blocks), in_bytes(self.nbytes)
        return f"<Chain {self.name} {blocks} block{'s' * (blocks != 1)} {size}>"

    @property
    def nbytes(self) -> int:
        """Projected bytes of all tensors, shared ones once."""
        return self.stage_bytes(0, len(self.blocks))

    @cached_property
    def axes(self) -> Axes:
        """The axis of each tensor that shards of a stage divide."""
        shapes = {name: tensor.shape for name, tensor in self.tensors.items()}
        return axes_of(self.layers(), self.program, shapes, self.aliases)

    def stage_bytes(self, start: int, stop: int, shard: Shard | None = None) -> int:
        """Projected bytes of the tensors of blocks [start, stop), shared ones once.

        Parameters
        ----------
        shard
            The one that holds them; None where the stage is on one worker.
        """
        names = {n for block in self.blocks[start:stop] for n in block.tensors}
        found = {name: self.tensors[name] for name in names}
        if shard is None:
            return sum(tensor.nbytes for tensor in found.values())
        return sum(
            tensor.dtype.itemsize * shard.numel(name, tensor.shape, self.axes)
            for name, tensor in found.items()
        )

    def divisible_bytes(self, block: Block) -> int:
        """Projected bytes of the tensors of a block that shards divide."""
        return sum(self.tensors[n].nbytes for n in block.tensors if n in self.axes)

    def exchanges(self, block: Block) -> int:
        """Return how many divided weights a block has: each has outputs to join."""
        shapes = [self.tensors[n].shape for n in block.tensors if n in self.axes]
        return sum(len(shape) > 1 for shape in shapes)

    def cut_names(self, place: int) -> tuple[str, ...]:
        """Return the names of what crosses before block `place`: the carry's."""
        return self.program.live(self.bounds[place])

    def first_name(self, name: str) -> str:
        """Return the first name of a tensor that may have several."""
        return self.aliases.get(name, name)

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
                "again with these columns"
            )
        for guard in self.guards:
            if not guard.holds(given):
                raise InputError(
                    f'model "{self.name}" was split along what its code does where '
                    f"{guard.text}, and gets a batch of which {guard.sizes(given)}; "
                    'use parallel="data", or build it of modules in an nn.Sequential'
                )
        named = {self.inputs[key]: value for key, value in given.items()}
        return {name: named[name] for name in self.cut_names(0)}

    def output(self, carry: Mapping[str, Any]) -> Any:
        """Return the model's output from the last stage's carry."""
        flat = [
            carry[leaf.name] if isinstance(leaf, ValueRef) else leaf
            for leaf in self.program.outputs
        ]
        return put_together(pickling.from_bytes(self.structure), flat)

    def traced(self) -> Traced | None:
        """Return what the model returns for a batch; None where a size is unknown."""
        known = self.program.values
        values = [known[name] for name in self.cut_names(-1) if name in known]
        found = []
        for counts in counts_beside({size for value in values for size in value.shape}):
            carry = self.example(-1, *counts)
            if carry is None:
                return None
            floating = str(self.floating).removeprefix("torch.")
            output = self.output(carry)
            found.append(Traced(output, *counts, floating, dropped=self.dropped))
        return compared(*found)

    def example(
        self, place: int, rows: int, tokens: int = TOKENS
    ) -> dict[str, Any] | None:
        """Return a carry before block `place`, on meta; None where a size is unknown.

        Block -1 stands for the end.
        """
        carry = self.program.carry(self.bounds[place], rows, tokens)
        return carry if len(carry) == len(self.cut_names(place)) else None

    def layers(self) -> Mapping[str, nn.Module]:
        """Return the modules that steps call, by path, their tensors on meta."""
        layers: Mapping[str, nn.Module] = pickling.from_bytes(self.pickled_layers)
        return layers

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
        if not 0 <= start < stop <= len(self.blocks):
            raise ValueError(
                f"blocks [{start}, {stop}) of a chain of {len(self.blocks)}: pass "
                f"0 <= start < stop <= {len(self.blocks)}"
            )
        first, last = self.bounds[start], self.bounds[stop]
        weights = self.program.weights(first, last)
        return self.program.stage(
            first,
            last,
            self.layers() if layers is None else layers,
            {name: self.tensors[self.first_name(name)] for name in weights},
            torch.device(device),
        )


def _listed(keys: Iterable[ArgumentKey]) -> str:
    names = [f'"{key}"' if isinstance(key, str) else f"{key + 1}" for key in keys]
    return ", ".join(names) or "none"
