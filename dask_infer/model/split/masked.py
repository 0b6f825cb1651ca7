"""A model's own forward with one call of a layer run, and the others standing aside.

Every stage runs the code around the layers from its beginning. Calls of layers before
the stage's own return what came from the stage before; after its own the forward is
left. So that code may do what it likes, as long as all that layers tell later ones is
what the last of their list returned; whoever splits a model has to see that it is so.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import nn

from dask_infer.errors import InputError
from dask_infer.model.split.outputs import Leaf, Node, put_together, take_apart

#: Answers the call of a layer: gets its path, and what runs it.
Passed: TypeAlias = Callable[[str, Callable[[], Any]], Any]


@dataclass(frozen=True)
class LayerCall:
    """One call of a layer, in the order in which they come."""

    #: Path of the layer.
    layer: str
    #: Structure of what it returns.
    structure: Leaf | Node

    @property
    def group(self) -> str:
        """Path of the list that it is in."""
        return self.layer.rpartition(".")[0]


class _Left(BaseException):
    """The stage's own call has returned: the rest of the forward is not wanted."""

    def __init__(self, output: Any) -> None:
        super().__init__()
        self.output = output


class Doors:
    """Stands at the layers of a model that is its own, and whose classes it changes.

    Parameters
    ----------
    module
        The model.
    paths
        Of the modules to stand at, by their first names.
    """

    def __init__(self, module: nn.Module, paths: Iterable[str]) -> None:
        self.module = module
        self._pass: Passed | None = None
        for path in paths:
            layer = module.get_submodule(path)
            kind: Any = type(layer)
            space = {"_doors": self, "_path": path, "__module__": kind.__module__}
            layer.__class__ = type(kind)(kind.__name__, (_Door, kind), space)

    @contextlib.contextmanager
    def passing(self, passed: Passed) -> Iterator[None]:
        """Have calls of layers answered by `passed`."""
        self._pass = passed
        try:
            yield
        finally:
            self._pass = None

    def called(self, path: str, run: Callable[[], Any]) -> Any:
        """Answer the call of a layer; those inside of another one are its own."""
        passed = self._pass
        if passed is None:
            return run()
        self._pass = None
        try:
            return passed(path, run)
        finally:
            self._pass = passed


class _Door:
    """What a layer does first."""

    _doors: Doors
    _path: str

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        run = super().__call__  # type: ignore[misc]
        return self._doors.called(self._path, lambda: run(*args, **kwargs))


@dataclass
class Skeleton:
    """The whole model without its weights, for all stages of a process that hold some.

    It has no doors yet where it is pickled.
    """

    name: str
    module: nn.Module
    calls: tuple[LayerCall, ...]
    #: Modules beside the layers that are only called after the last of them.
    late: frozenset[str]
    extra: Mapping[str, Any]
    _doors: Doors | None = field(default=None, repr=False)

    def run(
        self,
        place: int,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        tensors: Mapping[str, torch.Tensor],
        arriving: Mapping[str, Any],
    ) -> Any:
        """Return the output of call `place`; of the model where there is none.

        Parameters
        ----------
        tensors
            Parameters and buffers, by name.
        arriving
            The last output of each list of layers before.

        Raises
        ------
        InputError
            If the model calls other layers for these rows than it was split by.
        """
        if self._doors is None:
            layers = {call.layer for call in self.calls}
            self._doors = Doors(self.module, layers | self.late)
        count = 0

        def passed(path: str, run: Callable[[], Any]) -> Any:
            nonlocal count
            if path in self.late and count == len(self.calls):
                return run()
            if count == len(self.calls) or path != self.calls[count].layer:
                raise self._other(path)
            count += 1
            if count > place:
                raise _Left(run())
            return arriving[self.calls[count - 1].group]

        given = {**kwargs, **self.extra}
        with self._doors.passing(passed):
            try:
                output = torch.func.functional_call(
                    self.module, dict(tensors), args, given
                )
            except _Left as left:
                return left.output
        if count < len(self.calls):
            raise self._other(None)
        return output

    def _other(self, path: str | None) -> InputError:
        found = "leaves some out" if path is None else f'calls "{path}" out of turn'
        return InputError(
            f"{self.name}: for these rows it {found}, and made-up rows went through "
            f"its {len(self.calls)} calls of layers in turn: it cannot run as a "
            'pipeline; pass parallel="data"'
        )


class MaskedCall(nn.Module):
    """One call of a layer, or what is left after the last, from values to leaves."""

    def __init__(self, skeleton: Skeleton, place: int) -> None:
        super().__init__()
        # No module of this one: its tensors are handed in.
        self.whole = [skeleton]
        self.place = place

    def forward(
        self,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        tensors: Mapping[str, torch.Tensor],
        arriving: Mapping[str, tuple[Any, ...]],
    ) -> list[Any]:
        """Return the leaves of what the call returns."""
        (whole,) = self.whole
        structures = {call.group: call.structure for call in whole.calls[: self.place]}
        arrived = {
            group: put_together(structures[group], leaves)
            for group, leaves in arriving.items()
        }
        leaves: list[Any] = []
        take_apart(whole.run(self.place, args, kwargs, tensors, arrived), leaves)
        return leaves
