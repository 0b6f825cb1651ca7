"""accelerate's offloading in a loop over batches; runs in the peers' environment."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.sweep.model import BATCH, Measured, build, forget, rows


def main(kind: str, layers: int, folder: Path, count: int, cold: bool) -> None:
    """Load the model, offload it, and run all rows."""
    import accelerate
    from safetensors.torch import load_file

    torch.set_num_threads(1)
    state = {}
    for file in sorted(folder.glob("*.safetensors")):
        state.update(load_file(file))
    with torch.device("meta"):
        model = build(layers)
    model.load_state_dict(state, assign=True)
    model.eval()
    device = torch.device("cpu")
    with tempfile.TemporaryDirectory(dir=folder) as place:
        if kind == "cpu_offload":
            accelerate.cpu_offload(model, device)
        else:
            accelerate.disk_offload(model, place, device)
        del state
        data = torch.from_numpy(rows(count))
        files = list(Path(place).glob("*.dat"))
        outputs = []
        with torch.inference_mode(), Measured() as measured:
            for at in range(0, count, BATCH):
                if cold:  # as if the page cache were smaller than the model
                    forget(files)
                outputs.append(model(data[at : at + BATCH]).numpy())
        print(measured.answer(np.concatenate(outputs)))


if __name__ == "__main__":
    main(
        sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]),
        int(sys.argv[4]), sys.argv[5] == "cold",
    )  # fmt: skip
