"""Entries of the content store brought to hosts that do not have them.

A worker that misses an entry asks, in this order:

1. a worker on another host that has it: chunks are read from its store;
2. a client that has it: the worker raises an event on `TOPIC`, clients that hold the
   entry offer it, and the first to offer sends its chunks.

The caller holds the entry's cross-process lock (`Store.require`), so that one process
of a host asks, once; the others then find the file. Only Dask's own calls are used
(events and `run`): nothing must be registered on workers, so late joiners are served
too. Every delivery is an event on `DELIVERED`.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
import uuid
import weakref
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from distributed import Client, Worker
from distributed.protocol.pickle import dumps

from dask_infer import config
from dask_infer._dask import live_clients
from dask_infer.errors import ModelLoadError
from dask_infer.model.store.blob_store import Store, default_store, set_fetcher

logger = logging.getLogger(__name__)

#: Workers ask here: ``{"key", "worker", "request"}``.
TOPIC = "infer-wanted"
#: Every delivery: ``{"key", "worker", "source", "bytes"}``.
DELIVERED = "infer-delivered"
#: Seconds without a chunk after which others are asked, where there is no limit.
PATIENCE = 60.0
#: Seconds between two rounds.
PAUSE = 0.5
#: A worker in one of these states sends and receives nothing.
GONE = ("closing", "closed", "stopping", "stopped", "failed")

_workers: weakref.WeakSet[Worker] = weakref.WeakSet()
#: The connection on which each client subscribed: it has a new one once it was lost.
_subscribed: weakref.WeakKeyDictionary[Client, weakref.ref[Any]] = (
    weakref.WeakKeyDictionary()
)


def offer_to_workers() -> None:
    """Let the clients of this process answer workers that miss an entry."""
    for client in live_clients():
        connection, known = client.scheduler_comm, _subscribed.get(client)
        if connection is None or (known is not None and known() is connection):
            continue
        client.subscribe_topic(TOPIC, partial(_offer, weakref.ref(client)))
        _subscribed[client] = weakref.ref(connection)


# --- the worker that asks ------------------------------------------------------------


@dataclass
class _Request:
    """One entry that this process is receiving from a client."""

    target: Path
    #: The client whose offer was taken; others are refused.
    sender: str | None = None
    taken: threading.Event = field(default_factory=threading.Event)
    done: threading.Event = field(default_factory=threading.Event)
    received: int = 0


_requests: dict[str, _Request] = {}


def fetch_through(worker: Worker) -> None:
    """Let this process fetch missing entries through `worker`."""
    _workers.add(worker)
    set_fetcher(fetch)


def fetch(key: str, store: Store) -> None:
    """Bring the entry `key` into `store`, or raise `ModelLoadError`."""
    worker = next((w for w in _workers if w.status.name not in GONE), None)
    if worker is None:
        raise _not_found(key)
    store.write(key, lambda target: _Delivery(worker, key, target).receive())


def _not_found(key: str) -> ModelLoadError:
    return ModelLoadError(
        f"the weights {key} are not on this host, and no worker or connected client "
        "has them any more: call predict() again with the model, and keep that client "
        "open while the job runs"
    )


class _Delivery:
    """One entry that this host receives: rounds of attempts, while any part comes."""

    def __init__(self, worker: Worker, key: str, target: Path) -> None:
        self.worker, self.key, self.target = worker, key, target
        #: Seconds without progress that end it; None for no limit.
        self.limit = config.get_seconds("delivery.timeout")
        #: Seconds without progress after which another source is asked.
        self.patience = PATIENCE if self.limit is None else self.limit / 3
        #: Whether any process had the entry in this round.
        self.offered = False
        self.last_progress = time.monotonic()

    def receive(self) -> None:
        """Receive the entry from any holder, again where the sender leaves midway."""
        loop = self.worker.loop.asyncio_loop  # type: ignore[attr-defined]
        while True:
            self.offered = False
            copy = asyncio.run_coroutine_threadsafe(self._copy_from_workers(), loop)
            source = copy.result() or self._from_client()
            if source is not None:
                break
            self.next_round()
        size = self.target.stat().st_size
        logger.info("received %s (%d bytes) from %s", self.key, size, source)
        event = {"key": self.key, "worker": self.worker.address}
        self.worker.log_event(DELIVERED, {**event, "source": source, "bytes": size})

    def next_round(self) -> None:
        """Wait for another round, or raise why there is none."""
        if not self.offered:
            raise _not_found(self.key)
        silent = time.monotonic() - self.last_progress
        if self.limit is not None and silent >= self.limit:
            raise ModelLoadError(
                f"no part of the weights {self.key} came for {self.limit:g} s: look at "
                "the network between the hosts, or raise infer.delivery.timeout"
            )
        # Slow is not dead: an attempt that was given up may have needed longer.
        self.patience *= 2
        time.sleep(PAUSE)

    async def _copy_from_workers(self) -> str | None:
        answers = await self.worker.scheduler.broadcast(
            msg={"op": "run", "function": dumps(size_here), "args": dumps((self.key,))},
            on_error="ignore",
        )
        for address, answer in answers.items():
            size = answer.get("result")
            if address == self.worker.address or not size:
                continue
            self.offered = True
            try:
                await self._copy_chunks(address, size)
            except OSError as error:  # it left midway: the next may have it
                logger.info("%s stopped sending %s: %s", address, self.key, error)
                continue
            return str(address)
        return None

    async def _copy_chunks(self, address: str, size: int) -> None:
        with self.target.open("wb") as file:
            for start, length in _chunks(size):
                answer = await self.worker.rpc(address).run(
                    function=dumps(chunk_here), args=dumps((self.key, start, length))
                )
                if answer["status"] != "OK":
                    raise OSError(f"{address} could not read its copy")
                await asyncio.to_thread(file.write, answer["result"])
                self.last_progress = time.monotonic()

    def _from_client(self) -> str | None:
        self.target.touch()
        request_id = uuid.uuid4().hex
        request = _requests[request_id] = _Request(self.target)
        event = {"key": self.key, "worker": self.worker.address, "request": request_id}
        try:
            self.worker.log_event(TOPIC, event)
            if not request.taken.wait(config.get_seconds("delivery.offer-timeout")):
                return None
            self.offered = True
            received = 0
            while not request.done.wait(self.patience):
                if request.received == received:
                    return None
                received = request.received
                self.last_progress = time.monotonic()
            return request.sender
        finally:
            del _requests[request_id]


def take_offer(request_id: str, client: str) -> bool:
    """On the asking worker: whether this client is the one to send."""
    request = _requests.get(request_id)
    if request is None or request.sender not in (None, client):
        return False
    request.sender = client
    request.taken.set()
    return True


async def receive_chunk(request_id: str, start: int, data: bytes, last: bool) -> bool:
    """On the asking worker: write one chunk; False if no one waits for it any more."""
    request = _requests.get(request_id)
    if request is None:
        return False
    await asyncio.to_thread(_write_at, request.target, start, data)
    request.received += len(data)
    if last:
        request.done.set()
    return True


def _write_at(path: Path, start: int, data: bytes) -> None:
    # Never truncated: a chunk of an attempt given up may still come, the same bytes.
    with path.open("r+b") as file:
        file.seek(start)
        file.write(data)


# --- the process that has the entry --------------------------------------------------


def size_here(key: str) -> int:
    """Bytes of the entry in this process's store; 0 where it is not."""
    path = default_store().path(key)
    return path.stat().st_size if path.exists() else 0


