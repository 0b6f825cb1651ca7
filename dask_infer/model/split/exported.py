"""The exported graph of a model, as a program.

``torch.export`` follows the model's code on fake tensors; `run_decompositions({})` then
takes out in-place operations and views, which would give wrong numbers across a cut
(torch 2.13). Its checks of sizes are left out, as they would refuse batches of one
row; `guards` reads those that the model's code asks for.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch._export.verifier import SpecViolationError
from torch._ops import OpOverload
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind
from torch.utils import _pytree as pytree

from dask_infer.model.split.program import Held, Program, Ref, Size, Step, Value, fit
from dask_infer.model.split.quiet import without_graphs

Key = int | str

_GONE = re.compile(r"(?:Input|Output) (\w+) does not exist in the graph")

#: Checks, which compute nothing.
_CHECKS = ("_assert_scalar", "_assert_tensor_metadata", "sym_constrain_range")


class Unsplittable(Exception):
    """A graph that no interval of can run on its own."""


@dataclass(frozen=True)
class Graph:
    """A program, and where each of the model's modules is in it."""

    program: Program
    #: Place of the first step of each module by path, and past its last.
    spans: Mapping[str, tuple[int, int]]
    #: Modules that run more than once.
    repeated: frozenset[str]
    #: Steps that belong to each module.
    members: Mapping[str, tuple[int, ...]]
    #: Name of the input at each place or keyword of the call.
    inputs: Mapping[Key, str]
    #: Values of tensors that no checkpoint holds.
    constants: Mapping[str, torch.Tensor]
    #: Parameters and buffers that steps read, by name.
    held: Mapping[str, torch.Tensor]
    #: Those of `held` that are parameters or buffers, not constants of the code.
    named: frozenset[str]
    #: How modules were called, where that was asked for.
    calls: Mapping[str, Any]


def export(
    module: torch.nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    dynamic: Mapping[Key, tuple[int, ...]],
    preserve: tuple[str, ...] = (),
) -> ExportedProgram:
    """Export a module in eval mode.

    Parameters
    ----------
    dynamic
        Axes of each argument that may have any size.
    preserve
        Modules of which to keep how they were called.
    """
    shapes = torch.export.ShapesCollection()
    given: dict[Key, Any] = dict(enumerate(args))
    given.update(kwargs.items())
    for key, axes in dynamic.items():
        shapes[given[key]] = dict.fromkeys(axes, torch.export.Dim.DYNAMIC)
    with torch.no_grad(), without_graphs():
        exported = torch.export.export(
            module,
            args,
            kwargs,
            dynamic_shapes=shapes.dynamic_shapes(module, args, kwargs),
            strict=False,
            preserve_module_call_signature=preserve,
        )
        result = decomposed(exported)
        # Decompositions lose some (torch 2.13: one of a minimum of sizes).
        result._guards_code = exported._guards_code
        return result


def decomposed(exported: ExportedProgram) -> ExportedProgram:
    """Run the decompositions; forget calls of modules whose values they take out.

    Torch keeps the names of what a module was given and returned, and refuses its own
    result where one is gone (2.13: a copy that copies nothing, a value nobody reads).
    """
    while True:
        try:
            result: ExportedProgram = exported.run_decompositions({})
            return result
        except SpecViolationError as error:
            gone = _GONE.search(str(error))
            known = [e for e in exported.module_call_graph if e.signature and e.fqn]
            if gone is None or not known:
                raise
            for entry in known:
                if gone[1] in _mentioned(entry.signature):
                    entry.signature = None
            if not any(entry.signature is None for entry in known):
                for entry in known:
                    entry.signature = None


def _mentioned(signature: Any) -> set[str]:
    arguments = (*signature.inputs, *signature.outputs)
    return {getattr(argument, "name", "") for argument in arguments}


