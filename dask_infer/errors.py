"""The errors that users catch, and how errors travel between processes.

Every message names the cause, then the remedy. Dask sends errors to the client, and
the package sends them between stages. `make_portable` prepares an error for that: it
arrives with its class, its message and its cause. A cause whose class does not pickle,
or cannot be imported where it arrives, arrives as its text.
"""

from __future__ import annotations

import contextlib
import copyreg
import pickle
from collections.abc import Callable, Iterator
from operator import methodcaller
from types import FunctionType, TracebackType
from typing import Any

import cloudpickle

#: Errors of a chain of causes that travel; code that retries can make thousands.
MOST_LINKS = 20

#: Bytes of a pickled cause; a larger one, which may hold a batch, travels as its text.
MOST_BYTES = 1_000_000

#: Characters of a message: Dask splits longer ones up (distributed 2026.8.0).
MOST_TEXT = 9_000


class InferError(Exception):
    """Base of every error of dask_infer."""

    def __reduce__(self) -> tuple[Any, ...]:
        # Without a call of the class, whose `__init__` may need other arguments; with
        # the cause, which Python does not pickle.
        return _revived, (*_bare(self), _portable(_chain(self)[1:]))


class InputError(InferError, ValueError):
    """A column or a row cannot become what the model reads."""


class OutputError(InferError, ValueError):
    """What the model returned cannot become the promised columns."""

    #: Only a value does not fit, so it is the fault of its row; structure, shape and
    #: dtype are as promised. Otherwise it is not the fault of a row.
    of_a_row: bool = False


class ModelLoadError(InferError):
    """The model cannot be found, trusted, read or held in memory."""


class PlacementError(InferError):
    """No worker can hold the model, a stage or a replica."""


class PartitionError(InferError):
    """A partition failed on a worker; the cause is chained."""

    #: Number of the partition in the collection that was computed.
    partition: int | None = None
    #: Index labels of the rows that failed, a `pandas.Index`; None for the partition.
    rows: Any = None
    #: What failed: "input", "preprocess", "forward", "postprocess" or "output".
    step: str | None = None
    #: Stage of the pipeline in which it failed; None for a model in one piece.
    stage: int | None = None
    #: Address of the worker on which it failed; "local" where there are no workers.
    worker: str | None = None

    def __init__(self, message: str, **attributes: Any) -> None:
        super().__init__(message)
        vars(self).update(attributes)

    @property
    def cause(self) -> BaseException | None:
        """The error that was raised on the worker; None after a timeout."""
        return self.__cause__


@contextlib.contextmanager
def naming_model(name: str) -> Iterator[None]:
    """Make errors say which of several models they are of."""
    try:
        yield
    except Exception as error:
        if error.args and (isinstance(error, InferError) or type(error) is ValueError):
            error.args = (f"{name}: {error.args[0]}", *error.args[1:])
        raise


def make_portable(error: BaseException) -> None:
    """Replace the causes of an error by ones that can be pickled."""
    error.__cause__, error.__context__ = _portable(_chain(error)[1:]), None
    if isinstance(error, InferError) and len(str(error)) > MOST_TEXT:
        error.args = (f"{str(error)[:MOST_TEXT]}...",)


class PickledError(Exception):
    """An error and its causes while they travel; unpickling returns that error."""

    def __init__(self, data: bytes | None, text: str) -> None:
        super().__init__(text)
        self.data = data

    def __reduce__(self) -> tuple[Any, ...]:
        # Tracebacks pickle where tblib is in use: in the workers of Dask they are.
        frames = TracebackType in copyreg.dispatch_table
        trace = self.__traceback__ if frames else None
        return _unpickled, (self.data, self.args[0], self.__cause__, trace)


def pickled(error: BaseException) -> bytes:
    """Return an error and its causes pickled, without frames."""
    return pickle.dumps(_portable(_chain(error), frames=False))


def _chain(error: BaseException) -> list[BaseException]:
    """Return an error and its causes as Python shows them, each of them once."""
    chain: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and len(chain) <= MOST_LINKS:
        if any(link is known for known in chain):
            break  # a circle of causes, in which pickling would not end
        chain.append(link)
        shown = link.__cause__ is None and not link.__suppress_context__
        link = link.__context__ if shown else link.__cause__
    return chain


def _portable(chain: list[BaseException], frames: bool = True) -> PickledError | None:
    portable: PickledError | None = None
    for error in reversed(chain):
        if isinstance(error, PickledError):
            portable = error
            continue
        portable, cause = PickledError(_pickled(error), _described(error)), portable
        portable.__cause__ = cause
        if frames:
            portable.__traceback__ = error.__traceback__
    return portable


def _described(error: BaseException) -> str:
    try:
        return f"{type(error).__name__}: {error}"
    except Exception:
        return type(error).__name__


def _pickled(error: BaseException) -> bytes | None:
    """Return an error pickled without causes and frames; None if it does not pickle."""
    for whole in (True, False):
        for reduce in (_bare, methodcaller("__reduce__")):
            try:
                data: bytes = cloudpickle.dumps(_lighter(reduce(error), whole))
                again = _revived(*pickle.loads(data))
                same = type(again).__qualname__ == type(error).__qualname__
                if same and str(again) == str(error) and len(data) <= MOST_BYTES:
                    return data
            except Exception:  # whatever the user's own code raises
                continue
    return None


def _lighter(reduced: Any, whole: bool) -> tuple[Any, ...]:
    """Return the parts of an error; unless `whole`, only attributes that pickle."""
    make, args, *rest = reduced
    state = rest[0] if rest else {}
    if not whole and isinstance(state, dict):
        state = {name: value for name, value in state.items() if _passes(value)}
    return make, args, state


def _passes(value: object) -> bool:
    try:
        return len(cloudpickle.dumps(value)) <= MOST_BYTES
    except Exception:
        return False


def _bare(error: BaseException) -> Any:
    """Return the parts of an error for whose class pickle would call `__init__`.

    That may need other arguments than were passed to `Exception.__init__`.
    """
    own = type(error)
    if own.__reduce__ is not InferError.__reduce__ and (
        own.__reduce__ is not BaseException.__reduce__
        or not isinstance(own.__init__, FunctionType)
    ):
        return None
    return own.__new__, (own, *error.args), vars(error)


def _revived(
    make: Callable[..., BaseException],
    args: tuple[Any, ...],
    state: Any,
    cause: BaseException | None = None,
) -> BaseException:
    error = make(*args)
    if state:
        error.__setstate__(state)
    error.__cause__ = cause
    return error


def _unpickled(
    data: bytes | None,
    text: str,
    cause: BaseException | None,
    trace: TracebackType | None,
) -> BaseException:
    try:
        error = RuntimeError(text) if data is None else _revived(*pickle.loads(data))
    except Exception:  # a class that is not there, a device that is not
        error = RuntimeError(text)
    error.__cause__ = cause
    return error.with_traceback(trace)
