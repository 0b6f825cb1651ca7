"""The limit on one torch thread: its CPU seconds hold no waiting of threads."""

from __future__ import annotations

from one_process import main

if __name__ == "__main__":
    main(threads=1)
