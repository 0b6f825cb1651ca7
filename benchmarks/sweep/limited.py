"""A limit of memory for a process, as a container has it; page cache counts."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

#: Where Linux has limits of memory (versions 1 and 2), and the file of a limit.
PLACES = {
    Path("/sys/fs/cgroup/memory"): "memory.limit_in_bytes",
    Path("/sys/fs/cgroup"): "memory.max",
}


@contextlib.contextmanager
def limited(nbytes: int) -> Iterator[list[str]]:
    """Give what goes before a command that may use so many bytes; 0: no limit.

    Needs to write control groups: run as root.
    """
    if not nbytes:
        yield []
        return
    root = next(place for place in PLACES if (place / "cgroup.procs").exists())
    group = root / "dask-infer-benchmark"
    group.mkdir()
    try:
        (group / PLACES[root]).write_text(str(nbytes))
        enter = f'echo $$ > {group}/cgroup.procs && exec "$@"'
        yield ["sh", "-c", enter, "sh"]
    finally:
        group.rmdir()