class GraphReader:
    """Reads the program out of an export."""

    def __init__(
        self, exported: ExportedProgram, tokens_of: Callable[[Key], bool]
    ) -> None:
        self.exported, self.tokens_of = exported, tokens_of
        self.argument: dict[str, Any] = {}
        self.inputs: dict[Key, str] = {}
        self.held: dict[str, torch.Tensor] = {}
        self.named: set[str] = set()
        self.constants: dict[str, torch.Tensor] = {}
        self.spans: dict[str, tuple[int, int]] = {}
        self.members: dict[str, list[int]] = {}
        self.calls: dict[str, set[str]] = {}

    def read(self) -> Graph:
        """Return the graph.

        Raises
        ------
        Unsplittable
            If it changes buffers as it runs, or calls what has no name.
        """
        self._read_inputs()
        outputs = self._outputs()
        steps: list[Step] = []
        for node in self.exported.graph.nodes:
            if node.op == "call_function" and not _is_check(node):
                self._locate(node, len(steps))
                steps.append(self._step(node))
            elif node.op == "get_attr":
                raise Unsplittable(f"it runs {node.target}, a graph within its graph")
        values = self._values()
        program = Program(tuple(self.inputs.values()), tuple(steps), outputs, values)
        return Graph(
            program,
            self.spans,
            frozenset(path for path, calls in self.calls.items() if len(calls) > 1),
            {path: tuple(places) for path, places in self.members.items()},
            self.inputs,
            self.constants,
            self.held,
            frozenset(self.named),
            {
                entry.fqn: entry.signature
                for entry in self.exported.module_call_graph
                if entry.fqn and entry.signature is not None
            },
        )

    def _read_inputs(self) -> None:
        """Tell tensors that the model holds from those it is given."""
        given = []
        tensors = {**self.exported.state_dict, **self.exported.constants}
        for spec in self.exported.graph_signature.input_specs:
            name = getattr(spec.arg, "name", "")
            if spec.kind is InputKind.USER_INPUT:
                given.append(spec.arg)
                continue
            if spec.kind in (InputKind.CUSTOM_OBJ, InputKind.TOKEN):
                raise Unsplittable(f"it holds an object that is no tensor ({name})")
            target = str(spec.target)
            self.argument[name] = Held(target)
            tensor = tensors[target]
            self.held[target] = tensor
            if spec.kind is not InputKind.CONSTANT_TENSOR:
                self.named.add(target)
            if spec.kind is InputKind.CONSTANT_TENSOR or spec.persistent is False:
                self.constants[target] = tensor
        self._place_inputs(given)

    def _place_inputs(self, given: list[Any]) -> None:
        in_spec = self.exported.call_spec.in_spec
        args, kwargs = pytree.tree_unflatten(list(range(len(given))), in_spec)
        for key, place in (*enumerate(args), *kwargs.items()):
            if isinstance(place, int) and hasattr(given[place], "name"):
                name = given[place].name
                self.argument[name] = Ref(name)
                if not hasattr(given[place], "value"):
                    self.inputs[key] = name

    def _outputs(self) -> tuple[Any, ...]:
        node = next(n for n in self.exported.graph.nodes if n.op == "output")
        flat = []
        specs = self.exported.graph_signature.output_specs
        for spec, value in zip(specs, node.args[0], strict=True):
            if spec.kind is OutputKind.BUFFER_MUTATION:
                raise Unsplittable(f'it changes its buffer "{spec.target}" as it runs')
            if spec.kind is OutputKind.USER_OUTPUT:
                flat.append(self._leaf(value))
        return tuple(flat)

    def _leaf(self, value: Any) -> Any:
        if isinstance(value, fx.Node):
            return self.argument.get(value.name, Ref(value.name))
        return value

    def _step(self, node: fx.Node) -> Step:
        args = fx.node.map_aggregate(node.args, self._leaf)
        kwargs = fx.node.map_aggregate(node.kwargs, self._leaf)
        kind, target = _target(node.target)
        return Step(node.name, kind, target, _plain(args), _plain(kwargs))

    def _locate(self, node: fx.Node, place: int) -> None:
        """Note which modules a step belongs to."""
        for path, _ in (node.meta.get("nn_module_stack") or {}).values():
            bare, _, _ = path.partition("@")
            first, _ = self.spans.get(bare, (place, place))
            self.spans[bare] = (first, place + 1)
            self.members.setdefault(bare, []).append(place)
            self.calls.setdefault(bare, set()).add(path)

    def _values(self) -> dict[str, Value | Size]:
        measure = Measure(self.exported, self.inputs, self.tokens_of)
        nodes = [n for n in self.exported.graph.nodes if n.op != "output"]
        found = {n.name: measure.value(n.meta.get("val")) for n in nodes}
        return {name: value for name, value in found.items() if value is not None}


class Measure:
    """Reads sizes as functions of rows and tokens."""

    def __init__(
        self,
        exported: ExportedProgram,
        inputs: Mapping[Key, str],
        tokens_of: Callable[[Key], bool],
    ) -> None:
        self.rows: set[Any] = set()
        self.tokens: set[Any] = set()
        self.known: dict[Any, Size] = {}
        nodes = {n.name: n for n in exported.graph.nodes if n.op == "placeholder"}
        for key, name in inputs.items():
            shape = nodes[name].meta["val"].shape
            self._note(self.rows, shape[:1])
            self._note(self.tokens, shape[1:2] if tokens_of(key) else ())

    @staticmethod
    def _note(symbols: set[Any], sizes: Any) -> None:
        for size in sizes:
            if isinstance(size, torch.SymInt):
                symbols |= size.node.expr.free_symbols

    def value(self, found: Any) -> Value | Size | None:
        """Return what is known of a node's value."""
        if isinstance(found, torch.Tensor):
            shape = tuple(self.size(size) for size in found.shape)
            return Value(found.dtype, shape)
        if isinstance(found, (int, torch.SymInt)) and not isinstance(found, bool):
            return self.size(found)
        return None

    def size(self, size: int | torch.SymInt) -> Size:
        """Fit the expression at four batches; what does not fit is taken as fixed."""
        if not isinstance(size, torch.SymInt):
            return Size(int(size))
        expression = size.node.expr
        if expression not in self.known:
            self.known[expression] = self._fit(expression)
        return self.known[expression]

    def _fit(self, expression: Any) -> Size:
        def at(rows: int, tokens: int) -> int:
            given = dict.fromkeys(self.rows, rows) | dict.fromkeys(self.tokens, tokens)
            return int(expression.subs(given))

        try:
            sizes = (at(64, 64), at(128, 64), at(64, 128), at(128, 128))
        except TypeError:  # depends on values
            return Size(1)
        return fit(*sizes, rows=64, tokens=64)


def _is_check(node: fx.Node) -> bool:
    name = getattr(getattr(node.target, "overloadpacket", None), "__name__", "")
    return name.startswith(_CHECKS)


def _target(target: Any) -> tuple[Any, Any]:
    if isinstance(target, OpOverload):
        namespace, _, name = target._schema.name.partition("::")
        return "operator", (namespace, name, target._overloadname)
    if isinstance(target, torch._ops.HigherOrderOperator):
        raise Unsplittable(f"it runs {target.name()}, a graph within its graph")
    return "function", target


def _plain(value: Any) -> Any:
    """Return an argument of fx's own containers in plain ones."""
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, tuple):
        return tuple(_plain(item) for item in value)
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, slice):
        return slice(_plain(value.start), _plain(value.stop), _plain(value.step))
    return value
