"""What is known of a model's blocks and of the workers before stages are planned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

#: Bytes a second between two workers: one hop of 64 MB between two processes of one
#: host (distributed 2026.8.0).
BANDWIDTH = 3.6e9


@dataclass(frozen=True)
class BlockFacts:
    """One block of the chain that a model is split into.

    Seconds and bytes of activations are those of one microbatch of the same number of
    rows for all blocks of a chain.

    Parameters
    ----------
    name
        The name of the module, as the user knows it.
    nbytes
        Bytes of its weights and buffers. What several blocks share counts in each.
    seconds
        Time of one microbatch on a worker of speed 1.
    cut_bytes
        Bytes of a microbatch that travel if a stage begins with this block. Not read
        for the first block: what the feeder sends is the same in every layout.
    activation_bytes
        Most bytes that a microbatch occupies while the block runs.
    parameters
        Number of parameters, to be shown.
    divisible
        Bytes of `nbytes` that shards divide; each of them holds the others.
    exchanges
        Most times that shards exchange parts of tensors in one forward.
    """

    name: str
    nbytes: int
    seconds: float
    cut_bytes: int = 0
    activation_bytes: int = 0
    parameters: int = 0
    divisible: int = 0
    exchanges: int = 0


@dataclass(frozen=True)
class ChainFacts:
    """What a group request measured of the blocks of a chain."""

    #: Their seconds and activations are those of `microbatch_size.ROWS` rows.
    blocks: tuple[BlockFacts, ...]
    #: Seconds of each block at `microbatch_size.FEW_ROWS` rows; None where the model
    #: refused synthetic rows, and bytes stand in for time.
    fewer: tuple[float, ...] | None
    #: What people should know of the figures; may be empty.
    note: str = ""
    #: For how many shards `cuts` is, which says how stages divide weights; pickled.
    shards: int = 1
    cuts: bytes = b""


@dataclass(frozen=True)
class WorkerFacts:
    """One worker that may hold a stage.

    Parameters
    ----------
    address
        Where it is.
    memory
        Bytes that models may take there; None for no limit.
    speed
        How many times as fast as the worker on which the blocks were timed.
    host
        Its machine. Of equally good workers, neighbours on one machine are taken.
    threads
        Partitions that it runs at once.
    holds
        How many stages or remote replicas its resources allow at a time.
    one_at_a_time
        Whether its forwards wait for each other, as on an accelerator.
    members
        The workers that it stands for, if it is a team of shards.
    """

    address: str
    memory: int | None = None
    speed: float = 1.0
    host: str = ""
    threads: int = 1
    holds: int = 1
    one_at_a_time: bool = False
    members: tuple[str, ...] = ()

    @property
    def room(self) -> float:
        """Bytes that models may take; infinite where there is no limit."""
        return float("inf") if self.memory is None else self.memory


def transfer_seconds(nbytes: float) -> float:
    """Return how long the message from one stage to the next takes."""
    return nbytes / BANDWIDTH


def need(blocks: Sequence[BlockFacts]) -> int:
    """Bytes that blocks take on one worker: all weights, the largest activations."""
    most = max((block.activation_bytes for block in blocks), default=0)
    return sum(block.nbytes for block in blocks) + most
