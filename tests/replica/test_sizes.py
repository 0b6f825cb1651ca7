"""What is remembered of sizes, from one replica to the next."""

from __future__ import annotations

import os
import time

import dask
import pytest

from dask_infer.model.store.blob_store import LEARNED
from dask_infer.replica.remembered import recall, remember
from dask_infer.replica.sizes import Sizes


@pytest.fixture(autouse=True)
def own_store(tmp_path):
    place = tmp_path / "store"
    with dask.config.set({"infer.store.path": str(place)}):
        yield place


def free():
    return 1 << 30


def settle(sizes, seconds_of=lambda rows: 1e-3 + rows * 1e-6):
    policy = sizes.rows("x", None, 128, free)
    for _ in range(100):
        size = policy.next_size()
        policy.observe(size, seconds_of(size))
    assert policy.settled
    return policy.size


def test_another_process_starts_where_one_has_settled():
    size = settle(Sizes("m", ("key", None, "cpu")))
    again = Sizes("m", ("key", None, "cpu")).rows("x", None, 128, free)
    assert (again.size, again.settled) == (size, True)


@pytest.mark.parametrize(
    ("owner", "signature"),
    [
        (("other", None, "cpu"), "x"),
        (("key", "bfloat16", "cpu"), "x"),
        (("key", None, "NVIDIA H100"), "x"),
        (("key", None, "cpu"), "y"),
    ],
)
def test_model_dtype_device_and_signature_each_have_their_own(owner, signature):
    settle(Sizes("m", ("key", None, "cpu")))
    assert not Sizes("m", owner).rows(signature, None, 128, free).settled


def test_a_remembered_size_that_does_not_fit_is_corrected():  # DI-09
    owner = ("key", None, "cpu")
    size = settle(Sizes("m", owner))
    policy = Sizes("m", owner).rows("x", None, 128, free)
    policy.on_out_of_memory(size)
    assert Sizes("m", owner).rows("x", None, 128, free).size == size // 2


def test_what_was_learned_of_tokens_is_remembered():
    owner = ("key", None, "cpu")
    Sizes("m", owner).tokens("x", None, free).on_out_of_memory(500)
    again = Sizes("m", owner).tokens("x", None, free)
    assert (again.size, again.settled) == (250, True)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"size": "many"}'])
def test_a_damaged_file_is_passed_over(own_store, text):
    sizes = Sizes("m", ("key", None, "cpu"))
    settle(sizes)
    for file in (own_store / LEARNED).iterdir():
        file.write_text(text)
    assert not Sizes("m", sizes.owner).rows("x", None, 128, free).settled


def test_old_files_are_passed_over(own_store):
    remember("k", {"size": 1})
    assert recall("k") == {"size": 1}
    (file,) = (own_store / LEARNED).iterdir()
    long_ago = time.time() - 2 * 24 * 3600
    os.utime(file, (long_ago, long_ago))
    assert recall("k") is None


def test_nothing_is_remembered_where_that_is_turned_off(own_store):
    with dask.config.set({"infer.batch.remember": None}):
        remember("k", {"size": 1})
        assert recall("k") is None
    assert not (own_store / LEARNED).exists()


def test_a_directory_that_cannot_be_written_harms_nothing(own_store):
    own_store.write_text("no directory")
    remember("k", {"size": 1})
    assert recall("k") is None
