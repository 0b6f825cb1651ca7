"""What a call of a layer returns, learned by running a copy of it at several sizes.

On fake tensors where that is possible, on synthetic numbers where the layer's code asks
for values. A size that is the same in all runs is fixed, one that always equals an
argument's size is that size, and any other is one that torch knows nothing of.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import math
import re
import weakref
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

from dask_infer.model.shapes.fake_model import named_tensors, structure_copy
from dask_infer.model.split.export.model_state import changed, described
from dask_infer.model.split.layer_call import (
    Arguments,
    Input,
    NewTensor,
    Rule,
    Signature,
)
from dask_infer.model.split.nesting import take_apart
from dask_infer.model.split_refusals import NotExactError

#: Rows and tokens of the exported call. They differ, and none is 1, which torch takes
#: as a fixed size.
ROWS, TOKENS = 5, 11

#: Rows and tokens of the runs, and sizes that are known once code before has run.
_RUNS = ((ROWS, TOKENS, 6), (3, 19, 10), (7, 13, 9), (2, 8, 12))


class NotOpaqueError(Exception):
    """A call of a layer that cannot be one step of a stage."""


@dataclass(frozen=True)
class Operands:
    """The tensors and sizes of a call, in each run."""

    dtypes: tuple[torch.dtype, ...]
    #: Sizes of the tensors' axes, and other numbers, in each run.
    shapes: tuple[tuple[tuple[int, ...], ...], ...]
    numbers: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, tensors: Sequence[torch.Tensor], sizes: Sequence[Any]) -> Operands:
        """Return those of an export, of which sizes are symbols."""
        dtypes = tuple(tensor.dtype for tensor in tensors)
        shapes = tuple(tuple(map(_in_all_runs, tensor.shape)) for tensor in tensors)
        return cls(dtypes, shapes, tuple(map(_in_all_runs, sizes)))

    @property
    def known(self) -> list[tuple[int, ...]]:
        """All sizes, as `known_sizes` returns them, in each run."""
        return [*itertools.chain.from_iterable(self.shapes), *self.numbers]


def _in_all_runs(size: Any) -> tuple[int, ...]:
    if not isinstance(size, torch.SymInt):
        return (int(size),) * len(_RUNS)
    expression, values = size.node.expr, size.node.shape_env.backed_var_to_val
    found = []
    for rows, tokens, unknown in _RUNS:
        sizes = {ROWS: rows, TOKENS: tokens}
        given: dict[Any, int] = {}
        for symbol in expression.free_symbols:
            number = int("0" + re.sub(r"\D", "", str(symbol)))
            # Its number keeps sizes apart that are not known.
            apart = unknown + 13 * (number % 8)
            given[symbol] = sizes.get(int(values.get(symbol, 0)), apart)
        found.append(int(expression.subs(given)))
    return tuple(found)


def learn(
    path: str,
    layer: nn.Module,
    arguments: Arguments,
    operands: Operands,
    mode: FakeTensorMode,
) -> Signature:
    """Run a copy of a layer, with fake parameters of a mode.

    Raises
    ------
    NotOpaqueError
        If a call of it cannot be one step of a stage.
    NotExactError
        If it keeps something between calls.
    """
    with _disable_current_modes():
        for has_values in (False, True):
            try:
                tried = _with_numbers(layer) if has_values else layer
                with contextlib.nullcontext() if has_values else mode:
                    runs = _runs(path, tried, arguments, operands, has_values)
                return _signature(runs, operands.known, has_values)
            except (NotExactError, NotOpaqueError):
                raise
            except Exception:  # its code asks for values, or refuses synthetic ones
                continue
    raise NotOpaqueError("it fails on synthetic numbers")


def _runs(
    path: str, layer: nn.Module, given: Arguments, operands: Operands, has_values: bool
) -> list[Signature]:
    """Return what each run returned."""
    found = []
    for run in range(len(_RUNS)):
        writes = _Writes()
        found.append(_run(path, layer, given, operands, run, has_values, writes))
        # Code around layers may read it: hooks that collect activations, in a list of
        # the model, of its file or of a context. The first run may set up.
        if run > 0 and writes.is_kept():
            raise NotOpaqueError("it keeps what it computes where others may read it")
    return found


def _run(
    path: str,
    layer: nn.Module,
    arguments: Arguments,
    operands: Operands,
    run: int,
    has_values: bool,
    writes: _Writes,
) -> Signature:
    """Return what a run returned: of a new tensor its dtype and shape."""
    held, before = dict(named_tensors(layer)), described(layer)
    make: Any = synthetic if has_values else torch.zeros
    with torch._C.DisableTorchFunction(), torch.no_grad():
        tensors = [
            make([size[run] for size in shape], dtype=dtype)
            for shape, dtype in zip(operands.shapes, operands.dtypes, strict=True)
        ]
        given = arguments.put(tensors, [number[run] for number in operands.numbers])
        leaves: list[Any] = []
        take_apart(given, leaves)
        args, kwargs = given
        writes.follow(tensors)
        with writes:
            output = layer(*args, **kwargs)
    written = [name for name, one in held.items() if memory_of(one) in writes.changed]
    kept = changed(before, described(layer)) if run > 0 else None  # the first sets up
    if kept := next(iter(written), kept):
        raise NotExactError(f'"{path}" changes its "{kept}" as it runs')
    if writes.changed & set(map(memory_of, tensors)):
        raise NotOpaqueError("it changes an argument in place")
    after: list[Any] = []
    same = take_apart(given, after) == arguments.structure
    if not same or any(a is not b for a, b in zip(leaves, after, strict=True)):
        raise NotOpaqueError("it changes a container that it is given")
    returned: list[Any] = []
    structure = take_apart(output, returned)
    given_memory = set(map(memory_of, (*held.values(), *tensors)))
    memory, shares = set(given_memory), False
    for n, leaf in enumerate(returned):
        place = next((place for place, one in enumerate(tensors) if leaf is one), None)
        # With values it may return something else for others.
        if place is not None and not has_values:
            returned[n] = Input(torch.Tensor, place)
        elif isinstance(leaf, torch.Tensor):
            # Exported, torch sees who may change its memory.
            if memory_of(leaf) in given_memory and not has_values:
                raise NotOpaqueError("it returns views of what it is given or holds")
            shares = shares or memory_of(leaf) in memory
            memory.add(memory_of(leaf))
            returned[n] = (leaf.dtype, tuple(leaf.shape))
    return Signature(structure, tuple(returned), shares)


class _Writes(TorchDispatchMode):
    """Notes the memory that operators change in place, and what follows from inputs."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        #: Memory that was changed, as the schemas of operators say.
        self.changed: set[int] = set()
        #: Inputs, and what was computed from them, by their ids while they live.
        self._followed: dict[int, weakref.ref[torch.Tensor]] = {}

    def follow(self, tensors: Iterable[Any]) -> None:
        """Note tensors as inputs, or as computed from them."""
        for one in tensors:
            if isinstance(one, torch.Tensor):
                self._followed[id(one)] = weakref.ref(one)

    def is_kept(self) -> bool:
        """Whether any of those noted is still there."""
        if any(one() is not None for one in self._followed.values()):
            gc.collect()  # errors that the layer caught hold what there was
        return any(one() is not None for one in self._followed.values())

    def _is_followed(self, one: Any) -> bool:
        known = self._followed.get(id(one))
        return known is not None and known() is one

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        for value in written_by(func, args, kwargs or {}):
            for one in value if isinstance(value, (list, tuple)) else [value]:
                if isinstance(one, torch.Tensor):
                    self.changed.add(memory_of(one))
        reads = any(map(self._is_followed, tree_leaves((args, kwargs))))
        made = func(*args, **(kwargs or {}))
        if reads:
            self.follow(tree_leaves(made))
        return made


