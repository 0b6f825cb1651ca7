"""A model's own forward with one call of a layer run, and the others standing aside.

Every stage runs the code around the layers from its beginning. Calls of layers before
the stage's own return what they have returned in the stages before, and after its own
the forward is left. So that code sees what it sees in the whole model, and may do what
it likes with it; rows for which it calls other layers, or keeps something, are refused.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import nn

from dask_infer.errors import InputError
from dask_infer.model.shapes.fake_model import private_copy
from dask_infer.model.split.outputs import Leaf, Node, put_together, take_apart
from dask_infer.model.split.state import changed, told

#: Answers the call of a layer: gets its path, and what runs it.
Passed: TypeAlias = Callable[[str, Callable[[], Any]], Any]


@dataclass(frozen=True)
class LayerCall:
    """One call of a layer, in the order in which they come."""

    #: Path of the layer.
    layer: str
    #: Structure of what it returns.
    structure: Leaf | Node


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


class Skeleton:
    """The whole model without its weights, for all stages of a process that hold some.

    Each thread runs a copy of its own: weights are put into it for a call, and calls of
    its layers are answered for one at a time.

    Parameters
    ----------
    name
        What people call the model.
    module
        The model, its tensors on meta.
    calls
        The calls of layers, in turn.
    late
        Modules beside the layers that are only called after the last of them.
    extra
        Constant keyword arguments.
    """

    def __init__(
        self,
        name: str,
        module: nn.Module,
        calls: tuple[LayerCall, ...],
        late: frozenset[str],
        extra: Mapping[str, Any],
    ) -> None:
        self.name, self.module, self.calls = name, module, calls
        self.late, self.extra = late, extra
        self._own = threading.local()

    def __getstate__(self) -> dict[str, Any]:
        return {name: v for name, v in vars(self).items() if name != "_own"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _own=threading.local())

    def run(
        self,
        place: int,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        tensors: Mapping[str, torch.Tensor],
        before: Sequence[Callable[[], Any]],
    ) -> Any:
        """Return the output of call `place`; of the model where there is none.

        Parameters
        ----------
        tensors
            Parameters and buffers, by name.
        before
            Make what each of the calls before has returned.

        Raises
        ------
        InputError
            If the model does something else for these rows than it was split by.
        """
        doors = self._doors()
        way = _Way(self, place, before)
        known = told(doors.module)
        output, is_left = None, False
        with doors.passing(way.passed):
            try:
                output = torch.func.functional_call(
                    doors.module, dict(tensors), args, {**kwargs, **self.extra}
                )
            except _Left as left:
                output, is_left = left.output, True
            except Exception:
                if way.refusal is None:
                    raise
        name = changed(known, told(doors.module))
        if name is not None:
            del self._own.doors  # and what it keeps
            raise self.other(f'changes its "{name}"')
        if way.refusal is not None:
            raise way.refusal
        if way.count < place or (place < len(self.calls) and not is_left):
            failed = way.count > place
            found = "goes on where a layer fails" if failed else "leaves layers out"
            raise self.other(found)
        return output

    def _doors(self) -> Doors:
        if not hasattr(self._own, "doors"):
            layers = {call.layer for call in self.calls}
            self._own.doors = Doors(private_copy(self.module), layers | self.late)
        doors: Doors = self._own.doors
        return doors

    def other(self, found: str) -> InputError:
        """Return the refusal of rows for which the model does this."""
        return InputError(
            f"{self.name}: for these rows it {found}, as it did not for the rows by "
            'which it was split: it cannot run as a pipeline; pass parallel="data"'
        )


class _Way:
    """One forward, by the calls of layers on its way."""

    def __init__(
        self, skeleton: Skeleton, place: int, before: Sequence[Callable[[], Any]]
    ) -> None:
        self.skeleton, self.place, self.before = skeleton, place, before
        self.count = 0
        #: Raised again at the end: the model's code may have caught it.
        self.refusal: InputError | None = None

    def passed(self, path: str, run: Callable[[], Any]) -> Any:
        """Answer the call of a layer, or of what comes after all of them."""
        calls, count = self.skeleton.calls, self.count
        if path in self.skeleton.late and count == len(calls) == self.place:
            return run()
        if count > self.place or count == len(calls) or path != calls[count].layer:
            found = f'calls "{path}" out of turn'
            self.refusal = self.refusal or self.skeleton.other(found)
            raise self.refusal
        self.count += 1
        if count < self.place:
            return self.before[count]()
        raise _Left(run())


class MaskedCall(nn.Module):
    """One call of a layer, or what is left after the last, from values to leaves."""

    def __init__(self, skeleton: Skeleton, place: int, structure: Leaf | Node) -> None:
        super().__init__()
        # No module of this one: its tensors are handed in.
        self.whole = [skeleton]
        self.place = place
        self.structure = structure

    def forward(
        self,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        tensors: Mapping[str, torch.Tensor],
        before: Sequence[tuple[Any, ...]],
    ) -> list[Any]:
        """Return the leaves of what the call returns.

        Parameters
        ----------
        before
            The leaves of what the calls before have returned.
        """
        (whole,) = self.whole
        made = [
            partial(_made, call.structure, leaves)
            for call, leaves in zip(whole.calls, before, strict=False)
        ]
        leaves: list[Any] = []
        output = whole.run(self.place, args, kwargs, tensors, made)
        if take_apart(output, leaves) != self.structure:
            raise whole.other("returns another structure")
        return leaves


def _made(structure: Leaf | Node, leaves: Sequence[Any]) -> Any:
    """Return an output again; its tensors may be changed in place."""
    copies = [x.clone() if isinstance(x, torch.Tensor) else x for x in leaves]
    return put_together(structure, copies)
