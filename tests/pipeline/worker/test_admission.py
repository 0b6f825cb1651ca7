"""Which microbatches are admitted, and to which instance."""

import asyncio

import pytest

from dask_infer.pipeline.messages.group_state import Target
from dask_infer.pipeline.worker.admission import Dispatcher, Window

THREE = tuple(Target(name, 0, ((f"tcp://{name}",),)) for name in "abc")


def test_never_more_inside_than_the_window_and_all_get_in():  # PP-9
    async def run():
        window, order = Window(3), []

        async def pass_through(number):
            async with window.admit():
                order.append(number)
                assert window.inside <= 3
                await asyncio.sleep(0)

        await asyncio.gather(*map(pass_through, range(20)))
        return window, order

    window, order = asyncio.run(run())
    assert order == list(range(20))
    assert (window.inside, window.peak) == (0, 3)


def test_a_place_is_given_back_where_its_user_fails():
    async def run():
        window = Window(1)
        for _ in range(3):
            try:
                async with window.admit():
                    raise ValueError
            except ValueError:
                pass
        async with window.admit():
            return window.inside

    assert asyncio.run(run()) == 1


def test_each_microbatch_goes_to_the_instance_with_the_fewest():
    async def run():
        dispatcher = Dispatcher()
        got = [await dispatcher._acquire(THREE, 2) for _ in range(6)]
        return [target.name for target in got], dispatcher

    names, dispatcher = asyncio.run(run())
    assert names == [*"abc", *"abc"]
    assert max(dispatcher.inside.values()) == 2


def test_what_waits_takes_the_first_place_that_is_free_in_its_order():
    async def run():
        dispatcher, order = Dispatcher(), []

        async def wait(number, among):
            async with dispatcher.choose(among, 1) as target:
                order.append((number, target.name))

        for _ in THREE:
            await dispatcher._acquire(THREE, 1)
        tasks = [
            asyncio.create_task(wait(n, among))
            for n, among in enumerate([THREE[:1], THREE, THREE[2:]])
        ]
        await asyncio.sleep(0)
        for target in THREE[::-1]:
            dispatcher._release(target)
            await asyncio.sleep(0.01)
        await asyncio.gather(*tasks)
        return order, dispatcher

    order, dispatcher = asyncio.run(run())
    assert order == [(1, "c"), (2, "c"), (0, "a")]
    assert not dispatcher.inside


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_place_is_not_lost_with_a_sender_that_gives_up(when):
    async def run():
        dispatcher = Dispatcher()
        await dispatcher._acquire(THREE[:1], 1)
        waits = asyncio.create_task(dispatcher._acquire(THREE[:1], 1))
        await asyncio.sleep(0)
        if when == "before":
            waits.cancel()
        dispatcher._release(THREE[0])
        waits.cancel()
        await asyncio.wait({waits})
        return dispatcher

    dispatcher = asyncio.run(run())
    assert not dispatcher.inside
    assert not dispatcher._waiting