def written_by(operator: Any, args: Sequence[Any], kwargs: Any) -> list[Any]:
    """Return the arguments that an operator changes in place, as its schema says."""
    schema = getattr(operator, "_schema", None)
    if schema is None or not schema.is_mutable:
        return []
    given = {**dict(enumerate(args)), **kwargs}
    return [
        given.get(place, given.get(argument.name))
        for place, argument in enumerate(schema.arguments)
        if argument.alias_info is not None and argument.alias_info.is_write
    ]


def memory_of(tensor: torch.Tensor) -> int:
    """Return what identifies the memory of tensors."""
    return int(tensor.untyped_storage()._cdata)


# What the runs have in common


def _signature(
    runs: list[Signature], known: list[tuple[int, ...]], has_values: bool
) -> Signature:
    if any(run.structure != runs[0].structure for run in runs):
        raise NotOpaqueError("it returns another structure for other sizes")
    leaves = [
        _leaf(place, found, known, has_values)
        for place, found in enumerate(zip(*(run.leaves for run in runs), strict=True))
    ]
    shares = any(run.shares for run in runs)
    return Signature(runs[0].structure, tuple(leaves), shares)


def _leaf(
    place: int, found: tuple[Any, ...], known: list[tuple[int, ...]], has_values: bool
) -> Any:
    """Return what one leaf is, from what it was in each run."""
    first = found[0]
    if all(isinstance(leaf, tuple) for leaf in found):
        dtypes, shapes = zip(*found, strict=True)
        if len(set(dtypes)) == len({len(shape) for shape in shapes}) == 1:
            axes = [_rule(sizes, known) for sizes in zip(*shapes, strict=True)]
            return NewTensor(place, first[0], tuple(axes))
    elif found in known and len(set(found)) > 1:
        return _rule(found, known)
    elif all(type(leaf) is type(first) and leaf == first for leaf in found):
        number = isinstance(first, (bool, int, float))
        if not (number and has_values):  # else it may be another for other values
            return first
    raise NotOpaqueError("it returns a number that is known only once it has run")


def _rule(found: tuple[Any, ...], known: list[tuple[int, ...]]) -> Rule:
    """Return how a size follows from others, from what they were in each run."""
    if not all(type(size) is int for size in found):
        return None
    if len(set(found)) == 1:
        return int(found[0])
    if found in known:
        return (known.index(found),)
    for pair in itertools.combinations_with_replacement(range(len(known)), 2):
        if tuple(map(math.prod, zip(*(known[n] for n in pair), strict=True))) == found:
            return pair
    return None


# Numbers


def _with_numbers(layer: nn.Module) -> nn.Module:
    """Return a copy with synthetic parameters, which take the memory of a row each."""
    memo: dict[int, Any] = {}
    for parameter in layer.parameters():
        shape = tuple(parameter.shape)
        row = synthetic([sum(shape) + 1], torch.float32) / max([*shape[-1:], 1])
        made = row.to(parameter.dtype).as_strided(shape, (1,) * len(shape))
        memo[id(parameter)] = nn.Parameter(made, requires_grad=False)
    return structure_copy(layer, memo, lambda tensor: tensor.detach().clone())


def synthetic(shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    """Return numbers from 1 to 2, which may be masks; all 1 where they are whole."""
    draw = torch.Generator().manual_seed(sum(shape))
    return (torch.rand(shape, generator=draw) + 1).to(dtype)
