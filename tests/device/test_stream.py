"""The one face of devices, on the null stream of the CPU and on a real accelerator."""

import collections

import pytest
import torch

from dask_infer.device.device_names import check_device_name
from dask_infer.device.resolve_device import resolve_device
from dask_infer.device.stream import BlockingStream, Stream, map_tensors
from dask_infer.errors import PlacementError

Pair = collections.namedtuple("Pair", "left right")


def check_stream(stream, device):
    """What every stream must do with a row of batches."""
    batches = [torch.arange(6.0).reshape(2, 3) + i for i in range(5)]
    pending = []
    for batch in batches:
        (x,), kwargs = stream.upload((batch,), {"scale": torch.tensor(2.0)})
        assert x.device.type == device
        pending.append(stream.download([(None, x * kwargs["scale"]), ("n", 3)]))
    for batch, out in zip(batches, pending, strict=True):
        (_, doubled), (_, n) = out()
        assert doubled.device.type == "cpu"
        assert torch.equal(doubled, batch * 2)
        assert n == 3


def test_null_stream():
    check_stream(Stream(), "cpu")


def test_blocking_stream():
    check_stream(BlockingStream(torch.device("cpu")), "cpu")


@pytest.mark.gpu
def test_cuda_stream_overlaps_and_keeps_values():
    check_stream(resolve_device("cuda").stream(), "cuda")


def test_null_stream_copies_nothing():
    batch = torch.ones(3)
    (entered,), _ = Stream().upload((batch,), {})
    assert entered is batch


def test_tensors_are_mapped_in_nested_containers():
    value = {"a": [torch.ones(1), "text"], "b": Pair(torch.ones(2), None)}
    mapped = map_tensors(lambda t: t + 1, value)
    assert torch.equal(mapped["a"][0], torch.full((1,), 2.0))
    assert mapped["a"][1] == "text"
    assert torch.equal(mapped["b"].left, torch.full((2,), 2.0))


@pytest.mark.parametrize("name", ["auto", "cpu", "cuda", "cuda:1", "mps"])
def test_device_names(name):
    assert check_device_name(name) == name


@pytest.mark.parametrize("name", ["gpu", "cpu:1", "cuda:x", "", None, 0])
def test_other_device_names_are_refused(name):
    with pytest.raises(ValueError, match='pass "auto", "cpu", "cuda"'):
        check_device_name(name)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_a_missing_device_is_named():
    with pytest.raises(PlacementError, match="sees 0 CUDA devices"):
        resolve_device("cuda")


def test_one_device_object_a_process():
    assert resolve_device("cpu") is resolve_device("auto") or torch.cuda.is_available()
