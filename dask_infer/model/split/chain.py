"""A model as a chain of blocks, weightless: any interval of it becomes a stage."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from dask_infer.errors import InputError
from dask_infer.model.identity import pickling
from dask_infer.model.split.guards import Guard
from dask_infer.model.split.outputs import put_together
from dask_infer.model.split.program import Held, Program, Ref, Size, Value, reads
from dask_infer.model.split.stage import build_stage

Key = int | str
Tier = Literal["sequential", "modules", "export", "layers", "masked"]

#: What a chain's numbers of bytes are given for, where texts may have any length.
TOKENS = 128


@dataclass(frozen=True)
class Tensor:
    """A parameter or buffer: what will be loaded, not its numbers."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    is_parameter: bool

    @property
    def nbytes(self) -> int:
        """Bytes once loaded."""
        return self.dtype.itemsize * torch.Size(self.shape).numel()

    def on_meta(self) -> torch.Tensor:
        """Return one without memory."""
        empty = torch.empty(self.shape, dtype=self.dtype, device="meta")
        return nn.Parameter(empty, requires_grad=False) if self.is_parameter else empty


@dataclass(frozen=True)
class Block:
    """The finest piece that a chain can be cut into."""

    #: Path of the module that it starts with.
    name: str
    #: Names of the parameters and buffers it needs; shared ones are in several blocks.
    tensors: tuple[str, ...]
    #: Bytes of them.
    nbytes: int
    #: Bytes a row of what crosses to the next block; 0 after the last. What is only
    #: known once layers have run counts nothing: all but inputs in the tiers "layers"
    #: and "masked".
    cut_bytes_per_row: int


