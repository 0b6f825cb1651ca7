"""The limit: one process, all rows sorted by length, two torch threads."""

from __future__ import annotations

import numpy as np
import pandas as pd
from job import WORKERS, Embedder, measure, options


def main(threads: int = WORKERS) -> None:
    """Time the job."""
    arguments = options()
    embedder = Embedder(arguments.model, threads=threads)

    def predict(data: str, out: str) -> None:
        embedder.padded = 0
        frame = pd.read_parquet(data)
        order = np.argsort([-len(text) for text in frame["text"]], kind="stable")
        vectors = embedder.embed_all(frame["text"].iloc[order].tolist())
        result = np.empty_like(vectors)
        result[order] = vectors
        frame[["id"]].assign(vector=list(result)).to_parquet(f"{out}/part-0.parquet")

    padded = lambda: embedder.padded  # noqa: E731
    measure(predict, arguments, "torch", "transformers", padded=padded)


if __name__ == "__main__":
    main()
