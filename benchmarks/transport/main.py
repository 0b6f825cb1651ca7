"""What one hop of a microbatch costs over the bare comm."""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import numpy as np
import torch

from benchmarks import measure

HEADER = "size | bare comm ms | range | GB/s | hop ms | range | GB/s | ratio"
SIZES = (64, 256, 1024, 4096, 16384, 65536)  # KiB

Times = dict[str, list[float]]


def prepare(dask_worker: Any) -> str:
    """Take up the two handlers that are compared."""
    from dask_infer.pipeline.messages.microbatch import DONE, Header, Payload
    from dask_infer.pipeline.worker.microbatch_comms import comms_of

    async def hop(header: Header, payload: Payload) -> dict[str, Any]:
        payload.open()
        return DONE

    async def bare(data: Any) -> dict[str, Any]:
        return {"status": "done"}

    comms_of(dask_worker).handlers["hop"] = hop
    dask_worker.handlers["bare"] = bare
    return str(dask_worker.address)


async def hops(to: str, nbytes: int, rounds: int, dask_worker: Any) -> Times:
    """Send a tensor and an array of this size in turns; seconds until the answer."""
    from distributed.protocol.serialize import to_serialize

    from dask_infer.pipeline.messages.group_state import Target
    from dask_infer.pipeline.messages.microbatch import Header, Payload
    from dask_infer.pipeline.worker.microbatch_comms import comms_of

    comms = comms_of(dask_worker)
    target = Target("group", 0, ((to,),))
    header = Header(target, dask_worker.address, number=0, attempt=0)
    numbers = np.random.default_rng(0).random(nbytes // 4, dtype=np.float32)
    tensor = torch.from_numpy(numbers.copy())
    times: Times = {"bare": [], "hop": []}
    for _ in range(3 + rounds):
        start = time.perf_counter()
        await dask_worker.rpc(to).bare(data=to_serialize(numbers))
        times["bare"].append(time.perf_counter() - start)
        start = time.perf_counter()
        await comms.call(to, "hop", header, Payload(values={"x": tensor}))
        times["hop"].append(time.perf_counter() - start)
    return {name: seconds[3:] for name, seconds in times.items()}  # 3 warm up


def _columns(seconds: list[float], nbytes: int) -> list[str]:
    middle, milliseconds = measure.median(seconds), [1e3 * each for each in seconds]
    low, *_, high = statistics.quantiles(milliseconds, n=10)
    return [
        f"{1e3 * middle:.2f}",
        f"{low:.2f}-{high:.2f}",
        f"{nbytes / middle / 1e9:.2f}",
    ]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=200)
    options = parser.parse_args()
    lines = []
    with measure.cluster(2) as client:
        one, other = client.run(prepare).values()
        for size in SIZES:
            nbytes = size * 1024
            rounds = max(20, min(options.rounds, options.rounds * 1024 // size))
            answers = client.run(hops, other, nbytes, rounds, workers=[one])
            (times,) = answers.values()
            pairs = zip(times["hop"], times["bare"], strict=True)
            ratio = measure.median([hop / bare for hop, bare in pairs])
            name = f"{size} KB" if size < 1024 else f"{size // 1024} MB"
            columns = [_columns(times[each], nbytes) for each in ("bare", "hop")]
            lines.append([name, *columns[0], *columns[1], f"{ratio:.2f}"])
    print(measure.machine(), measure.table(HEADER.split(" | "), lines), sep="\n\n")


if __name__ == "__main__":
    main()
