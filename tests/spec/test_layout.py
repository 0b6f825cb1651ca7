"""What a layout takes, and how it is shown."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from dask_infer import Layout


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stages": 0}, "stages must be a positive whole number"),
        ({"shards": True}, "shards must be a positive whole number"),
        ({"stages": []}, 'pass a positive whole number or "auto"'),
        ({"stages": [1, 2]}, "names the modules before which to cut"),
        ({"replicas": "two"}, 'pass a positive whole number or "auto"'),
        ({"microbatch": 2.5}, 'pass a positive whole number or "auto"'),
        ({"sweep": "yes"}, "pass True or False"),
        ({"sweep": True, "shards": 2}, "leave out shards="),
        ({"sweep": True, "replicas": 2}, "leave out replicas="),
        ({"sweep": True, "window": 2}, "leave out window="),
    ],
)
def test_what_is_no_layout_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Layout(**options)


def test_names_to_cut_at_may_be_a_list() -> None:
    assert Layout(stages=["a", "b"]) == Layout(stages=("a", "b"))


def test_a_sweep_has_as_few_groups_as_fit_unless_it_says() -> None:
    assert Layout(sweep=True).stages == "auto"
    assert Layout(sweep=True, stages=3).stages == 3


def test_a_layout_is_shown_by_what_it_names() -> None:
    assert Layout().short() == "Layout()"
    assert Layout(stages=2, shards=2).short() == "Layout(stages=2, shards=2)"


def test_counts_of_numpy_are_counts() -> None:
    layout = Layout(stages=np.int64(2), window=np.int32(4))
    assert layout == Layout(stages=2, window=4)
    assert layout.short() == "Layout(stages=2, window=4)"
