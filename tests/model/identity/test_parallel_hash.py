"""Digests of large data: every byte counts, the number of cores does not."""

import hashlib

import numpy as np
import pytest
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
