"""The exported graph of a model, as a program.

Checks of sizes are left out, as they would refuse batches of one row; `size_guards`
reads those that the model's code asks for.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch._ops import OpOverload
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind
from torch.utils import _pytree as pytree
from torch.utils._sympy.printers import PythonPrinter

from dask_infer.model.identity import pickling
from dask_infer.model.shapes.call_arguments import by_key
from dask_infer.model.shapes.trace_errors import Example
from dask_infer.model.split.export.layer_operator import OPERATOR, CallSite
from dask_infer.model.split.export.learn_layer import written_by
from dask_infer.model.split.layer_returns import Input, Signature
from dask_infer.model.split.nesting import Structure, put_together
from dask_infer.model.split.program import Program, Step, Value, ValueRef, WeightRef
from dask_infer.model.split_refusals import NotExactError
from dask_infer.spec import ArgumentKey

#: Checks, which compute nothing.
_CHECKS = ("_assert_scalar", "_assert_tensor_metadata", "sym_constrain_range")


@dataclass(frozen=True)
class Graph:
    """A program, and where each of the model's modules is in it."""

    program: Program
    #: Of the model's output.
    structure: Structure
    #: Place of the first step of each of the model's modules, by path.
    places: Mapping[str, int]
    #: Name of the input at each place or keyword of the call.
    inputs: Mapping[ArgumentKey, str]
    #: Values of tensors that no checkpoint holds.
    constants: Mapping[str, torch.Tensor]
    #: Parameters and buffers, by name.
    weights: Mapping[str, torch.Tensor]


def functional(
    exported: ExportedProgram, sites: Mapping[int, CallSite]
) -> ExportedProgram:
    """Take out in-place operations and graphs within the graph, where there are any.

    Across a cut they would give wrong numbers (torch 2.13).

    Raises
    ------
    NotExactError
        If they change memory of which layers return views, unseen by torch.
    """
    written: set[fx.Node] = set()
    shared: set[fx.Node] = set()
    is_nested = False
    for node in exported.graph.nodes:
        changed: Any = written_by(node.target, node.args, node.kwargs)
        fx.node.map_arg(changed, lambda one: written.add(_origin(one)))
        if node.target is OPERATOR and sites[node.args[0]].signature.shares:
            shared |= {_origin(one) for one in (*node.all_input_nodes, *node.users)}
        is_nested = is_nested or node.op == "get_attr"
    if written & shared:
        reason = "it changes a tensor in place of which a layer returns a view"
        raise NotExactError(reason)
    if not written and not is_nested:
        return exported
    with torch.no_grad():
        result: ExportedProgram = exported.run_decompositions({})
    return result


def _origin(node: fx.Node) -> fx.Node:
    """Return the node that made the memory of a tensor."""
    while node.op == "call_function":
        first: Any = node.args[0] if node.args else None
        schema = getattr(node.target, "_schema", None)
        is_view = schema is not None and schema.arguments[0].alias_info is not None
        is_part = node.target is operator.getitem and first.target is not OPERATOR
        if not isinstance(first, fx.Node) or not (is_view or is_part):
            break
        node = first
    return node