async def chunk_here(key: str, start: int, length: int) -> bytes:
    """Read some bytes of the entry in this process's store."""
    return await asyncio.to_thread(_read_at, default_store().path(key), start, length)


def _read_at(path: Path, start: int, length: int) -> bytes:
    with path.open("rb") as file:
        file.seek(start)
        return file.read(length)


def _chunks(size: int) -> Iterator[tuple[int, int]]:
    chunk = config.get_bytes("delivery.chunk") or size
    for start in range(0, size, chunk):
        yield start, min(chunk, size - start)


#: An event loop keeps no task alive by itself.
_answers: set[asyncio.Task[None]] = set()


def _offer(client: weakref.ref[Client], event: tuple[float, dict[str, str]]) -> None:
    """Answer beside the client's loop of reports, which waits for handlers."""
    answer = asyncio.create_task(_answer(client(), event[1]))
    _answers.add(answer)
    answer.add_done_callback(_answers.discard)


async def _answer(client: Client | None, wanted: dict[str, str]) -> None:
    size = size_here(wanted["key"])
    if client is None or not size:
        return
    try:
        await _send(client, wanted, size)
    except Exception:  # the worker will ask others or say so itself
        logger.exception("could not send %s", wanted["key"])


async def _send(client: Client, wanted: dict[str, str], size: int) -> None:
    worker, request = wanted["worker"], wanted["request"]
    if not await _run(client, worker, take_offer, request, client.id):
        return
    for start, length in _chunks(size):
        data = await chunk_here(wanted["key"], start, length)
        last = start + length == size
        if not await _run(client, worker, receive_chunk, request, start, data, last):
            return


async def _run(client: Client, worker: str, function: Any, *args: Any) -> Any:
    # On the client's own loop `run` returns an awaitable.
    answers = await client.run(function, *args, workers=[worker])
    return answers[worker]
