"""What runners of this process learn when memory runs out."""

from __future__ import annotations

from dask_infer.replica.sizes import Sizes
from dask_infer.run.process_runner import ProcessRunner


class Here(ProcessRunner):
    where = "here"


def test_padded_rows_without_a_budget_of_tokens_are_counted_by_rows() -> None:
    """No policy was informed of them."""
    runner = Here()
    runner.sizes = Sizes("model", ("a test of runners",))
    rows = runner.batch_size("x", 8.0, 64)
    runner.shrink(40, 7)
    assert rows.size == 20
    tokens = runner.token_budget("x", 1000)
    runner.shrink(40, 7)
    assert (rows.size, tokens.size) == (20, 140)
