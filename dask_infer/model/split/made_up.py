"""A model with made-up numbers, which runs on any client: how its values look, proven.

Parameters take no memory: each is a view of a short row of numbers, one further along
each axis. Code that chooses by values shows what it makes of them only by running.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from dask_infer.model.shapes.fake_model import named_tensors, structure_copy
from dask_infer.model.split.call import Call
from dask_infer.model.split.chain import Chain
from dask_infer.model.split.followed import Unfollowed
from dask_infer.model.split.load import put
from dask_infer.model.split.opened import Original
from dask_infer.model.split.outputs import take_apart
from dask_infer.model.split.program import Held, Program, Ref, Step, replaced
from dask_infer.model.split.refusals import cause_of
from dask_infer.model.split.state import changed, told

#: Rows and tokens of the batches that are tried.
BATCHES = ((5, 11), (1, 7), (2, 3))

#: What may cross a cut.
_FLAT = (type(None), torch.Tensor, bool, int, float, str)


@dataclass(frozen=True)
class Batch:
    """Made-up rows, and what the undivided model returns of them."""

    args: tuple[torch.Tensor, ...]
    kwargs: Mapping[str, torch.Tensor]
    expected: Any


@dataclass
class Seen:
    """What values turned out to be."""

    #: A value of each name, of the last batch.
    values: dict[str, Any] = field(default_factory=dict)
    #: Values that are no tensors, numbers or texts.
    nested: set[str] = field(default_factory=set)
    #: Places [first, last] between which tensors are made and changed in place.
    torn: list[tuple[int, int]] = field(default_factory=list)

    def allows(self, program: Program, place: int) -> bool:
        """Whether the model may be cut before this step."""
        flat = self.nested.isdisjoint(program.live(place))
        return flat and not any(first <= place <= last for first, last in self.torn)


class MadeUp:
    """A copy of a model in eval mode, with made-up parameters and its own buffers."""

    def __init__(self, original: Original) -> None:
        memo: dict[int, Any] = {}
        for seed, parameter in enumerate(original.module.parameters()):
            made = _numbers(parameter.shape, original.converted(parameter), seed)
            memo[id(parameter)] = nn.Parameter(made, requires_grad=False)
        for buffer in original.module.buffers():
            dtype = original.converted(buffer)
            memo[id(buffer)] = buffer.detach().to("cpu", dtype, copy=True)
        self.module = structure_copy(original.module, memo, _copied)
        self.tensors = dict(named_tensors(self.module))

    def batches(self, call: Call, signs: tuple[int, ...] = (1,)) -> list[Batch]:
        """Run the undivided model.

        Parameters
        ----------
        signs
            What numbers are multiplied by: -1 takes code that looks at them elsewhere.

        Raises
        ------
        Unfollowed
            If it keeps something between calls, changes its input, or draws numbers.
        """
        return [self._batch(call, *size, sign) for sign in signs for size in BATCHES]

    def _batch(self, call: Call, rows: int, tokens: int, sign: int) -> Batch:
        args, kwargs = call.tensors(rows, tokens)
        args = tuple(_filled(tensor, sign) for tensor in args)
        kwargs = {key: _filled(tensor, sign) for key, tensor in kwargs.items()}
        given = (*args, *kwargs.values())
        before = told(self.module), [tensor._version for tensor in given]
        expected = self._run(call, args, kwargs)
        if name := changed(before[0], told(self.module)):
            raise Unfollowed(f'it changes its "{name}" as it runs')
        if before[1] != [tensor._version for tensor in given]:
            raise Unfollowed("it changes its input in place")
        if not same(expected, self._run(call, args, kwargs)):
            raise Unfollowed("it returns other numbers each time for the same rows")
        return Batch(args, kwargs, expected)

    def _run(self, call: Call, args: Any, kwargs: Any) -> Any:
        try:
            with torch.no_grad():
                output = self.module(*args, **kwargs, **call.extra)
                leaves: list[Any] = []
                structure = take_apart(output, leaves)
                return structure, [_copied(leaf) for leaf in leaves]
        except Exception as error:
            raise Unfollowed(f"made-up rows fail: {cause_of(error)}") from error

    def watch(
        self,
        program: Program,
        inputs: Mapping[int | str, str],
        constants: Mapping[str, torch.Tensor],
        batches: list[Batch],
    ) -> Seen:
        """Run the steps of a program one by one."""
        seen = Seen()
        for batch in batches:
            given: dict[int | str, torch.Tensor] = dict(enumerate(batch.args))
            given.update(batch.kwargs.items())
            values: dict[str, Any] = {inputs[k]: _copied(v) for k, v in given.items()}
            held = {**self.tensors, **{n: _copied(t) for n, t in constants.items()}}
            versions = [tensor._version for tensor in held.values()]
            watch = _Watch(seen, values)
            with torch.no_grad():
                for place, step in enumerate(program.steps):
                    values[step.name] = self._step(step, values, held)
                    watch.after(place, step.name)
            if versions != [tensor._version for tensor in held.values()]:
                raise Unfollowed("it changes a tensor in place that it is not given")
            seen.values = values
        return seen

    def _step(self, step: Step, values: Any, held: Any) -> Any:
        def leaf(value: Any) -> Any:
            if isinstance(value, Ref):
                return values[value.name]
            return held[value.name] if isinstance(value, Held) else value

        args, kwargs = (replaced(part, leaf) for part in (step.args, step.kwargs))
        if step.kind == "module":
            return self.module.get_submodule(step.target)(*args, **kwargs)
        if step.kind == "method":
            return getattr(args[0], step.target)(*args[1:], **kwargs)
        return step.target(*args, **kwargs)

    def check(self, chain: Chain, batches: list[Batch]) -> None:
        """Hold the finest cut against the undivided model.

        Each stage has modules of its own, and what crosses is copied, as between
        processes.

        Raises
        ------
        Unfollowed
            If anything differs.
        """
        if not any(map(_tells, batches)):
            raise Unfollowed("made-up rows give no number to compare")
        carries = [chain.bind(batch.args, batch.kwargs) for batch in batches]
        for block in range(len(chain.blocks)):
            stage = chain.stage(block, block + 1)
            self._fill(chain, stage)
            with torch.inference_mode():
                carries = [
                    stage({k: _copied(v) for k, v in c.items()}) for c in carries
                ]
        for batch, carry in zip(batches, carries, strict=True):
            leaves: list[Any] = []
            structure = take_apart(chain.output(carry), leaves)
            if not same(batch.expected, (structure, leaves)):
                raise Unfollowed(
                    "its layers alone return other numbers than all of it, as where "
                    "code keeps or shares what tensors do not show"
                )

    def _fill(self, chain: Chain, stage: nn.Module) -> None:
        places = defaultdict(list)
        for name, _ in named_tensors(stage):
            places[chain.canonical(name)].append(name)
        for name, names in places.items():
            made = chain.constants.get(name)
            made = self.tensors[name] if made is None else _copied(made)
            put(chain, stage, names, made, torch.device("cpu"))


class _Watch:
    """Looks after each step at which tensors changed, and since when they are."""

    def __init__(self, seen: Seen, values: dict[str, Any]) -> None:
        self.seen, self.values = seen, values
        self.born: dict[int, int] = {}
        self.versions: dict[str, list[int]] = {}
        for name in list(values):
            self._note(name, 0)

    def after(self, place: int, name: str) -> None:
        for known, versions in self.versions.items():
            tensors = list(_tensors(self.values[known]))
            now = [tensor._version for tensor in tensors]
            if now != versions:
                self.versions[known] = now
                born = min(self.born[_storage(tensor)] for tensor in tensors)
                self.seen.torn.append((born, place))
        self._note(name, place + 1)

    def _note(self, name: str, place: int) -> None:
        value = self.values[name]
        if not isinstance(value, _FLAT):
            self.seen.nested.add(name)
        tensors = list(_tensors(value))
        for tensor in tensors:
            self.born.setdefault(_storage(tensor), place)
        self.versions[name] = [tensor._version for tensor in tensors]


def same(one: tuple[Any, list[Any]], other: tuple[Any, list[Any]]) -> bool:
    """Whether two outputs that were taken apart are equal up to rounding."""
    if one[0] != other[0] or len(one[1]) != len(other[1]):
        return False
    return all(_same(a, b) for a, b in zip(one[1], other[1], strict=True))


def _same(one: Any, other: Any) -> bool:
    if not (isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor)):
        return type(one) is type(other) and (one == other or one != one)
    try:
        torch.testing.assert_close(one, other, equal_nan=True)
    except AssertionError:
        return False
    return True


def _tells(batch: Batch) -> bool:
    """Whether an output is more than infinities and NaN."""
    numbers = [leaf for leaf in batch.expected[1] if isinstance(leaf, torch.Tensor)]
    return not numbers or any(bool(torch.isfinite(n).any()) for n in numbers)


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _tensors(item)
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))


def _storage(tensor: torch.Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _copied(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, torch.Tensor) else value


def _numbers(shape: torch.Size, dtype: torch.dtype, seed: int) -> torch.Tensor:
    """Return numbers that differ along every axis, in the memory of a row of them."""
    draw = torch.Generator().manual_seed(seed)
    fan = max(shape[-1:] or (1,)) or 1
    row = (torch.rand(sum(shape) + 1, generator=draw) * 2 - 1) / fan**0.5
    if not dtype.is_floating_point:
        row = torch.zeros_like(row)
    made: torch.Tensor = row.to(dtype).as_strided(tuple(shape), (1,) * len(shape))
    return made


def _filled(zeros: torch.Tensor, sign: int) -> torch.Tensor:
    draw = torch.Generator().manual_seed(zeros.numel())
    if zeros.dtype.is_floating_point:
        return (sign * torch.randn(zeros.shape, generator=draw)).to(zeros.dtype)
    return torch.randint(2, zeros.shape, generator=draw).to(zeros.dtype)
