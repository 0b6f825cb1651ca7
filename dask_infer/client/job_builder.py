"""A request made a job, on the client: of one model, or of several that are combined.

Each of several models is a request of its own over the same rows; what combines them is
one over a frame of their outputs, whose columns are known before anything runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pandas as pd
from pandas.api.types import is_scalar

from dask_infer.batch.outputs.column_dtypes import pandas_dtype
from dask_infer.batch.outputs.naming import DEFAULT, name_values
from dask_infer.batch.outputs.parse_meta import OutputValue, meta_pairs
from dask_infer.batch.outputs.resolve_outputs import check_names
from dask_infer.batch.tensor.lists import is_list, to_dense
from dask_infer.client.call_inputs import kept_columns
from dask_infer.client.combined_outputs import (
    check_classes,
    check_meta,
    combined_outputs,
    stacked_meta,
)
from dask_infer.client.model_call import InputRows
from dask_infer.client.model_job import build_model_job
from dask_infer.client.request import Request
from dask_infer.errors import InputError, naming_model
from dask_infer.model.combine import Combine
from dask_infer.model.recognise import recognise
from dask_infer.model.registry import format_of
from dask_infer.model.shapes.trace_errors import TWO
from dask_infer.model.towers import Ensemble, Member, Towers
from dask_infer.spec import (
    ERROR_COLUMN,
    AnyJob,
    OutputColumn,
    Outputs,
    Tower,
    TowersJob,
)

#: Arguments that say how a model is called: of `Towers` each tower has its own.
CALLS = ("preprocess", "tokenizer", "postprocess", "method", "call_kwargs")


def build_job(request: Request, expr: Any) -> tuple[AnyJob, tuple[Any, ...]]:
    """Return the job, and the columns of its result, for the rows of `expr`."""
    rows = InputRows.of(expr)
    kept = kept_columns(request.keep, rows.meta.columns)
    job = _job(request, rows, kept)
    return job, (*kept, *job.names)


def _job(request: Request, rows: InputRows, kept: tuple[Any, ...] = ()) -> AnyJob:
    if isinstance(request.model, Towers):
        return _towers_job(request, request.model, rows, kept)
    if isinstance(request.model, Ensemble):
        return _ensemble_job(request, request.model, rows, kept)
    return build_model_job(request, rows, kept)


def _part(request: Request, member: Member, **arguments: Any) -> Request:
    """Return the request of one of several models; its own options come first."""
    options = {"keep": False, **arguments, **member.options}
    return replace(request, model=member.model, columns=member.columns, **options)


def _tower(
    title: str,
    name: str,
    request: Request,
    member: Member,
    rows: InputRows,
    **arguments: Any,
) -> Tower:
    """Return one of several models; `name` is that of its output among all."""
    with naming_model(title):
        job = _job(_part(request, member, **arguments), rows)
    own = job.outputs.names
    full = [f"{name}_{each.removeprefix(f'{DEFAULT}_')}" for each in own]
    names = [name] if own == (DEFAULT,) else full
    return Tower(title, job, tuple(zip(own, names, strict=True)))


def _on_error(request: Request, has_head: bool) -> Any:
    """Return `on_error` of one of several models.

    What combines them leaves out the rows that one failed on, so it must know them.
    """
    nullable = request.on_error != "raise"
    return "quarantine" if nullable and has_head else request.on_error


def _declared(request: Request, kept: tuple[Any, ...]) -> list[tuple[Any, Any]]:
    """Return what ``meta=`` says of outputs: names and dtypes."""
    pairs = [] if request.meta is None else meta_pairs(request.meta)
    return [p for p in pairs if p[0] not in kept and p[0] != ERROR_COLUMN]


# --- towers ---------------------------------------------------------------------------


def _towers_job(
    request: Request, model: Towers, rows: InputRows, kept: tuple[Any, ...]
) -> TowersJob:
    """Return the job of towers: a request each, and one of the head."""
    _check_call(request, rows)
    has_head = model.head is not None
    meta = {} if has_head else _meta_by_tower(request, model, kept)
    own = {"output": None, "on_error": _on_error(request, has_head)}
    towers = [
        _tower(f'tower "{name}"', name, request, each, rows, meta=meta.get(name), **own)
        for name, each in model.towers.items()
    ]
    combine = _headed if has_head else _headless
    return combine(request, towers, kept)


def _check_call(request: Request, rows: InputRows) -> None:
    # A series names its column, which is all that there is.
    only = is_scalar(request.columns) and [request.columns] == [*rows.meta.columns]
    if request.columns is not None and not only:
        raise ValueError(
            "columns=: each tower names its own, as Towers({name: (model, columns)}); "
            "leave out columns="
        )
    for name in CALLS:
        if getattr(request, name) is not None:
            raise ValueError(
                f"{name}=: each tower has its own; pass it in Towers({{name: (model, "
                f'columns, {{"{name}": ...}})}}, head=(model, columns, {{...}}))'
            )


def _meta_by_tower(
    request: Request, model: Towers, kept: tuple[Any, ...]
) -> dict[str, Any]:
    """Return ``meta=`` of the whole as that of each tower."""
    found: dict[str, dict[str | None, Any]] = {}
    for key, dtype in _declared(request, kept):
        names = [n for n in model.towers if key == n or str(key).startswith(f"{n}_")]
        if not names:
            raise ValueError(
                f"meta=: {key!r} is no output of a tower; the outputs are named tower "
                f"or tower_field, and the towers are {', '.join(model.towers)}"
            )
        name = max(names, key=len)
        field = None if key == name else key.removeprefix(f"{name}_")
        found.setdefault(name, {})[field] = dtype
    return found


def _headless(
    request: Request, towers: Sequence[Tower], kept: tuple[Any, ...]
) -> TowersJob:
    values = [
        OutputValue(full, column.dtype, column.shape)
        for full, column in _columns(towers).items()
    ]
    columns = name_values(values, request.output)
    if any(column.index is not None for column in columns):
        raise ValueError(
            "output=: the columns of a tower are named in its options: Towers({name: "
            '(model, columns, {"output": [...]})})'
        )
    outputs = check_names(
        Outputs(columns), kept, quarantine=request.on_error == "quarantine"
    )
    names = {column.field: column.name for column in columns}
    towers = [
        replace(
            tower,
            columns=tuple((o, names[f]) for o, f in tower.columns if f in names),
        )
        for tower in towers
    ]
    job = TowersJob("Towers", tuple(towers), outputs, on_error=request.on_error)
    return job.reading(job.names)


def _headed(
    request: Request, towers: Sequence[Tower], kept: tuple[Any, ...]
) -> TowersJob:
    member: Member = request.model.head
    several = isinstance(member.model, Towers | Ensemble)
    method = member.options.get("method")
    fitted = not several and format_of(recognise(member.model, method).spec).is_fitted
    # It is small, and reads what is here.
    arguments: dict[str, Any] = {"shapes": None, "parallel": "data", "resources": None}
    with naming_model("head"):
        by_tower = member.columns is None and not isinstance(member.model, Towers)
        if by_tower:
            names = [*_columns(towers)]
            columns = names if fitted else _by_tower(request.model, towers)
            member = replace(member, columns=columns)
        if fitted:
            arguments["preprocess"] = spread_lists
        part = _part(request, member, **arguments)
        try:
            head = _job(part, _rows_of(towers), kept)
        except InputError as error:
            if not by_tower or not str(error).endswith(TWO):
                raise
            raise InputError(
                f"{str(error).removesuffix(TWO)}name the towers as the head's "
                "arguments, or name what each reads: head=(model, columns)"
            ) from None
    return TowersJob(
        "Towers", tuple(towers), head.outputs, head, on_error=request.on_error
    )


def _by_tower(model: Towers, towers: Sequence[Tower]) -> dict[str, Any]:
    """Return the columns that a head reads: an argument a tower."""
    found: dict[str, Any] = {}
    for name, tower in zip(model.towers, towers, strict=True):
        full = [full for _, full in tower.columns]
        found[name] = full if len(full) > 1 else full[0]
        if len(full) > 1 and any(c.shape for c in tower.job.outputs.columns):
            raise InputError(
                f"it reads one argument a tower, and {tower.name} returns "
                f"{', '.join(full)}; pick one in the tower's options, such as "
                f'{{"output": {{"{tower.columns[0][0]}": "{name}"}}}}, or name what it '
                "reads: head=(model, columns)"
            )
    return found


def _columns(towers: Sequence[Tower]) -> dict[str, OutputColumn]:
    """Return the outputs of all towers by their names, which differ."""
    found: dict[str, OutputColumn] = {}
    for tower in towers:
        own = {column.name: column for column in tower.job.outputs.columns}
        for name, full in tower.columns:
            if full in found:
                raise ValueError(
                    f'two outputs of towers are named "{full}"; name the towers, or '
                    "their outputs, otherwise"
                )
            found[full] = own[name]
    return found


def _rows_of(towers: Sequence[Tower]) -> InputRows:
    """Return the towers' outputs as rows, which is what a head gets."""
    dtypes = {name: pandas_dtype(column) for name, column in _columns(towers).items()}
    return InputRows(
        pd.DataFrame({n: pd.Series([], dtype=dtype) for n, dtype in dtypes.items()})
    )


