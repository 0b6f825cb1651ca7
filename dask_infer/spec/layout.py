"""How a model is spread over workers."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from numbers import Integral
from typing import Literal

from dask_infer.views.view import View


@dataclass(frozen=True)
class Layout:
    """How one model is spread: whole replicas, layer groups, or slices of layers.

    Parameters
    ----------
    replicas
        Complete copies of the model that work side by side; ``"auto"`` is as many
        as the free workers can hold.
    stages
        Layer groups, each on a worker of its own: a number, ``"auto"`` for the fewest
        that fit, or the names of the modules before which to cut.
    shards
        Workers that share the weights of each layer: a number, or ``"auto"`` for the
        fewest that fit, two at least; ``parallel="tensor"``. With `stages` those of
        each stage.
    window
        Microbatches admitted and not yet finished; ``"auto"`` is twice the stages.
    microbatch
        Rows of one microbatch.
    sweep
        Whether the layer groups run one after the other in the process that holds the
        rows, each loaded once for all rows that wait; ``parallel="sweep"``. Then
        `stages` are the layer groups, ``"auto"`` unless it says otherwise.
    """

    replicas: int | Literal["auto"] = "auto"
    stages: int | Literal["auto"] | tuple[str, ...] = 1
    shards: int | Literal["auto"] = 1
    window: int | Literal["auto"] = "auto"
    microbatch: int | Literal["auto"] = "auto"
    sweep: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        if isinstance(self.stages, list):
            object.__setattr__(self, "stages", tuple(self.stages))
        for name in ("replicas", "stages", "shards", "window", "microbatch"):
            value = getattr(self, name)
            if isinstance(value, Integral):
                object.__setattr__(self, name, int(value))
                if isinstance(value, bool) or value < 1:
                    raise ValueError(
                        f"Layout({name}={value!r}): {name} must be a positive whole "
                        "number"
                    )
            elif name == "stages" and isinstance(value, tuple) and value:
                if not all(isinstance(each, str) for each in value):
                    raise ValueError(
                        f"Layout(stages={list(value)!r}): a list names the modules "
                        'before which to cut, such as ["layer.4"]'
                    )
            elif value != "auto":
                raise ValueError(
                    f'Layout({name}={value!r}): pass a positive whole number or "auto"'
                )
        if not isinstance(self.sweep, bool):
            raise ValueError(f"Layout(sweep={self.sweep!r}): pass True or False")
        if self.sweep:
            self._check_sweep()

    def _check_sweep(self) -> None:
        for name, default in (("replicas", "auto"), ("shards", 1), ("window", "auto")):
            value = getattr(self, name)
            if value != default:
                raise ValueError(
                    f"Layout(sweep=True, {name}={value!r}): each process sweeps the "
                    f"rows that it has; leave out {name}="
                )
        if self.stages == 1:
            object.__setattr__(self, "stages", "auto")

    def _repr_html_(self) -> str | None:
        lines = {name: str(value) for name, value in asdict(self).items()}
        return View("Layout", lines).html()

    def short(self) -> str:
        """Return how to write it, without what is as it is by default."""
        given = [
            f"{each.name}={getattr(self, each.name)!r}"
            for each in fields(self)
            if getattr(self, each.name) != each.default
        ]
        return f"Layout({', '.join(given)})"

    @property
    def is_local(self) -> bool:
        """Whether every process holds the whole model itself."""
        return self == Layout()
