"""What a call of a layer returns, learned by running a copy of it at several sizes.

On fake tensors where that is possible, on synthetic numbers where the layer's code asks
for values. A size that is the same in all runs is fixed, one that always equals an
argument's size is that size, and any other is one that torch knows nothing of.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from dask_infer.model.shapes.fake_model import structure_copy
from dask_infer.model.split.export.model_state import changed, described
from dask_infer.model.split.layer_returns import (
    Input,
    NewTensor,
    Rule,
    Signature,
)
from dask_infer.model.split.nesting import Structure, put_together, take_apart
from dask_infer.model.split_refusals import NotExactError, cause_of

#: Rows and tokens of the exported call. They differ, and none is 1, which torch takes
#: as a fixed size.
ROWS, TOKENS = 5, 11

#: Rows and tokens of the runs, and sizes that are known once code before has run.
_RUNS = ((ROWS, TOKENS, 6), (3, 19, 10), (7, 13, 9), (2, 8, 12))


class NotOpaqueError(Exception):
    """A call of a layer that cannot be one step of a stage."""


@dataclass(frozen=True)
class LayerCall:
    """The arguments of a call of a layer, as an export sees them."""

    structure: Structure
    #: An `Input`, or the value itself.
    leaves: tuple[Any, ...]
    dtypes: tuple[torch.dtype, ...]
    #: Sizes of the tensors' axes in each run, and other numbers; flags are the last.
    shapes: tuple[tuple[tuple[int, ...], ...], ...]
    numbers: tuple[tuple[int, ...], ...]

    @classmethod
    def of(
        cls,
        structure: Structure,
        given: Sequence[Any],
        tensors: Sequence[torch.Tensor],
        sizes: Sequence[Any],
    ) -> LayerCall:
        """Note arguments that were taken apart, of which `operands` are the last."""
        flags = sum(isinstance(leaf, torch.SymBool) for leaf in given)
        places = {torch.Tensor: 0, torch.SymInt: 0, torch.SymBool: len(sizes) - flags}
        leaves = []
        for leaf in given:
            kind = next((kind for kind in places if isinstance(leaf, kind)), None)
            if kind is not None:
                leaf, places[kind] = Input(kind, places[kind]), places[kind] + 1
            leaves.append(leaf)
        return cls(
            structure,
            tuple(leaves),
            tuple(tensor.dtype for tensor in tensors),
            tuple(tuple(map(_in_all_runs, tensor.shape)) for tensor in tensors),
            tuple(map(_in_all_runs, sizes)),
        )

    @property
    def known(self) -> list[tuple[int, ...]]:
        """All sizes, as `known_sizes` returns them, in each run."""
        return [*itertools.chain.from_iterable(self.shapes), *self.numbers]

    def arguments(self, tensors: Sequence[torch.Tensor], run: int) -> list[Any]:
        """Return the leaves of the arguments in a run."""

        def given(leaf: Any) -> Any:
            if not isinstance(leaf, Input):
                return leaf
            if leaf.kind is torch.Tensor:
                return tensors[leaf.place]
            number = self.numbers[leaf.place][run]
            return bool(number % 2) if leaf.kind is torch.SymBool else number

        return [given(leaf) for leaf in self.leaves]


def operands(given: Sequence[Any]) -> tuple[list[torch.Tensor], list[Any]]:
    """Return the tensors of arguments, and their sizes: numbers, then flags as such."""
    numbers = [leaf for leaf in given if isinstance(leaf, torch.SymInt)]
    flags = [leaf for leaf in given if isinstance(leaf, torch.SymBool)]
    numbers += [torch.sym_ite(flag, 1, 0) for flag in flags]
    return [leaf for leaf in given if isinstance(leaf, torch.Tensor)], numbers


def _in_all_runs(size: Any) -> tuple[int, ...]:
    if not isinstance(size, torch.SymInt):
        return (int(size),) * len(_RUNS)
    expression, values = size.node.expr, size.node.shape_env.backed_var_to_val
    found = []
    for rows, tokens, unknown in _RUNS:
        sizes = {ROWS: rows, TOKENS: tokens}
        symbols = expression.free_symbols
        given = {
            s: sizes.get(int(values.get(s, 0)), unknown + _apart(s)) for s in symbols
        }
        found.append(int(expression.subs(given)))
    return tuple(found)


def _apart(symbol: Any) -> int:
    """Return what keeps sizes that are not known apart in the runs."""
    digits = re.sub(r"\D", "", str(symbol))
    return 13 * (int(digits or 0) % 8)


def learn(
    path: str, layer: nn.Module, call: LayerCall, mode: FakeTensorMode
) -> Signature:
    """Run a copy of a layer.

    Parameters
    ----------
    path
        What to call the layer in errors.
    mode
        Of its fake parameters.

    Raises
    ------
    NotOpaqueError
        If a call of it cannot be one step of a stage.
    NotExactError
        If it keeps something between calls.
    """
    runs = range(len(_RUNS))
    with _disable_current_modes():
        try:
            with mode:
                found = [_run(path, layer, call, run, has_values=False) for run in runs]
            return _signature(path, call, found, has_values=False)
        except (NotExactError, NotOpaqueError):
            raise
        except Exception as error:  # its code asks for values
            refusal = error
        try:
            real = _with_numbers(layer)
            found = [_run(path, real, call, run, has_values=True) for run in runs]
        except (NotExactError, NotOpaqueError):
            raise
        except Exception as error:
            reason = f'"{path}" fails on synthetic numbers: {cause_of(error)}'
            raise NotOpaqueError(reason) from refusal
        return _signature(path, call, found, has_values=True)


class _Run(NamedTuple):
    structure: Structure
    #: What was returned: a tensor as its dtype and shape, or as the argument it is.
    leaves: list[Any]
    shares: bool


def _run(
    path: str, layer: nn.Module, call: LayerCall, run: int, *, has_values: bool
) -> _Run:
    held = dict((*layer.named_parameters(), *layer.named_buffers()))
    before = described(layer)
    with torch._C.DisableTorchFunction(), torch.no_grad(), _Writes() as writes:
        shapes = [[size[run] for size in shape] for shape in call.shapes]
        make: Any = synthetic if has_values else torch.zeros
        tensors = [
            make(shape, dtype=dtype)
            for shape, dtype in zip(shapes, call.dtypes, strict=True)
        ]
        writes.changed.clear()
        given = call.arguments(tensors, run)
        args, kwargs = arguments = put_together(call.structure, given)
        output = layer(*args, **kwargs)
    written = [name for name, one in held.items() if memory_of(one) in writes.changed]
    kept = changed(before, described(layer)) if run > 0 else None  # the first sets up
    if kept := next(iter(written), kept):
        raise NotExactError(f'"{path}" changes its "{kept}" as it runs')
    if writes.changed & set(map(memory_of, tensors)):
        raise NotOpaqueError(f'"{path}" changes an argument in place')
    after: list[Any] = []
    same = take_apart(arguments, after) == call.structure
    if not same or any(a is not b for a, b in zip(given, after, strict=True)):
        raise NotOpaqueError(f'"{path}" changes a container that it is given')
    leaves: list[Any] = []
    structure = take_apart(output, leaves)
    memory = {memory_of(one) for one in (*held.values(), *tensors)}
    shares = False
    for n, leaf in enumerate(leaves):
        place = next((place for place, one in enumerate(tensors) if leaf is one), None)
        # With values it may return something else for others.
        if place is not None and not has_values:
            leaves[n] = Input(torch.Tensor, place)
        elif isinstance(leaf, torch.Tensor):
            shares = shares or memory_of(leaf) in memory
            memory.add(memory_of(leaf))
            leaves[n] = (leaf.dtype, tuple(leaf.shape))
    return _Run(structure, leaves, shares)


class _Writes(TorchDispatchMode):
    """Notes the memory that operators change in place, as their schemas say."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.changed: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        for value in written_by(func, args, kwargs or {}):
            for one in value if isinstance(value, (list, tuple)) else [value]:
                if isinstance(one, torch.Tensor):
                    self.changed.add(memory_of(one))
        return func(*args, **(kwargs or {}))


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
    path: str, call: LayerCall, runs: list[_Run], *, has_values: bool
) -> Signature:
    first = runs[0]
    if any(run.structure != first.structure for run in runs):
        raise NotOpaqueError(f'"{path}" returns another structure for other sizes')
    leaves = [
        _leaf(path, place, found, call.known, has_values)
        for place, found in enumerate(zip(*(run.leaves for run in runs), strict=True))
    ]
    made = tuple(leaf for leaf in leaves if isinstance(leaf, NewTensor))
    shares = any(run.shares for run in runs)
    return Signature(first.structure, tuple(leaves), made, shares)


def _leaf(
    path: str,
    place: int,
    found: tuple[Any, ...],
    known: list[tuple[int, ...]],
    has_values: bool,
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
    raise NotOpaqueError(
        f'"{path}" returns a number that is known only once it has run'
    )


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
