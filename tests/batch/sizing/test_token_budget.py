"""The budget of padded tokens: tables of forwards seen and what was made of them."""

from __future__ import annotations

import numpy as np
import pytest

from dask_infer.batch.sizing.hill_climber import RUN, WARM_UP
from dask_infer.batch.sizing.token_budget import (
    COSTS,
    FIRST_TOKENS,
    MOST_TOKENS,
    TokenBudget,
)


def run(policy, seconds_of, forwards=200, fill=1.0):
    """Let it see forwards that fill its budgets; return those it settled or was at."""
    sizes = [policy.size]
    for _ in range(forwards):
        tokens = max(1, int(policy.next_size() * fill))
        policy.observe(tokens, seconds_of(tokens))
        if policy.size != sizes[-1]:
            sizes.append(policy.size)
    return sizes


def accelerator(tokens):
    return 3e-3 + tokens * 1e-6


def core(tokens):
    return 5e-3 + tokens * 2.5e-4


@pytest.mark.parametrize(
    ("seconds_of", "sizes"),
    [
        (core, [1024, 512, 1024]),
        (accelerator, [1024, 2048, 4096, 8192, 16384, 32768, 65536]),
        (lambda tokens: 1e-3 + tokens**1.2 * 1e-5, [1024, 512, 256, 128, 256]),
    ],
)
def test_grows_while_that_is_faster_and_settles(seconds_of, sizes):
    policy = TokenBudget()
    assert run(policy, seconds_of) == sizes
    assert policy.settled
    assert {policy.next_size() for _ in range(4)} == {sizes[-1]}


def test_two_budgets_take_turns_while_it_is_open():
    policy = TokenBudget()
    budgets = []
    for _ in range(WARM_UP + 2 * RUN):
        budgets.append(policy.next_size())
        policy.observe(budgets[-1], budgets[-1] * 1e-6)
    assert budgets[WARM_UP:] == [FIRST_TOKENS] * RUN + [2 * FIRST_TOKENS] * RUN


@pytest.mark.parametrize("seed", range(10))
def test_noise_never_sends_it_back(seed):
    noise, policy = np.random.default_rng(seed), TokenBudget()

    def seconds_of(tokens):
        return accelerator(tokens) * (1 + noise.exponential(0.05))

    sizes = run(policy, seconds_of)
    assert policy.settled
    assert sizes == sorted(sizes)
    assert sizes[-1] >= 8192  # 73 % of what is possible


def test_forwards_that_fill_no_budget_do_not_count():
    policy = TokenBudget()
    assert run(policy, accelerator, fill=0.6) == [FIRST_TOKENS]
    assert not policy.settled


@pytest.mark.parametrize(
    ("seconds_of", "cost"),
    [(core, 20), (accelerator, 3000), (lambda t: t * 1e-5, COSTS[0])],
)
def test_the_cost_of_a_forward_is_fitted(seconds_of, cost):
    policy, random = TokenBudget(8192), np.random.default_rng(0)
    for tokens in random.integers(50, 4000, 64):
        policy.observe(int(tokens), seconds_of(tokens) * (1 + random.exponential(0.02)))
    assert policy.forward_cost == pytest.approx(cost, rel=0.35)


def test_forwards_of_one_size_say_nothing_of_the_cost():
    policy = TokenBudget(1000)
    before = policy.forward_cost
    run(policy, core)
    assert policy.forward_cost == before


def test_the_fit_comes_to_an_end():
    policy, random = TokenBudget(8192), np.random.default_rng(0)
    for tokens in random.integers(50, 4000, 200):
        policy.observe(int(tokens), core(tokens))
    before = policy.forward_cost
    for tokens in random.integers(50, 4000, 200):
        policy.observe(int(tokens), core(tokens) / 100)
    assert policy.forward_cost == before


@pytest.mark.parametrize(
    ("free", "limit"), [(None, MOST_TOKENS), (1 << 30, 4096), (1 << 20, 4), (0, 1)]
)
def test_never_beyond_the_memory(free, limit):
    policy = TokenBudget(None, free)
    sizes = run(policy, lambda tokens: 1 + 1e-9 * tokens, 400)
    assert max(sizes) == limit


def test_what_did_not_fit_is_halved_for_good():  # DI-09
    policy = TokenBudget()
    assert policy.on_out_of_memory(1000) == 500
    assert run(policy, accelerator) == [500]


def test_another_replica_goes_on_where_one_has_settled():
    learned, policy = [], TokenBudget()
    policy.on_learned = lambda changed: learned.append(changed.state())
    run(policy, accelerator)
    assert learned[-1]["size"] == 65536
    other = TokenBudget()
    other.resume(learned[-1])
    assert (other.size, other.forward_cost) == (65536, policy.forward_cost)
    assert other.settled


def test_a_bound_of_the_user_is_kept_whatever_is_remembered():
    policy = TokenBudget(100)
    policy.resume({"size": 4096, "forward_cost": 7.0})
    assert (policy.size, policy.forward_cost) == (100, 7.0)
