"""A draw: a frame, a model of the catalogue, a request, and ways to run it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import pandas as pd
import torch
from hypothesis import strategies as st

from dask_infer import Layout
from tests.oracle.catalogue import CATALOGUE
from tests.oracle.entries import Arg, Entry
from tests.oracle.frames import INDEXES, Column, Frame, columns, cuts

#: What needs no cluster. A split takes some 0.1 s.
LOCAL = (Layout(),) * 39 + (Layout(sweep=True, stages=2),)
#: What four workers hold; no model has nine stages.
ELSEWHERE: tuple[Layout | str, ...] = (
    Layout(stages=2),
    Layout(stages=2, replicas=2, microbatch=2),
    Layout(stages=3, window=1, microbatch=1),
    Layout(stages=9),
    Layout(shards=2),
    Layout(shards=2, replicas=2, window=1, microbatch=1),
    Layout(shards=3, microbatch=2),
    Layout(stages=2, shards=2),
    Layout(replicas=1),
    Layout(replicas=3, window=1, microbatch=2),
    Layout(sweep=True, stages=3),
    Layout(stages="auto"),
    Layout(shards="auto"),
    #: Stands for the name of a module: see `named_cut`.
    Layout(stages=("middle",)),
    Layout(stages=("middle",), shards=2, microbatch=2),
    "auto",
)
#: What each worker of the cluster has one of.
RESOURCES = {"SLOT": 1}
ON_ERROR = ("raise", "null", "quarantine")


@dataclass(frozen=True)
class Run:
    """One form of a request: none of this may change a value."""

    cut: tuple[int, ...]
    batch_size: int | str
    on_error: str
    scheduler: str
    #: `parallel=`.
    parallel: Layout | str = LOCAL[0]
    #: Each part of the model holds `RESOURCES`.
    resources: bool = False
    #: The model is the only one of `Towers`.
    towers: bool = False

    @property
    def layout(self) -> Layout:
        """How the model is spread, or may be."""
        return LOCAL[0] if isinstance(self.parallel, str) else self.parallel

    @property
    def largest(self) -> int:
        """The most rows that a batch of one partition has."""
        sizes = (self.batch_size, self.layout.microbatch)
        limits = [size for size in sizes if isinstance(size, int)]
        return min([max(self.cut, default=0), *limits])


@dataclass(frozen=True)
class Draw:
    """One draw. Its repr is what a failure shows."""

    entry: str
    frame: Frame
    #: Columns by argument.
    reads: tuple[tuple[str, ...], ...]
    #: Arguments of `predict`.
    request: dict[str, Any]
    #: Columns of the result, by field of the entry's outputs.
    outputs: dict[str, str]
    runs: tuple[Run, ...]
    #: `series.infer.predict`.
    series: bool = False
    #: The request's functions by name, see `FUNCTIONS`.
    functions: dict[str, str] = field(default_factory=dict)

    @property
    def model(self) -> Entry:
        """The entry of the catalogue."""
        return CATALOGUE[self.entry]


def same_frame(frame: pd.DataFrame) -> pd.DataFrame:
    """A `preprocess` that returns its rows."""
    return frame


def copied_frame(frame: pd.DataFrame) -> pd.DataFrame:
    """A `preprocess` that returns other memory, under another index."""
    return frame.copy().reset_index(drop=True)


def same_output(output: Any, frame: pd.DataFrame) -> Any:
    """A `postprocess` that changes nothing."""
    return output


def same_output_of_inputs(output: Any, frame: pd.DataFrame, inputs: Any) -> Any:
    """A `postprocess` that reads the inputs and changes nothing."""
    return output


FUNCTIONS = {
    f.__name__: f
    for f in (same_frame, copied_frame, same_output, same_output_of_inputs)
}


def named_cut(entry: Entry) -> tuple[str, ...]:
    """Return the name of the module before which to cut a model, if it has layers."""
    if entry.blocks == 1:
        return ("middle",)
    modules = dict(entry.make().named_modules())
    second = ("layers.1", "encoder.layer.1", "h.1", "2")
    return next((name,) for name in second if name in modules)


@st.composite
def draws(
    draw: st.DrawFn, name: str, parallel: Layout | str, resources: bool = False
) -> Draw:
    """Draw one."""
    entry = CATALOGUE[name]
    if isinstance(parallel, Layout) and parallel.stages == ("middle",):
        parallel = replace(parallel, stages=named_cut(entry))
    rows = draw(st.integers(0, 9))
    made: dict[str, Column] = {}
    args = [replace(arg, missing=False) for arg in entry.args]
    args = args if entry.structure else list(entry.args)
    reads = tuple(_columns(draw, rows, arg, made) for arg in args)
    form, selection = _selection(draw, entry, reads, made)
    if form != "none":
        _others(draw, rows, made)
    request: dict[str, Any] = dict(entry.call)
    if form != "none" and form != "series":
        request["columns"] = selection
    keep = draw(st.sampled_from((None, None, True, False, "list")))
    if form == "series" and keep == "list":
        keep = True
    if keep is not None:
        request["keep"] = list(made)[-1:] if keep == "list" else keep
    outputs = _outputs(draw, entry, request)
    if "row_wise" not in request and draw(st.integers(0, 9)) == 0:
        request["row_wise"] = False
    shapes = {
        name: (made[name].width,)
        for names in reads
        for name in names
        if made[name].holds == "list" and not made[name].is_fixed
    }
    if shapes and (entry.inferred or draw(st.booleans())):
        request["shapes"] = shapes
    # Elsewhere a group of its own would have to be formed for it.
    if parallel == LOCAL[0] and draw(st.integers(0, 9)) == 0:
        request["device"] = draw(st.sampled_from(("cpu", torch.device("cpu"))))
    if entry.args[0].kind in ("text", "ids"):
        request["batch_tokens"] = draw(st.sampled_from(("auto", None, 1, 8)))
    # What `preprocess` makes of values that no dtype describes needs `meta=`.
    known = "meta" in request or not any(
        made[name].is_known_late(name in shapes) for names in reads for name in names
    )
    functions = _functions(draw, entry, known)
    runs = st.builds(
        Run,
        cuts(rows),
        st.sampled_from(("auto", 1, 2, 3, max(rows, 1))),
        st.sampled_from(ON_ERROR),
        st.sampled_from(("sync",) * 6 + ("threads",)),
        st.just(parallel),
        st.just(resources),
        st.sampled_from((False,) * 7 + (True,)),
    )
    ways = (draw(runs),)
    if draw(st.integers(0, 2)) == 0:
        other = ON_ERROR[(ON_ERROR.index(ways[0].on_error) + 1) % 3]
        ways = (*ways, replace(draw(runs), on_error=other))
    source = draw(st.sampled_from(("parts",) * 8 + ("divided",) * 3 + ("parquet",)))
    if not rows or entry.structure:
        source = "parts"
    frame = Frame(made, draw(st.sampled_from(INDEXES)), source, rows)
    return Draw(
        entry.name, frame, reads, request, outputs, ways,
        form == "series", functions,
    )  # fmt: skip


WEIGHTED = tuple(name for name, entry in CATALOGUE.items() for _ in range(entry.weight))
#: Models of several layers, which stages and shards divide.
LAYERED = tuple(name for name, entry in CATALOGUE.items() if entry.blocks > 1)
_ALONE = tuple(name for name in WEIGHTED if CATALOGUE[name].models == 1)
#: What is drawn with `ELSEWHERE`: two of three have several layers.
SPREAD = _ALONE + LAYERED * (2 * len(_ALONE) // len(LAYERED))


def _columns(
    draw: Any, rows: int, arg: Arg, made: dict[str, Column]
) -> tuple[str, ...]:
    """Draw the columns of one argument into `made`; return their names."""
    kinds: list[tuple[str, int]]
    if arg.kind == "frame":
        kinds = [(holds, 0) for holds in arg.holds]
    elif arg.kind == "vector" and arg.lists and draw(st.integers(0, 3)) == 0:
        kinds = [("list", arg.width)]
    elif arg.kind == "vector":
        holds = st.sampled_from(arg.holds)
        same = draw(st.booleans())
        one = draw(holds)
        kinds = [(one if same else draw(holds), 0) for _ in range(arg.width)]
    else:
        kinds = [(draw(st.sampled_from(arg.holds)), arg.width)]
    names = []
    for place, (holds, width) in enumerate(kinds):
        name = arg.names[place] if arg.names else "abcdefgh"[len(made)]
        made[name] = draw(
            columns(rows, holds, width, arg.missing, arg.values, arg.dtypes)
        )
        names.append(name)
    return tuple(names)


def is_stack(arg: Arg, columns: list[Column]) -> bool:
    """Whether the columns of an argument are named by a list."""
    return arg.kind in ("vector", "frame") and columns[0].holds != "list"


def _selection(draw: Any, entry: Entry, reads: Any, made: Any) -> tuple[str, Any]:
    elements = [
        list(names) if is_stack(arg, [made[n] for n in names]) else names[0]
        for arg, names in zip(entry.args, reads, strict=True)
    ]
    forms = []
    if len(elements) == 1:
        # All columns are stacked, also where there is one.
        stacked = entry.args[0].kind == "scalar" or entry.reads == "frame"
        forms += ["bare", "bare"]
        forms += [] if stacked and isinstance(elements[0], str) else ["none"]
        if isinstance(elements[0], str):
            forms += ["series"]
    if entry.reads != "frame":
        forms += ["tuple", "tuple"]
        if all(arg.keyword for arg in entry.args):
            forms += ["dict"]
    allowed = [form for form in forms if form in entry.forms]
    form = draw(st.sampled_from(allowed))
    if form == "dict":
        keywords = [str(arg.keyword) for arg in entry.args]
        return form, dict(zip(keywords, elements, strict=True))
    return form, tuple(elements) if form == "tuple" else elements[0]


def _others(draw: Any, rows: int, made: dict[str, Column]) -> None:
    """Draw columns that the model does not read."""
    if draw(st.booleans()):
        made["id"] = draw(columns(rows, "int"))
    if draw(st.booleans()):
        made["note"] = draw(columns(rows, "text"))


def _functions(draw: Any, entry: Entry, known: bool) -> dict[str, str]:
    """Draw functions that change nothing."""
    found = {}
    if known and "preprocess" not in entry.call and draw(st.integers(0, 5)) == 0:
        found["preprocess"] = draw(st.sampled_from(("same_frame", "copied_frame")))
    # It sees generated sequences as they are, with their padding.
    free = {"postprocess", "generate"}.isdisjoint(
        (*entry.call, entry.call.get("method"))
    )
    if free and draw(st.integers(0, 7)) == 0:
        names = ("same_output", "same_output_of_inputs")
        found["postprocess"] = draw(st.sampled_from(names))
    return found


def _outputs(draw: Any, entry: Entry, request: dict[str, Any]) -> dict[str, str]:
    """Draw names of the outputs, and `meta=`, into `request`."""
    promised = draw(st.integers(0, 4)) == 0 if entry.inferred else True
    listed = any(out.ndim and entry.inferred for out in entry.outputs.values())
    promised = promised and not listed
    if list(entry.outputs) == [""]:
        return {"": _one(draw, entry, request, promised)}
    fields = list(entry.outputs)
    if "output" in request:
        return dict(request["output"])
    if promised and not all(name.isdigit() for name in fields):
        dtypes = {name: out.dtype for name, out in entry.outputs.items()}
        forms = ["dict", "pairs"]
        request["meta"] = (
            dtypes if draw(st.sampled_from(forms)) == "dict" else [*dtypes.items()]
        )
        return {name: name for name in fields}
    naming = draw(st.sampled_from(("none", "renamed", "picked")))
    places = all(name.isdigit() for name in fields)
    if naming == "none":
        return {name: f"prediction_{name}" if places else name for name in fields}
    if places:
        request["output"] = [f"out_{name}" for name in fields]
        return {name: f"out_{name}" for name in fields}
    chosen = fields if naming == "renamed" else fields[:1]
    request["output"] = {name: f"out_{name}" for name in chosen}
    return dict(request["output"])


def _one(draw: Any, entry: Entry, request: dict[str, Any], promised: bool) -> str:
    """Draw the name of the only output."""
    if "output" in request:
        return str(request["output"])
    dtype = entry.outputs[""].dtype
    forms = ["none", "output"]
    if promised:
        forms = ["dtype", "output dtype", "dict", "pair", "series"]
    form = draw(st.sampled_from(forms))
    if form == "none":
        return "prediction"
    if form == "output":
        request["output"] = "score"
    elif form == "dtype":
        request["meta"] = dtype
        return "prediction"
    elif form == "output dtype":
        request |= {"output": "score", "meta": dtype}
    elif form == "dict":
        request["meta"] = {"score": dtype}
    elif form == "pair":
        request["meta"] = ("score", dtype)
    else:
        request["meta"] = pd.Series([], dtype=dtype, name="score")
    return "score"
