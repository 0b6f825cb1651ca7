"""What a look at a model leaves as it was."""

import logging
import random
import threading
import warnings

import numpy as np
import pytest
import torch

from dask_infer.model.sandbox import sandbox


def draws():
    return random.random(), np.random.random(), torch.rand(()).item()


def test_generators_go_on_where_they_were():
    random.seed(0), np.random.seed(0), torch.manual_seed(0)
    expected = draws()
    random.seed(0), np.random.seed(0), torch.manual_seed(0)
    with sandbox():
        draws()
        torch.manual_seed(7)
    assert draws() == expected


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
