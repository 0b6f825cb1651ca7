from __future__ import annotations

import itertools
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

from dask_infer.model.runtime.kept_memory import KeptMemory, copied, keeps_memory


class Buffered(torch.nn.Module):
    """Fills one output buffer, kept from its first forward."""

    buffer: Any = None

    def forward(self, x):
        if self.buffer is None:
            self.buffer = torch.empty_like(x)
        return torch.mul(x, 2, out=self.buffer)


class Fresh(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(3))

    def forward(self, x):
        return x * self.weight


@dataclass
class Scored:
    score: Any


class InAPart:
    """Keeps its buffer in an object of its own, a cache say."""

    def __init__(self):
        self.parts = {"cache": Scored(np.zeros(3))}

    def __call__(self, x):
        return np.multiply(x, 2, out=self.parts["cache"].score)


def through_a_helper(x):
    return global_buffer(x)


def closure():
    buffer = np.zeros(3)

    def model(x):
        np.multiply(x, 2, out=buffer)
        return buffer[:]

    return model


BUFFER = np.zeros(3)


def global_buffer(x):
    return np.multiply(x, 2, out=BUFFER)


@pytest.mark.parametrize(
    "model, x, wrap",
    [
        (Buffered(), torch.ones(3), lambda y: y),
        (Buffered(), torch.ones(3), lambda y: {"y": y[1:]}),
        (Buffered(), torch.ones(3), lambda y: [(y.view(3, 1),)]),
        (Buffered(), torch.ones(3), Scored),
        (torch.nn.Sequential(Buffered()), torch.ones(3), lambda y: y.numpy()),
        (closure(), np.ones(3), lambda y: y),
        (global_buffer, np.ones(3), lambda y: y),
        (InAPart(), np.ones(3), lambda y: y),
        (through_a_helper, np.ones(3), lambda y: y),
    ],
)
def test_memory_that_a_model_keeps_is_seen(model, x, wrap):
    assert keeps_memory(model, wrap(model(x)))


@pytest.mark.parametrize("model", [Fresh(), lambda x: x, torch.abs])
def test_memory_that_is_new_is_none(model):
    assert not keeps_memory(model, model(torch.ones(3)).detach().numpy())


def test_a_copy_has_the_structure_and_none_of_the_memory():
    x, y = torch.ones(3), np.ones(3)
    output = {"a": (x, "text"), "b": [y], "c": Scored(x), "d": None}
    again = copied(output)
    x += 1
    y += 1
    assert again["a"][0].tolist() == again["b"][0].tolist() == [1, 1, 1]
    assert again["c"].score.tolist() == [1, 1, 1]
    assert (again["a"][1], again["d"]) == ("text", None)


def test_calls_of_a_model_that_keeps_its_memory_wait_for_each_other():  # ZO-5
    model, kept = Buffered(), KeptMemory()
    start = threading.Barrier(4)

    def call(value):
        start.wait()
        x = torch.full((1000,), float(value))
        return kept.run(model, lambda: model(x))

    with ThreadPoolExecutor(4) as threads:
        for value in range(0, 400, 4):
            outputs = threads.map(call, range(value, value + 4))
            expected = [2.0 * (value + place) for place in range(4)]
            assert [output.unique().tolist() for output in outputs] == [
                [each] for each in expected
            ]
    assert kept.keeps


def test_first_calls_at_once_do_not_hide_the_memory_of_each_other():
    calls, second = itertools.count(), threading.Event()

    class Replaced(Buffered):
        def forward(self, x):
            place = next(calls)
            self.buffer = buffer = torch.mul(x, 2)
            if place == 0:
                second.wait(1)  # a call beside this one, if there may be one
            else:
                second.set()
                time.sleep(0.2)
            return buffer

    model, kept = Replaced(), KeptMemory()
    rows = [torch.full((9,), float(value)) for value in range(2)]
    with ThreadPoolExecutor(2) as threads:
        outputs = threads.map(lambda x: kept.run(model, lambda: model(x)), rows)
        assert [output[0].item() for output in outputs] == [0.0, 2.0]
    assert kept.keeps


def test_calls_of_other_models_do_not_wait():
    kept, meet = KeptMemory(), threading.Barrier(2, timeout=60)

    def model(x):
        meet.wait()
        return x + 1

    kept.run(model, lambda: np.ones(2))  # the first call, which runs alone
    with ThreadPoolExecutor(2) as threads:
        for _ in range(2):
            outputs = threads.map(
                lambda x: kept.run(model, lambda: model(x)), [np.ones(2), np.zeros(2)]
            )
            assert [output.tolist() for output in outputs] == [[2, 2], [1, 1]]
    assert kept.keeps is False


def test_a_failed_call_says_nothing_of_memory():
    kept = KeptMemory()
    with pytest.raises(ZeroDivisionError):
        kept.run(None, lambda: 1 / 0)
    assert kept.keeps is None
    assert kept.run(closure(), lambda: np.ones(2)).tolist() == [1, 1]
