"""Ray Data ``map_batches`` with an actor class: two actors of one CPU each."""

from __future__ import annotations

import ray
from job import BATCH, WORKERS, Embedder, measure, options


class Predictor:
    """Replica of the model in one actor."""

    def __init__(self, directory: str) -> None:
        self.embedder = Embedder(directory)

    def __call__(self, batch):
        """Vectors of one batch of texts."""
        return {"id": batch["id"], "vector": self.embedder.embed([*batch["text"]])}


def main() -> None:
    """Time the job on a running Ray."""
    arguments = options()

    def predict(data: str, out: str) -> None:
        result = ray.data.read_parquet(data).map_batches(
            Predictor,
            fn_constructor_args=(arguments.model,),
            batch_size=BATCH,
            compute=ray.data.ActorPoolStrategy(size=WORKERS),
            num_cpus=1,
        )
        result.write_parquet(out)

    ray.init(num_cpus=WORKERS + 1, include_dashboard=False, log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    measure(predict, arguments, "ray", "torch", "transformers")


if __name__ == "__main__":
    main()
