"""The call of a model on other workers: arguments and outputs as values by name.

Without `postprocess` a whole model there sends only the fields that are read. With it,
the structure that the model returned comes too: `postprocess` needs the frame, so the
feeder calls it.
"""

from __future__ import annotations

import pickle
from typing import Any

from torch.utils import _pytree as pytree

from dask_infer.batch.inputs.batch import Batch
from dask_infer.model.runtime.stage_model import read_chain
from dask_infer.run.postprocess import Postprocess
from dask_infer.spec import Job, UserCode

#: Name under which the structure of an output travels, and its leaves.
STRUCTURE = "infer structure"


class RemoteCall:
    """How the batches of one job become the payloads of a group, and back."""

    def __init__(self, job: Job, code: UserCode) -> None:
        self._postprocess = Postprocess(job, code)
        chain = None if job.group is None else job.group.chain
        self._chain = None if chain is None else read_chain(chain)
        #: Extra keyword arguments of a whole model; a chain has them built in.
        self._extra = {} if self._chain else code.call_kwargs
        #: The columns that are sent back, pickled; None asks for the whole structure.
        self.outputs: bytes | None = None
        if code.postprocess is None and self._chain is None:
            self.outputs = pickle.dumps(job.outputs)

    def bind(self, batch: Batch) -> dict[Any, Any]:
        """Return what the first stage gets for a call's arguments."""
        if self._chain is not None:
            bound: dict[Any, Any] = self._chain.bind(batch.args, batch.kwargs)
            return bound
        return {**dict(enumerate(batch.args)), **batch.kwargs, **self._extra}

    def fields(self, values: dict[Any, Any], batch: Batch) -> list[tuple[Any, Any]]:
        """Return the fields that become columns, after `postprocess`."""
        if self.outputs is not None:
            return list(values.items())
        chain = self._chain
        output = rebuilt(values) if chain is None else chain.output(values)
        return self._postprocess(output, batch, batch.args, batch.kwargs)


def called(values: dict[Any, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments that `RemoteCall.bind` packed."""
    args = tuple(values[place] for place in sorted(k for k in values if type(k) is int))
    return args, {name: v for name, v in values.items() if type(name) is not int}


def flattened(output: Any) -> dict[Any, Any]:
    """Return an output's leaves by number, and its structure."""
    leaves, structure = pytree.tree_flatten(output)
    return {**dict(enumerate(leaves)), STRUCTURE: structure}


def rebuilt(values: dict[Any, Any]) -> Any:
    """Return the output that `flattened` took apart."""
    structure = values[STRUCTURE]
    leaves = [values[number] for number in range(structure.num_leaves)]
    return pytree.tree_unflatten(leaves, structure)
