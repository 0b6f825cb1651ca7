"""Digests of large data: every byte counts, the number of cores does not."""

import hashlib
import types

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dask_infer.model.identity import parallel_hash as hashing
from dask_infer.model.identity.content_key import content_key


def test_small_data_stays_as_it_is():
    assert bytes(hashing.parallel_hash(b"")) == b""
    assert bytes(hashing.parallel_hash(memoryview(b"abc"))) == b"abc"


@settings(max_examples=50, deadline=None)
@given(st.binary(min_size=9, max_size=100), st.integers(1, 8), st.integers(1, 5))
def test_chunks_are_in_order_on_any_number_of_cores(data, size, cores):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hashing, "CHUNK", size)
        patch.setattr(hashing, "SMALL", 8)
        patch.setattr(hashing, "_cores", lambda: cores)
        found = hashing.parallel_hash(data)
    cut = [data[start : start + size] for start in range(0, len(data), size)]
    assert found == b"".join(hashlib.sha256(chunk).digest() for chunk in cut)


@pytest.mark.parametrize("place", [0, hashing.CHUNK - 1, hashing.CHUNK, -1])
def test_every_byte_of_a_large_array_counts(place):
    array = np.zeros(2 * hashing.CHUNK + 3, np.uint8)
    before = content_key(array)
    array[place] = 1
    assert content_key(array) != before
    array[place] = 0
    assert content_key(array) == before


def test_an_array_is_not_its_digests():
    large = np.arange(2 * hashing.CHUNK // 8)
    digests = np.frombuffer(hashing.parallel_hash(large.data), large.dtype)
    assert content_key(large) != content_key(digests)


def test_data_that_is_as_it_was_is_not_hashed_again(monkeypatch):
    data = np.arange(2 * hashing.CHUNK, dtype=np.uint8).data
    first = hashing.parallel_hash(data)
    monkeypatch.setattr(hashing, "hashlib", None)
    assert hashing.parallel_hash(bytes(data)) == first


def _through_data(weight):
    weight.data[-1, -1].neg_()


def _through_numpy(weight):
    weight.detach().numpy()[-1, -1] *= -1


def _through_storage(weight):
    as_bytes = torch.empty(0, dtype=torch.uint8)
    as_bytes.set_(weight.untyped_storage())[-1] ^= 0x80


WRITES = [_through_data, _through_numpy, _through_storage]


@pytest.mark.parametrize("width", [256, 1500])
@pytest.mark.parametrize("negate", WRITES)
def test_writes_of_which_torch_counts_no_version_are_seen(negate, width):
    model = torch.nn.Sequential(torch.nn.Linear(width, width), torch.nn.ReLU())
    weight = model[0].weight
    before, version = content_key(model), weight._version
    negate(weight)
    assert weight._version == version
    assert content_key(model) != before
    negate(weight)
    assert content_key(model) == before


def test_what_is_written_to_while_it_is_hashed_is_not_remembered(monkeypatch):
    data = np.zeros(2 * hashing.SMALL, np.uint8)

    def sha256(chunk):
        data[0] = 1
        return hashlib.sha256(chunk)

    with monkeypatch.context() as patch:
        patch.setattr(hashing, "hashlib", types.SimpleNamespace(sha256=sha256))
        torn = hashing.parallel_hash(data.data)
    data[0] = 0
    assert hashing.parallel_hash(data.data) == hashlib.sha256(data).digest() != torn


def test_a_limited_number_of_chunks_is_remembered(monkeypatch):
    monkeypatch.setattr(hashing, "_known", {})
    monkeypatch.setattr(hashing, "MOST_KNOWN", 2)
    for value in range(5):
        data = bytes([value]) * (hashing.SMALL + 1)
        assert hashing.parallel_hash(data) == hashlib.sha256(data).digest()
        assert len(hashing._known) <= 2
