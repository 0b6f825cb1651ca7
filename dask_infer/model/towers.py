"""Several models on the same rows, as the user names them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from dask_infer.model.combine import Combine

#: Arguments of `predict` that each of several models may have for itself.
OPTIONS = frozenset(
    {
        *("batch_size", "batch_tokens", "preprocess", "tokenizer", "postprocess"),
        *("method", "call_kwargs", "shapes", "dtype", "device", "parallel"),
        *("resources", "timeout", "output", "meta"),
    }
)
COMBINES = ("mean", "vote", "stack")


@dataclass(frozen=True)
class Member:
    """One of several models: what it reads, and its own arguments of `predict`."""

    model: Any
    columns: Any = None
    options: Mapping[str, Any] = field(default_factory=dict)


class Towers:
    """Models on different columns of the same rows, and what combines their outputs.

    Accepted wherever a model is. Each tower has its own batch size, layout and workers;
    a row's outputs stand side by side in the end. A tower whose outputs are not read is
    not run, and its columns are not read.

    Parameters
    ----------
    towers
        ``{name: (model, columns)}``, or ``(model, columns, options)``: what the model
        reads, as ``columns=`` of `predict`, and arguments of `predict` for it alone:
        ``batch_size``, ``batch_tokens``, ``preprocess``, ``tokenizer``,
        ``postprocess``, ``method``, ``call_kwargs``, ``shapes``, ``dtype``,
        ``device``, ``parallel``, ``resources``, ``timeout``, ``output``, ``meta``. A
        model alone reads all columns.
    head
        A model, or ``(model, columns, options)``, that reads the towers' outputs: one
        keyword argument a tower, by name, an estimator all of them as columns. Without
        a head the result has the columns ``tower``, or ``tower_field`` where a tower
        returns several.

    Examples
    --------
    >>> Towers({"image": (abs, "pixels"), "table": (max, ["a", "b"])}, head=sum)
    Towers(image=abs, table=max, head=sum)
    """

    def __init__(self, towers: Mapping[str, Any], head: Any = None) -> None:
        if not isinstance(towers, Mapping) or not towers:
            raise ValueError(
                f"Towers({towers!r}): pass a dict of one tower or more, such as "
                '{"image": (model, "pixels"), "table": (other, ["a", "b"])}'
            )
        for name in towers:
            if not isinstance(name, str) or not name:
                raise ValueError(f"Towers: {name!r} is no name of a tower; pass a text")
        self.towers = {
            name: _member(f'tower "{name}"', given) for name, given in towers.items()
        }
        self.head = None if head is None else _member("head", head)

    @property
    def members(self) -> list[Member]:
        """The towers, and the head after them."""
        return [*self.towers.values(), *filter(None, [self.head])]

    def __repr__(self) -> str:
        named = dict(zip([*self.towers, "head"], self.members, strict=False))
        shown = ", ".join(f"{key}={_shown(each.model)}" for key, each in named.items())
        return f"Towers({shown})"


class Ensemble:
    """Models on the same columns, whose outputs are combined row by row.

    Accepted wherever a model is; ``columns=`` and all else of the call are for each of
    the models. `Towers` among them read their own columns.

    Parameters
    ----------
    models
        Models whose outputs are alike; each alone, or as in `Towers`: ``(model,
        columns)`` or ``(model, columns, options)``.
    combine
        ``"mean"`` of numbers, in float32 at least; ``"vote"``: the label that most
        models give, the smallest of those given equally often; ``"stack"``: arrays
        ``(n, k, ...)`` of the ``k`` models' outputs; or a function ``f([outputs]) ->
        output`` on NumPy arrays, of which ``meta=`` says what it returns.

    Examples
    --------
    >>> Ensemble([abs, round], combine="vote")
    Ensemble([abs, round], combine='vote')
    """

    def __init__(
        self,
        models: Sequence[Any],
        combine: Literal["mean", "vote", "stack"] | Callable[..., Any] = "mean",
    ) -> None:
        if not isinstance(models, list | tuple) or not models:
            raise ValueError(f"Ensemble({models!r}): pass a list of models")
        is_model = hasattr(combine, "predict") or hasattr(combine, "state_dict")
        if is_model or not (combine in COMBINES or callable(combine)):
            raise ValueError(
                f'Ensemble(combine={_shown(combine)}): pass "mean", "vote", "stack" or '
                "a function of the list of outputs; a model that combines is the head "
                "of dask_infer.Towers"
            )
        self.members = [_member(f"member {i}", each) for i, each in enumerate(models)]
        self.combine = combine

    def __repr__(self) -> str:
        models = ", ".join(_shown(each.model) for each in self.members)
        how = self.combine if isinstance(self.combine, str) else None
        combine = repr(how) if how else _shown(self.combine)
        return f"Ensemble([{models}], combine={combine})"


def single_models(model: Any, method: str | None = None) -> Iterator[Member]:
    """Return the models of which a model consists: itself, if it is a single one.

    What combines an ensemble is one of them.
    """
    if not isinstance(model, Towers | Ensemble):
        yield Member(model, options={"method": method})
        return
    if isinstance(model, Ensemble):
        yield Member(Combine(model.combine), options={"method": None})
    for member in model.members:
        yield from single_models(member.model, member.options.get("method", method))


def _member(where: str, given: Any) -> Member:
    if not isinstance(given, tuple):
        return Member(given)
    if not 2 <= len(given) <= 3:
        raise ValueError(
            f"{where} has {len(given)} parts; pass (model, columns) or (model, columns,"
            " {argument: value})"
        )
    member = Member(*given)
    if not isinstance(member.options, Mapping):
        raise ValueError(
            f"{where}: {member.options!r} are no options; pass a dict of arguments of "
            'predict(), such as {"batch_size": 32}'
        )
    for name in member.options:
        if name not in OPTIONS:
            raise ValueError(
                f"{where} has the option {name!r}; a tower may have "
                f"{', '.join(sorted(OPTIONS))}, all else is for the whole: pass it to "
                "predict()"
            )
    return member


def _shown(model: Any) -> str:
    if isinstance(model, str):
        return repr(model)
    name = getattr(model, "__name__", None)
    if name is None and isinstance(model, Towers | Ensemble):
        return repr(model)
    return name or type(model).__name__
