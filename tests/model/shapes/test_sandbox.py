"""What a look at a model leaves as it was."""

import logging
import random
import threading
import warnings

import numpy as np
import pytest
import torch

from dask_infer.model.shapes.sandbox import sandbox


def test_other_threads_draw_no_number_twice():
    drawn = []

    def draw():
        drawn.append((random.random(), np.random.random(), torch.rand(()).item()))

    draw()
    with sandbox():
        other = threading.Thread(target=draw)
        other.start()
        other.join()
    draw()
    assert all(len(set(numbers)) == 3 for numbers in zip(*drawn, strict=True))


def test_records_and_warnings_are_muted(caplog, recwarn):
    with sandbox():
        logging.getLogger("torch._subclasses.fake_tensor").error("loud")
        logging.getLogger("mine").error("loud")
        warnings.warn("loud", stacklevel=1)
    logging.getLogger("mine").error("after")
    assert caplog.messages == ["after"]
    assert not recwarn.list


def test_other_threads_go_on_logging(caplog):
    with sandbox():
        other = threading.Thread(target=logging.getLogger("mine").error, args=["heard"])
        other.start()
        other.join()
    assert caplog.messages == ["heard"]


def test_an_error_puts_everything_back():
    filters = [list(handler.filters) for handler in logging.root.handlers]
    fast = torch.backends.mha.get_fastpath_enabled()
    with pytest.raises(KeyError), sandbox():
        raise KeyError
    assert [list(handler.filters) for handler in logging.root.handlers] == filters
    assert torch.backends.mha.get_fastpath_enabled() is fast