def spread_lists(frame: pd.DataFrame) -> pd.DataFrame:
    """Return a frame for an estimator: a column for each number of a list."""
    columns: dict[str, Any] = {}
    for name, series in frame.items():
        if is_list(series.dtype):
            block = to_dense(series)
            columns |= {f"{name}_{i}": each for i, each in enumerate(block.T)}
        else:
            columns[str(name)] = series
    return pd.DataFrame(columns, index=frame.index)


# --- ensembles ------------------------------------------------------------------------


def _ensemble_job(
    request: Request, model: Ensemble, rows: InputRows, kept: tuple[Any, ...]
) -> TowersJob:
    """Return the job of an ensemble: a request a model, and one that combines them."""
    how = model.combine
    fields = request.output if isinstance(request.output, dict) else None
    uncalled: dict[str, Any] = dict.fromkeys(CALLS)
    arguments = {
        # Fields that are not read are not carried along.
        "output": None if fields is None else {key: key for key in fields},
        "meta": None if request.meta is None else _member_meta(request, how, kept),
        "on_error": _on_error(request, has_head=True),
    }
    towers = []
    for place, member in enumerate(model.members):
        own = uncalled if isinstance(member.model, Towers) else {}
        if member.columns is None and not own:
            member = replace(member, columns=request.columns)
        title, options = f"member {place}", {**arguments, **own}
        towers.append(_tower(title, f"m{place}", request, member, rows, **options))
    if how in ("mean", "stack"):
        check_classes(how, model, request.method)
    names = _fields(towers)
    columns = {full: full for tower in towers for _, full in tower.columns}
    part = Member(Combine(how), columns)
    here = {
        **uncalled,
        "call_kwargs": {"names": names},
        **{"parallel": "data", "resources": None, "device": "cpu"},
        **{"dtype": None, "shapes": None},
    }
    rows = _rows_of(towers)
    if callable(how):
        head = build_model_job(_part(request, part, **here), rows, kept)
    else:
        values = combined_outputs(how, towers, list(names[0]))
        outputs = Outputs(name_values(values, request.output))
        check_meta(how, outputs, _declared(request, kept))
        known = {"batch_size": "auto", "timeout": None, "meta": None, **here}
        if any(c.dtype == "string" for t in towers for c in t.job.outputs.columns):
            known["preprocess"] = with_missing_texts
        head = build_model_job(_part(request, part, **known), rows, kept, outputs)
    return TowersJob(
        "Ensemble", tuple(towers), head.outputs, head, on_error=request.on_error
    )


