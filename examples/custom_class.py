"""A class as a model: built once in each worker process, called with each batch.

For whatever is slow to set up and is no torch module: an index, a lookup table, a
library with models of its own.
"""

from __future__ import annotations

import argparse

import dask.dataframe as dd
import numpy as np
import pandas as pd

import dask_infer  # noqa: F401 - registers ddf.infer
from dask_infer import ModelSource


class NearestCity:
    """The city nearest to a position, and how far it is."""

    def __init__(self, cities: dict[str, tuple[float, float]]) -> None:
        self.names = np.array(list(cities))
        self.places = np.radians(list(cities.values()))

    def __call__(self, position: np.ndarray) -> dict[str, np.ndarray]:
        """Great-circle distance to every city, of rows of latitude and longitude."""
        here = np.radians(position)[:, None]
        lat, there = here[..., 0], self.places[:, 0]
        half = np.sin((here - self.places) / 2) ** 2
        chord = half[..., 0] + np.cos(lat) * np.cos(there) * half[..., 1]
        kilometres = 12_742 * np.arcsin(np.sqrt(chord))
        nearest = kilometres.argmin(axis=1)
        return {
            "city": self.names[nearest].tolist(),
            "kilometres": kilometres.min(axis=1),
        }


CITIES = {"Lisbon": (38.72, -9.14), "Nairobi": (-1.29, 36.82), "Lima": (-12.05, -77.04)}


def main() -> None:
    """Find the nearest city of random places."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="1,000 rows")
    options = parser.parse_args()

    random = np.random.default_rng(0)
    rows = 1000 if options.quick else 1_000_000
    places = pd.DataFrame(
        {"lat": random.uniform(-60, 60, rows), "lon": random.uniform(-180, 180, rows)}
    )
    ddf = dd.from_pandas(places, npartitions=8)
    pred = ddf.infer.predict(
        ModelSource.from_factory(NearestCity, CITIES),
        columns=["lat", "lon"],
        meta={"city": "string", "kilometres": "float64"},
    )
    print(pred.groupby("city")["kilometres"].mean().compute())


if __name__ == "__main__":
    main()