class GraphReader:
    """Reads the program out of an export.

    Parameters
    ----------
    structure
        Of the model's output.
    examples
        The arguments of the call: of padded ones axis 1 counts the tokens.
    sites
        What calls of the layers' operator stand for.
    has_glue
        Whether code of the model's own runs around the layers.
    """

    def __init__(
        self,
        exported: ExportedProgram,
        structure: Structure,
        examples: Mapping[ArgumentKey, Example],
        sites: Mapping[int, CallSite],
        *,
        has_glue: bool = True,
    ) -> None:
        self._exported, self._structure = exported, structure
        self._examples, self._sites, self._has_glue = examples, sites, has_glue
        self._steps: list[Step] = []
        #: What stands for each node.
        self._refs: dict[str, Any] = {}
        self._inputs: dict[ArgumentKey, str] = {}
        self._weights: dict[str, torch.Tensor] = {}
        self._constants: dict[str, torch.Tensor] = {}
        self._places: dict[str, int] = {}
        self._pickled: dict[int, bytes] = {}

    def read(self) -> Graph:
        """Return the graph.

        Raises
        ------
        NotExactError
            If it changes buffers as it runs, or calls what has no name.
        """
        self._read_inputs()
        for node in self._exported.graph.nodes:
            higher = isinstance(node.target, torch._ops.HigherOrderOperator)
            if node.op == "get_attr" or higher:
                raise NotExactError(f"it runs {node.target}, a graph within its graph")
            if node.op != "call_function" or node.name in self._refs:
                continue
            for path, _ in (node.meta.get("nn_module_stack") or {}).values():
                self._places.setdefault(path.partition("@")[0], len(self._steps))
            if node.target is OPERATOR:
                self._read_layer(node)
            elif not _is_check(node):
                self._read_step(node)
        inputs, outputs = tuple(self._inputs.values()), self._outputs()
        return Graph(
            Program(inputs, tuple(self._steps), outputs, self._values()),
            self._structure,
            self._places,
            self._inputs,
            self._constants,
            self._weights,
        )

    def _read_inputs(self) -> None:
        """Separate tensors that the model holds from those it is given."""
        given = []
        tensors = {**self._exported.state_dict, **self._exported.constants}
        for spec in self._exported.graph_signature.input_specs:
            if spec.kind is InputKind.USER_INPUT:
                given.append(spec.arg)
                continue
            if spec.kind in (InputKind.CUSTOM_OBJ, InputKind.TOKEN):
                raise NotExactError(f"it holds an object that is no tensor: {spec.arg}")
            name = str(spec.target)
            self._refs[spec.arg.name] = WeightRef(name)
            if spec.kind is not InputKind.CONSTANT_TENSOR:
                self._weights[name] = tensors[name]
            if spec.kind is InputKind.CONSTANT_TENSOR or spec.persistent is False:
                self._constants[name] = tensors[name]
        in_spec = self._exported.call_spec.in_spec
        args, kwargs = pytree.tree_unflatten(given, in_spec)
        for key, argument in by_key(args, kwargs).items():
            if hasattr(argument, "name"):
                self._refs[argument.name] = ValueRef(argument.name)
                if not hasattr(argument, "value"):  # no constant
                    self._inputs[key] = argument.name

    def _outputs(self) -> tuple[Any, ...]:
        node = next(n for n in self._exported.graph.nodes if n.op == "output")
        flat = []
        specs = self._exported.graph_signature.output_specs
        for spec, value in zip(specs, node.args[0], strict=True):
            if spec.kind is OutputKind.BUFFER_MUTATION:
                raise NotExactError(f'it changes its "{spec.target}" as it runs')
            if spec.kind is OutputKind.USER_OUTPUT:
                flat.append(self._leaf(value))
                if isinstance(flat[-1], WeightRef):
                    raise NotExactError(f'it returns its own "{flat[-1].name}"')
        return tuple(flat)

    def _leaf(self, value: Any) -> Any:
        if isinstance(value, fx.Node):
            return self._refs.get(value.name, ValueRef(value.name))
        return value

    def _add(self, name: str, kind: Any, target: Any, *args: Any) -> ValueRef:
        """Add a step, and return what stands for its value."""
        self._steps.append(Step(name, kind, target, args))
        return ValueRef(name)

    def _read_step(self, node: fx.Node) -> None:
        args = fx.node.map_aggregate(node.args, self._leaf)
        kwargs = fx.node.map_aggregate(node.kwargs, self._leaf)
        target: Any = node.target
        if not isinstance(target, OpOverload):
            self._steps.append(Step(node.name, "function", target, args, kwargs))
            return
        if target is torch.ops.aten.view.default:  # strides of layers are not known
            target = torch.ops.aten.reshape.default
        namespace, _, name = target._schema.name.partition("::")
        names = (namespace, name, target._overloadname)
        self._steps.append(Step(node.name, "operator", names, args, kwargs))

    def _read_layer(self, node: fx.Node) -> None:
        """Add the call of the model's own layer, and what takes apart its output."""
        arguments: Any = node.args
        site = self._sites[arguments[0]]
        tensors, sizes = ([*map(self._leaf, part)] for part in arguments[1:])

        def argument(leaf: Any) -> Any:
            if not isinstance(leaf, Input):
                return leaf
            if leaf.kind is not torch.SymBool:
                return (tensors if leaf.kind is torch.Tensor else sizes)[leaf.place]
            name = f"{node.name}_flag_{leaf.place}"
            return self._add(name, "function", bool, sizes[leaf.place])

        call = site.call
        args, kwargs = put_together(call.structure, map(argument, call.leaves))
        output = ValueRef(f"{node.name}_output")
        self._steps.append(Step(output.name, "layer", site.path, args, kwargs))
        returned = site.path, self._learned(site.signature)
        leaves = self._add(node.name, "leaves", returned, output, tensors, sizes)
        for user in node.users:
            number: Any = user.args[1]
            place = site.signature.made[number].place
            part = self._add(user.name, "function", operator.getitem, leaves, place)
            self._refs[user.name] = part

    def _learned(self, signature: Signature) -> bytes:
        """Pickle what a layer returns: a program imports no class of the user's."""
        if id(signature) not in self._pickled:
            learned = (signature, self._has_glue)
            pickled = pickling.to_bytes(learned, pickling.DryRun())
            self._pickled[id(signature)] = pickled
        return self._pickled[id(signature)]

    # Sizes

    def _values(self) -> dict[str, Value]:
        nodes = {node.name: node for node in self._exported.graph.nodes}
        names: dict[Any, Any] = {}
        for key, name in self._inputs.items():
            shape = nodes[name].meta["val"].shape
            sizes = {"rows": shape[0]}
            if None in self._examples[key].shape:
                sizes["tokens"] = shape[1]
            for what, size in sizes.items():
                if isinstance(size, torch.SymInt):
                    symbols = size.node.expr.free_symbols
                    names |= dict.fromkeys(symbols, type(next(iter(symbols)))(what))
        values = {}
        for node in nodes.values():
            value = _value(node.meta.get("val"), names)
            ref = self._leaf(node)
            if value is not None and isinstance(ref, ValueRef):
                values[ref.name] = value
        return values


def _value(found: Any, names: Mapping[Any, Any]) -> Value | None:
    """Return what is known of a node's value; None where nothing is."""
    is_tensor = isinstance(found, torch.Tensor)
    if not is_tensor and type(found) not in (int, torch.SymInt):
        return None
    shape: list[int | str] = []
    for size in found.shape if is_tensor else [found]:
        if isinstance(size, torch.SymInt):
            expression = size.node.expr.xreplace(names)
            if not expression.free_symbols <= set(names.values()):
                return None  # known only once it runs
            shape.append(PythonPrinter().doprint(expression))
        else:
            shape.append(int(size))
    return Value(found.dtype if is_tensor else None, tuple(shape))


def _is_check(node: fx.Node) -> bool:
    name = getattr(getattr(node.target, "overloadpacket", None), "__name__", "")
    return name.startswith(_CHECKS)