def with_missing_texts(frame: pd.DataFrame) -> dict[str, Any]:
    """Return labels as votes are counted: a text that a model does not give is None."""
    labels: dict[str, Any] = {}
    for name, series in frame.items():
        if is_list(series.dtype):
            labels[str(name)] = to_dense(series)
        elif isinstance(series.dtype, pd.StringDtype):
            texts = series.astype(object)
            labels[str(name)] = texts.where(texts.notna(), None).tolist()
        else:
            labels[str(name)] = series.to_numpy()
    return labels


def _member_meta(request: Request, how: Any, kept: tuple[Any, ...]) -> Any:
    """Return ``meta=`` of the combined outputs as that of each model's own."""
    output = request.output
    if callable(how) or (how == "stack" and not isinstance(output, dict | str | None)):
        return None
    renamed = output if isinstance(output, dict) else {}
    fields = {name: field for field, name in renamed.items()}
    pairs = [(fields.get(n, n), dtype) for n, dtype in _declared(request, kept)]
    return stacked_meta(pairs) if how == "stack" else pairs


def _fields(towers: Sequence[Tower]) -> list[dict[str | None, str]]:
    """Return of each model its outputs' names by field; None for one without a name.

    Where all have one output it is the same, whatever each calls it.
    """
    names = {own for tower in towers for own, _ in tower.columns}
    nameless = names if all(len(tower.columns) == 1 for tower in towers) else {DEFAULT}
    nameless = nameless if len(names) > 1 else {DEFAULT}
    return [
        {None if own in nameless else own: full for own, full in tower.columns}
        for tower in towers
    ]
