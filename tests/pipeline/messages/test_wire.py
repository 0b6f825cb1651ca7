"""Values as messages between workers."""

import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from distributed.protocol.core import dumps, loads

from dask_infer.pipeline.messages.wire import pack, unpack

DTYPES = [
    torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.float8_e4m3fn,
    torch.int64, torch.int8, torch.uint8, torch.bool, torch.complex64,
]  # fmt: skip


def sent(values):
    """Values after a transfer, as Dask's comms serialise messages."""
    return unpack(loads(dumps(pack(values))))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (0, 3), (1,), (5, 2, 3)], ids=str)
def test_every_dtype_and_shape_passes(dtype, shape):  # PP-11
    tensor = (torch.arange(30, dtype=torch.float32) % 2)[: int(np.prod(shape))]
    tensor = tensor.reshape(shape).to(dtype)
    back = sent({"x": tensor})["x"]
    assert back.dtype == dtype and back.shape == tensor.shape
    assert back.to(torch.complex64).equal(tensor.to(torch.complex64))


def test_views_arrive_as_they_look():
    base = torch.arange(24.0).reshape(4, 6)
    views = {"t": base.T, "step": base[::2, 1::3], "wide": base[:1].expand(3, 6)}
    views["column"] = base[:1, 2]  # of one row: contiguous, with a stride of 6
    back = sent(views)
    assert all(back[name].equal(view) for name, view in views.items())


def test_received_tensors_may_be_written_into():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        back = sent({"x": torch.zeros(3)})["x"]
        back += 1
    assert back.tolist() == [1, 1, 1]


def test_buffers_that_start_anywhere_are_aligned():
    message = pack({"x": torch.arange(4.0)})
    raw = np.zeros(17, np.uint8)
    raw[1:] = message["frames"][0].data
    message["frames"] = [raw[1:]]
    back = unpack(message)["x"]
    assert back.data_ptr() % 4 == 0
    assert back.tolist() == [0, 1, 2, 3]


def test_all_else_comes_as_it_was():
    frame = pd.DataFrame({"a": [1, 2]})
    values = {0: None, "n": 3, "f": 0.5, "flag": True, "texts": ["a", "b"], "df": frame}
    back = sent(values)
    assert back.pop("df").equals(values.pop("df"))
    assert back == values
    assert [type(v) for v in back.values()] == [type(v) for v in values.values()]
