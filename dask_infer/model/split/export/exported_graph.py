"""The exported graph of a model, read as steps.

Checks of sizes are left out, as they would refuse batches of one row; `size_guards`
reads those that the model's code asks for.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping
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
from dask_infer.model.split.export.size_guards import Guard
from dask_infer.model.split.nesting import Structure
from dask_infer.model.split.steps import Step, Value, ValueRef, WeightRef
from dask_infer.model.split_refusals import NotExactError
from dask_infer.spec import ArgumentKey

#: Checks, which compute nothing.
_CHECKS = ("_assert_scalar", "_assert_tensor_metadata", "sym_constrain_range")


def functional(
    exported: ExportedProgram, sites: Iterable[CallSite] = ()
) -> ExportedProgram:
    """Take out in-place operations and graphs within the graph, where there are any.

    Across a cut they would give wrong numbers (torch 2.13).

    Raises
    ------
    NotExactError
        If they may change memory of which layers return views, unseen by torch.
    """
    nodes = exported.graph.nodes
    is_changed = any(written_by(node.target, (), {}) for node in nodes)
    if is_changed and any(site.signature.shares for site in sites):
        reason = "it changes a tensor in place, of which a layer may return a view"
        raise NotExactError(reason)
    if not is_changed and all(node.op != "get_attr" for node in nodes):
        return exported
    with torch.no_grad():
        result: ExportedProgram = exported.run_decompositions({})
    return result


class ExportedGraph:
    """The steps of an export, the structure of its output, and guards.

    Of arguments whose `examples` are padded axis 1 counts the tokens.

    Raises
    ------
    NotExactError
        If it changes buffers as it runs, or calls what has no name.
    """

    def __init__(
        self,
        exported: ExportedProgram,
        examples: Mapping[ArgumentKey, Example],
        sites: Mapping[int, CallSite],
        structure: Structure,
        guards: tuple[Guard, ...] = (),
    ) -> None:
        self._exported, self._sites = exported, sites
        self.structure, self.guards = structure, guards
        self.steps: list[Step] = []
        #: Name of the input at each place or keyword of the call.
        self.inputs: dict[ArgumentKey, str] = {}
        #: Parameters and buffers, by name.
        self.weights: dict[str, torch.Tensor] = {}
        #: Values of tensors that no checkpoint holds.
        self.constants: dict[str, torch.Tensor] = {}
        #: Place of the first step of each of the model's modules, by path.
        self.places: dict[str, int] = {}
        #: What stands for each node.
        self._refs: dict[str, Any] = {}
        #: Pickles of calls: alike ones have the same, and are timed once.
        self._pickled: dict[Any, bytes] = {}
        self._read_inputs()
        for node in exported.graph.nodes:
            higher = isinstance(node.target, torch._ops.HigherOrderOperator)
            if node.op == "get_attr" or higher:
                raise NotExactError(f"it runs {node.target}, a graph within its graph")
            if node.op == "call_function" and node.name not in self._refs:
                self._read_call(node)
        #: The leaves of the model's output: a `ValueRef`, or the value itself.
        self.outputs = tuple(self._read_outputs())
        #: What is known of values, by name.
        self.values = self._read_values(examples)

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
                self.weights[name] = tensors[name]
            if spec.kind is InputKind.CONSTANT_TENSOR or spec.persistent is False:
                self.constants[name] = tensors[name]
        in_spec = self._exported.call_spec.in_spec
        args, kwargs = pytree.tree_unflatten(given, in_spec)
        for key, argument in by_key(args, kwargs).items():
            if hasattr(argument, "name"):
                self._refs[argument.name] = ValueRef(argument.name)
                if not hasattr(argument, "value"):  # no constant
                    self.inputs[key] = argument.name

    def _read_outputs(self) -> Iterable[Any]:
        node = next(n for n in self._exported.graph.nodes if n.op == "output")
        specs = self._exported.graph_signature.output_specs
        for spec, value in zip(specs, node.args[0], strict=True):
            if spec.kind is OutputKind.BUFFER_MUTATION:
                raise NotExactError(f'it changes its "{spec.target}" as it runs')
            if spec.kind is OutputKind.USER_OUTPUT:
                leaf = self._leaf(value)
                if isinstance(leaf, WeightRef):
                    raise NotExactError(f'it returns its own "{leaf.name}"')
                yield leaf

    def _leaf(self, value: Any) -> Any:
        if isinstance(value, fx.Node):
            return self._refs.get(value.name, ValueRef(value.name))
        return value

    def _read_call(self, node: fx.Node) -> None:
        """Add the step of a call, unless it only checks something."""
        for path, _ in (node.meta.get("nn_module_stack") or {}).values():
            self.places.setdefault(path.partition("@")[0], len(self.steps))
        target: Any = node.target
        args: Any = fx.node.map_aggregate(node.args, self._leaf)
        kwargs: Any = fx.node.map_aggregate(node.kwargs, self._leaf)
        if not isinstance(target, OpOverload):
            self.steps.append(Step(node.name, "function", target, args, kwargs))
        elif target is OPERATOR:
            self._read_layer(node, args)
        elif not target._opname.startswith(_CHECKS):
            if target is torch.ops.aten.view.default:  # strides of layers are unknown
                target = torch.ops.aten.reshape.default
            names = (target.namespace, target._opname, target._overloadname)
            self.steps.append(Step(node.name, "operator", names, args, kwargs))

    def _read_layer(self, node: fx.Node, args: tuple[Any, ...]) -> None:
        """Add the call of the model's own layer; no list of what it returns is cut."""
        number, *operands = args
        path, *call = self._sites[number]
        # Structures may be of the user's own classes, and several of one name.
        known = repr(call), self._sites[number].signature.structure
        if known not in self._pickled:
            self._pickled[known] = pickling.to_bytes(call, pickling.DryRun())
        pickled = self._pickled[known]
        step = Step(node.name, "layer", path, tuple(operands), call=pickled)
        self.steps.append(step)
        for user in node.users:
            part = (ValueRef(node.name), user.args[1])
            self.steps.append(Step(user.name, "function", operator.getitem, part))
            self._refs[user.name] = ValueRef(user.name)

    def _read_values(self, examples: Mapping[ArgumentKey, Example]) -> dict[str, Value]:
        nodes = {node.name: node for node in self._exported.graph.nodes}
        names: dict[Any, Any] = {}
        for key, name in self.inputs.items():
            shape = nodes[name].meta["val"].shape
            sizes = {"rows": shape[0]}
            if None in examples[key].shape:
                sizes["tokens"] = shape[1]
            for what, size in sizes.items():
                if isinstance(size, torch.SymInt):
                    symbols = size.node.expr.free_symbols
                    names |= dict.fromkeys(symbols, type(next(iter(symbols)))(what))
        values = {}
        for node in nodes.values():
            value, ref = _value(node.meta.get("val"), names), self._leaf(node)
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
