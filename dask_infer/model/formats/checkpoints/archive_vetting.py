"""What a ``*.pt2`` archive holds, read without running any of it.

``torch.export.load`` runs code from a crafted archive on several paths: pickles
that the weights-only loader refused are loaded in full, symbolic sizes are evaluated
as Python, an operator's name may be any function below ``torch``, names end up in
generated source, and compiled libraries are opened. So every part is checked first,
by torch's own reader, and what is not known to be harmless is refused.
"""

from __future__ import annotations

import ast
import io
import json
import re
from typing import Any

import torch

#: Operators of torch and its sister libraries; others may do anything.
_NAMESPACES = {"aten", "prims", "quantized", "quantized_decomposed"}
_NAMESPACES |= {"torchvision", "torchaudio"}

#: Operators of those that touch files, the process or objects.
_UNSAFE = re.compile(r"(save|load|.*file.*|.*path.*|.*pickle.*|Print|print|.*import.*)")

_HIGHER_ORDER = {
    "associative_scan",
    "cond",
    "map_impl",
    "scan",
    "while_loop",
    "wrap_with_autocast",
    "wrap_with_set_grad_enabled",
}

_OPERATORS = re.compile(
    r"add|sub|mul|floordiv|truediv|mod|pow|neg|pos|abs|eq|ne|lt|le|gt|ge|and_|or_|xor|"
    r"not_|lshift|rshift|getitem"
)

#: Constructors that symbolic sizes are written with.
_SYMBOLIC = re.compile(
    r"Symbol|Integer|Rational|Float|Add|Mul|Pow|Max|Min|Abs|Eq|Ne|Lt|Le|Gt|Ge|Equality|"
    r"Unequality|(Strict)?(Less|Greater)Than|And|Or|Not|Piecewise|ExprCondPair|floor|"
    r"ceiling|FloorDiv|ModularIndexing|Where|PythonMod|Mod|CleanDiv|CeilDiv|LShift|"
    r"RShift|PowByNatural|FloatPow|FloatTrueDiv|IntTrueDiv|RoundDecimal|ToFloat|"
    r"Identity|IsNonOverlappingAndDenseIndicator|(Ceil|Floor|Round|Trunc)ToInt|"
    r"TruncToFloat|OpaqueUnaryFn_\w+"
)

_EXPRESSION_NODES = (
    ast.Expression,
    ast.BinOp,
    ast.UnaryOp,
    ast.BoolOp,
    ast.Compare,
    ast.operator,
    ast.unaryop,
    ast.boolop,
    ast.cmpop,
    ast.keyword,
    ast.Load,
    ast.Tuple,
)

_IDENTIFIER = re.compile(r"([A-Za-z]\w*|_\w*)?", re.ASCII)
_PLAIN = re.compile(r"[\w.\-:@+]*", re.ASCII)

#: Text that nothing evaluates: origins for error messages, and string arguments.
_INERT = {"metadata", "as_string", "as_strings", "guards_code", "torch_version"}

#: Names that become variables of generated source.
_VARIABLES = {"name", "as_name", "forward_arg_names"}


class Refused(Exception):
    """The archive holds something that could run code."""


def vet_archive(path: str) -> None:
    """Raise `Refused`, naming the part, unless loading the archive runs no code."""
    from torch.export.pt2_archive import PT2ArchiveReader

    with PT2ArchiveReader(path) as archive:
        names = archive.get_file_names()
        for name in names:
            _vet_entry(name, archive)


def _vet_entry(name: str, archive: Any) -> None:
    folder, _, _ = name.rpartition("/")
    if name.startswith("data/aotinductor"):
        raise Refused(f"{name} is compiled code")
    if name.startswith("models/"):
        _vet_json(json.loads(archive.read_string(name)))
    elif name.endswith("_config.json"):
        _vet_payloads(json.loads(archive.read_string(name)), folder, archive)
    elif name.endswith(".pt"):
        _vet_pickle(name, archive.read_bytes(name))


