"""Places at the door of a group."""

import asyncio

from dask_infer.pipeline.worker.window import Window


def test_never_more_inside_than_the_window_and_all_get_in():  # PP-9
    async def run():
        window, order = Window(3), []

        async def pass_through(number):
            async with window:
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
                async with window:
                    raise ValueError
            except ValueError:
                pass
        async with window:
            return window.inside

    assert asyncio.run(run()) == 1