@dataclass(frozen=True, repr=False)
class Chain:
    """A model that was split; made by `split`.

    Parameters
    ----------
    name
        What people call the model.
    tier
        How it was split: along an ``nn.Sequential``, with its own modules between
        exported steps, exported as a whole, between layers that torch cannot export, or
        by running all of it in each stage with the layers of others masked.
    blocks
        The finest cut, in order.
    """

    name: str
    tier: Tier
    blocks: tuple[Block, ...]
    program: Program
    #: Places of the program's steps between which the blocks are.
    bounds: tuple[int, ...]
    #: Name of the input at each place or keyword of the call.
    inputs: Mapping[Key, str]
    #: Arguments that a caller may give and the model does not take.
    dropped: tuple[str, ...]
    #: Every tensor by its first name.
    tensors: Mapping[str, Tensor]
    #: First name of tensors that have several.
    aliases: Mapping[str, str]
    #: Values of tensors that are in no checkpoint.
    constants: Mapping[str, torch.Tensor]
    #: Pickle of the modules that steps call, by path; read by stages alone.
    modules: bytes
    #: Pickle of the output's structure; read by whoever takes the outputs.
    structure: bytes
    #: Floating dtype of inputs.
    floating: torch.dtype
    #: Sizes of inputs for which it is what the model's code does.
    guards: tuple[Guard, ...] = ()
    #: The model's padding token; None where it has none.
    pad: int | None = None
    #: Padding changes what it computes of other tokens.
    equal_lengths: bool = False

    def __repr__(self) -> str:
        blocks, size = len(self.blocks), self.nbytes / 2**20
        plural = "s" * (blocks != 1)
        return f"<Chain {self.name} {blocks} block{plural} {size:.1f} MiB {self.tier}>"

    @property
    def input_names(self) -> tuple[str, ...]:
        """Names that the first stage's carry has."""
        return self.program.live(0)

    @property
    def nbytes(self) -> int:
        """Projected bytes of all tensors, shared ones once."""
        return self.stage_bytes(0, len(self.blocks))

    def stage_bytes(self, start: int, stop: int) -> int:
        """Projected bytes of the tensors of blocks [start, stop), shared ones once."""
        names = {n for block in self.blocks[start:stop] for n in block.tensors}
        return sum(self.tensors[name].nbytes for name in names)

    def cut_names(self, place: int) -> tuple[str, ...]:
        """Return the names of what crosses before block `place`."""
        return self.program.live(self.bounds[place])

    def table(self) -> list[dict[str, Any]]:
        """Return a row for each block: its name, tensors, bytes and bytes crossing."""
        return [
            {
                "block": block.name,
                "parameters": sum(self._count(name) for name in block.tensors),
                "bytes": block.nbytes,
                "cut_bytes_per_row": block.cut_bytes_per_row,
            }
            for block in self.blocks
        ]

    def _count(self, name: str) -> int:
        tensor = self.tensors[name]
        return torch.Size(tensor.shape).numel() if tensor.is_parameter else 0

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
        given: dict[Key, Any] = dict(enumerate(args))
        given.update((k, v) for k, v in kwargs.items() if k not in self.dropped)
        if given.keys() != self.inputs.keys():
            raise InputError(
                f'model "{self.name}" was split for the arguments '
                f"{_listed(self.inputs)}, it gets {_listed(given)}; call predict() "
                "again with these columns"
            )
        self._check_sizes(given)
        wanted = set(self.input_names)
        named = ((self.inputs[key], value) for key, value in given.items())
        return {name: value for name, value in named if name in wanted}

    def _check_sizes(self, given: Mapping[Key, Any]) -> None:
        for guard in self.guards:
            if not guard.holds(given):
                raise InputError(
                    f'model "{self.name}" was split along what its code does where '
                    f"{guard.text}, and gets a batch of which {guard.sizes(given)}; "
                    'use parallel="data", or build it of modules in an nn.Sequential'
                )

    def output(self, carry: Mapping[str, Any]) -> Any:
        """Return the model's output from the last stage's carry."""
        flat = [
            carry[leaf.name] if isinstance(leaf, Ref) else leaf
            for leaf in self.program.outputs
        ]
        return put_together(pickling.from_bytes(self.structure), flat)

    def stage(
        self,
        start: int,
        stop: int,
        device: str | torch.device = "cpu",
        *,
        modules: Mapping[str, nn.Module] | None = None,
    ) -> nn.Module:
        """Return blocks [start, stop) as a module with its tensors on meta.

        Parameters
        ----------
        device
            Where tensors that it makes as it runs will live.
        modules
            What `own_modules` returned, for stages that share it.

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
        return build_stage(
            self.program,
            first,
            last,
            modules=self.own_modules() if modules is None else modules,
            held={name: self._held(name) for name in self._read(first, last)},
            device=torch.device(device),
        )

    def own_modules(self) -> Mapping[str, nn.Module]:
        """Return the modules that steps call, by path, their tensors on meta."""
        modules: Mapping[str, nn.Module] = pickling.from_bytes(self.modules)
        return modules

    def _read(self, first: int, last: int) -> set[str]:
        found = (
            leaf for step in self.program.steps[first:last] for leaf in reads(step)
        )
        return {leaf.name for leaf in found if isinstance(leaf, Held)}

    def _held(self, name: str) -> torch.Tensor:
        return self.tensors[self.aliases.get(name, name)].on_meta()

    def canonical(self, name: str) -> str:
        """Return the first name of a tensor that has several."""
        return self.aliases.get(name, name)

    def example(self, place: int, rows: int, tokens: int = TOKENS) -> dict[str, Any]:
        """Return a carry before block `place` with made-up numbers.

        Raises
        ------
        ValueError
            If what crosses there is not known without running the blocks before.
        """
        names = self.cut_names(place)
        return {name: self._made_up(name, rows, tokens) for name in names}

    def _made_up(self, name: str, rows: int, tokens: int) -> Any:
        value = self.program.values.get(name)
        if isinstance(value, Size):
            return value.at(rows, tokens)
        if not isinstance(value, Value):
            raise ValueError(f"the size of {name} is known only once it is computed")
        shape = [size.at(rows, tokens) for size in value.shape]
        if value.dtype.is_floating_point:
            return torch.randn(shape, dtype=torch.float32).to(value.dtype)
        fill = 1 if value.dtype is torch.bool else 0
        return torch.full(shape, fill, dtype=value.dtype)


def cut_bytes(program: Program, names: Iterable[str]) -> int:
    """Return bytes a row of values that cross a cut."""
    known = (program.values.get(name) for name in names)
    tensors = [value for value in known if isinstance(value, Value)]
    rows = 64  # spreads what does not depend on rows, as masks of positions do
    return sum(tensor.nbytes(rows, TOKENS) for tensor in tensors) // rows


def _listed(keys: Iterable[Key]) -> str:
    names = [f'"{key}"' if isinstance(key, str) else f"{key + 1}" for key in keys]
    return ", ".join(names) or "none"
