"""The ``output=`` of a call: which values a model returns, and what they are called."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from dask_infer.batch.outputs.parse_meta import OutputValue
from dask_infer.errors import OutputError
from dask_infer.spec import OutputColumn

#: One name, names of columns or fields, or ``{field: name}``.
Naming: TypeAlias = str | Sequence[str] | Mapping[str, str] | None

DEFAULT = "prediction"


def check_naming(output: Any) -> None:
    """Raise `ValueError` unless `output` is a name, names, or ``{field: name}``."""
    if output is None or isinstance(output, str):
        return
    names = list(output.values()) if isinstance(output, Mapping) else output
    strings = isinstance(names, Sequence) and all(isinstance(n, str) for n in names)
    if not strings or not names:
        raise ValueError(
            f"output={output!r} names no columns; pass a name, a list of names, or "
            '{"field": "name"}'
        )
    if len(set(names)) < len(names):
        raise ValueError(f"output={output!r} gives two columns the same name")


def name_values(
    found: Sequence[OutputValue], output: Naming, rows: int | None = None
) -> tuple[OutputColumn, ...]:
    """Return the columns that `output` makes of the values found.

    Only values that are picked need an entry for each of `rows`; where `output` picks
    none, those without are left out.

    Raises
    ------
    OutputError
        If `output` names what is not there, or more or less than is there.
    """
    check_naming(output)
    if output is None:
        found = [value for value in found if _refusal(value, rows) is None] or found
    picked = _picked(found, output)
    for value, _ in picked:
        if (reason := _refusal(value, rows)) is not None:
            raise OutputError(
                f"{reason} in {value}; it must return one for each row it is given: "
                'pick the fields that do by output={"field": "name"}, or pass '
                "postprocess= and meta="
            )
    if len(picked) == 1 and not isinstance(output, Mapping | str | None):
        return _split(picked[0][0], output)
    return tuple(_column(value, name) for value, name in picked)


def _refusal(value: OutputValue, rows: int | None) -> str | None:
    """Return why a value has no entry for each row; None where it has."""
    if rows is not None and value.rows != rows:
        return f"the model returns {value.rows} rows for {rows}"
    if value.uneven:
        return "the model returns rows whose size depends on the whole batch"
    return None


def name_meta_columns(
    declared: Sequence[OutputValue], output: Naming
) -> tuple[OutputColumn, ...]:
    """Return the columns that ``meta=`` declares, named by `output` too.

    Columns without a source are looked for by name or place on the worker.

    Raises
    ------
    ValueError
        If `output` and ``meta=`` name different columns.
    """
    check_naming(output)
    # Each named column, and the field it is looked for under, if any.
    sources: dict[str, str | None] = {}
    if isinstance(output, str):
        sources = {output: None}
    elif isinstance(output, Mapping):
        sources = {name: key for key, name in output.items()}
    elif output is not None:
        sources = {name: name for name in output}
    if [item.key for item in declared] == [None]:
        sources = sources or {DEFAULT: None}
        by_name = dict.fromkeys(sources, declared[0])
    else:
        by_name = {str(item.key): item for item in declared}
        sources = sources or {name: name for name in by_name}
    if len(by_name) < len(declared):
        raise ValueError(f"meta= names a column twice: {[d.key for d in declared]}")
    if set(sources) != set(by_name):
        raise ValueError(
            f"output= names {list(sources)}, meta= names {list(by_name)}; name the "
            "same columns in both, or in one of them alone"
        )
    return tuple(
        OutputColumn(name, by_name[name].dtype, by_name[name].shape, key)
        for name, key in sources.items()
    )


def _picked(
    found: Sequence[OutputValue], output: Naming
) -> list[tuple[OutputValue, str]]:
    """Return which values become columns, and the name of each."""
    by_key = {value.key: value for value in found}
    keys, listed = list(by_key), ", ".join(map(repr, by_key))
    wanted: dict[Any, str] = {}
    if output is None:
        for place, key in enumerate(keys):
            wanted[key] = key if isinstance(key, str) else f"{DEFAULT}_{place}"
        if keys == [None]:
            wanted = {None: DEFAULT}
    elif isinstance(output, Mapping):
        wanted = dict(output)
    else:
        names = [output] if isinstance(output, str) else list(output)
        wanted = dict(zip(names, names, strict=True))
        if by_key.keys().isdisjoint(names) and len(found) == 1:
            wanted = {keys[0]: names[0]}
        elif by_key.keys().isdisjoint(names) and not isinstance(output, str):
            if len(names) != len(found):
                raise OutputError(
                    f"output={output!r} names {len(names)}, the model returns "
                    f"{len(found)} arrays: {listed}; name each, or pick by "
                    'output={"field": "name"}'
                )
            wanted = dict(zip(keys, names, strict=True))
    unknown = [key for key in wanted if key not in by_key]
    if unknown and keys == [None]:
        raise OutputError(
            f"output={output!r} picks a field, but the model returns one array without "
            'a name; pass output="name"'
        )
    if unknown:
        raise OutputError(
            f"output={output!r}: the model returns no "
            f"{' or '.join(map(repr, unknown))}, only {listed}; pick and rename by "
            'output={"field": "name"}'
        )
    return [(by_key[key], name) for key, name in wanted.items()]


def _split(value: OutputValue, names: Sequence[str]) -> tuple[OutputColumn, ...]:
    """Return a column for each of the k numbers a row, or the one column of it all."""
    if len(names) == 1:
        return (_column(value, names[0]),)
    if value.shape == (len(names),):
        return tuple(
            OutputColumn(name, value.dtype, (), value.key, place)
            for place, name in enumerate(names)
        )
    width = value.shape[0] if len(value.shape) == 1 else None
    held = f"{width} columns" if width else f"rows of shape {value.shape}"
    raise OutputError(
        f"output={list(names)!r} names {len(names)}, the model returns "
        f"{'1 column' if value.shape == () else held}; name each column, or pass one "
        f'name such as output="{DEFAULT}"'
    )


def _column(value: OutputValue, name: str) -> OutputColumn:
    dtype, shape = value.dtype, value.shape
    if shape and dtype in ("string", "object"):
        dtype, shape = "object", ()
    if shape and not dtype.startswith(("int", "uint", "float", "bool")):
        raise OutputError(
            f"the model returns rows of shape {shape} of {dtype} in {value}, and only "
            "numbers can be lists; turn them into floats (torch.view_as_real, say) in "
            "postprocess="
        )
    return OutputColumn(name, dtype, shape, value.key)