def _vet_payloads(payloads: dict[str, Any], folder: str, archive: Any) -> None:
    for entry in payloads["config"].values():
        name = f"{folder}/{entry['path_name']}"
        if not _PLAIN.fullmatch(entry["path_name"]):
            raise Refused(f"{name!r} is no plain file name")
        if re.match(r"custom_obj|opaque", entry["path_name"]):
            raise Refused(f"{name} is an object with code of its own")
        if entry.get("use_pickle"):
            _vet_pickle(name, archive.read_bytes(name))


def _vet_pickle(name: str, data: bytes) -> None:
    if not data:
        return
    try:
        torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:
        cause = str(error).strip().splitlines()[0]
        raise Refused(f"{name} holds more than weights ({cause})") from error


def _vet_json(value: Any, key: str = "") -> None:
    """Check every text of a program below `key`."""
    if key in _INERT:
        return
    if isinstance(value, dict):
        for name, below in value.items():
            if name in ("as_custom_obj", "custom_obj"):
                raise Refused("the program uses objects with code of their own")
            _vet_plain(name)
            _vet_json(below, name)
    elif isinstance(value, list):
        for below in value:
            _vet_json(below, key)
    elif isinstance(value, str):
        _vet_text(value, key)


def _vet_text(text: str, key: str) -> None:
    if key == "expr_str":
        _vet_expression(text)
    elif key in ("target", "as_operator"):
        _vet_operator(text)
    elif key in ("in_spec", "out_spec"):
        _vet_structure(json.loads(text))
    elif key in _VARIABLES and not _IDENTIFIER.fullmatch(text):
        raise Refused(f"{text!r} is no variable's name")
    else:
        _vet_plain(text)


def _vet_plain(text: str) -> None:
    if not _PLAIN.fullmatch(text):
        raise Refused(f"{text!r} is no plain name")


def _vet_structure(value: Any) -> None:
    """Check how arguments and outputs nest; a context is JSON in JSON."""
    if isinstance(value, list):
        for below in value:
            _vet_structure(below)
    elif isinstance(value, dict):
        if value.get("type") == "collections.defaultdict" or "__enum__" in value:
            raise Refused("the program's arguments or outputs name Python objects")
        for name, below in value.items():
            _vet_plain(name)
            _vet_structure(_context(below) if name == "context" else below)
    elif isinstance(value, str):
        _vet_plain(value)


def _context(value: Any) -> Any:
    try:
        return json.loads(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _vet_operator(target: str) -> None:
    parts = target.split(".")
    root, name = parts[0], parts[-1]
    if root == "_operator" and len(parts) == 2 and _OPERATORS.fullmatch(name):
        return
    if root == "math" and len(parts) == 2 and not name.startswith("_"):
        return
    if root == "torch" and len(parts) == 2 and re.fullmatch(r"_?sym_\w+", name):
        return
    if parts[:2] == ["torch", "ops"] and len(parts) in (4, 5):
        namespace, operator = parts[2:4]
        if namespace == "higher_order" and operator in _HIGHER_ORDER:
            return
        if namespace in _NAMESPACES and not _UNSAFE.fullmatch(operator):
            return
    raise Refused(f"{target!r} is no operator of torch")


def _vet_expression(text: str) -> None:
    try:
        tree = ast.parse(text, mode="eval")
    except SyntaxError as error:
        raise Refused(f"{text!r} is no symbolic size") from error
    for node in ast.walk(tree):
        if not _is_symbolic(node):
            raise Refused(f"{text!r} is no symbolic size")


def _is_symbolic(node: ast.AST) -> bool:
    if isinstance(node, ast.Call):
        name = node.func.id if isinstance(node.func, ast.Name) else ""
        return bool(_SYMBOLIC.fullmatch(name))
    if isinstance(node, ast.Name):
        return not node.id.startswith("_")
    if isinstance(node, ast.Constant):
        plain = isinstance(node.value, str) and bool(_PLAIN.fullmatch(node.value))
        return plain or isinstance(node.value, (bool, int, float))
    return isinstance(node, _EXPRESSION_NODES)
