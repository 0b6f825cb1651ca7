"""A group's answer made the fields that become columns, as a local replica's is.

Without `postprocess` a whole model elsewhere sends only the fields that are read. With
it, the structure that the model returned comes too: `postprocess` is called with that,
here, since it needs the frame.
"""

from __future__ import annotations

import pickle
from typing import Any

from torch.utils import _pytree as pytree

from dask_infer.batch.inputs.batch import Batch
from dask_infer.model.runtime.stage_model import read_chain
from dask_infer.run.postprocess import Postprocess
from dask_infer.spec import Code, Job

#: Name under which the structure of an output travels, and its leaves.
STRUCTURE = "infer structure"


class Returned:
    """What comes back of the microbatches of one job."""

    def __init__(self, job: Job, code: Code) -> None:
        self._postprocess = Postprocess(job, code)
        group = job.group
        self._chain = (
            None if group is None or group.chain is None else read_chain(group.chain)
        )
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

    def postprocess(
        self, values: dict[Any, Any], batch: Batch
    ) -> list[tuple[Any, Any]]:
        """Return the fields of an answer, after `postprocess`."""
        if self.outputs is not None:
            return list(values.items())
        chain = self._chain
        output = rebuilt(values) if chain is None else chain.output(values)
        return self._postprocess(output, batch, batch.args, batch.kwargs)


def called(values: dict[Any, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the call that `Returned.bind` made values of."""
    args = tuple(values[place] for place in sorted(k for k in values if type(k) is int))
    return args, {name: v for name, v in values.items() if type(name) is not int}


def flattened(output: Any) -> dict[Any, Any]:
    """Return an output's leaves by number, and its structure."""
    leaves, structure = pytree.tree_flatten(output)
    return {**dict(enumerate(leaves)), STRUCTURE: structure}


def rebuilt(values: dict[Any, Any]) -> Any:
    """Return the output that `flattened` made values of."""
    structure = values[STRUCTURE]
    leaves = [values[number] for number in range(structure.num_leaves)]
    return pytree.tree_unflatten(leaves, structure)
