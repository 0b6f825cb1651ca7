"""How many torch threads one forward on the CPU takes.

The nanny sets ``OMP_NUM_THREADS=1`` for every worker, and torch's setting belongs to
the calling thread (torch 2.13, OpenMP), so it is set in the thread that runs the
forward.
"""

from __future__ import annotations

import torch


def use_cpu_threads(threads: int) -> None:
    """Let forwards of the calling thread use so many cores."""
    # get is cheap, set rebuilds OpenMP's team: only where it changes something.
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)
