"""accelerate's offloading in a loop over batches; runs in the peers' environment."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.sweep.model import BATCH, Measured, build, rows


def main(kind: str, layers: int, folder: Path, count: int) -> None:
    """Load the model, offload it, and run all rows."""
    import accelerate
    from safetensors.torch import load_file

    torch.set_num_threads(1)
    with torch.device("meta"):
        model = build(layers).eval()
    device, place = torch.device("cpu"), folder / "offloaded"
    if kind == "cpu_offload" or not place.exists():
        state = {}
        for file in sorted(folder.glob("*.safetensors")):
            state.update(load_file(file))
        model.load_state_dict(state, assign=True)
        del state
    if kind == "cpu_offload":
        accelerate.cpu_offload(model, device)
    else:  # it writes the files that are not there
        accelerate.disk_offload(model, place, device)
    data = torch.from_numpy(rows(count))
    outputs = []
    with torch.inference_mode(), Measured() as measured:
        for at in range(0, count, BATCH):
            outputs.append(model(data[at : at + BATCH]).numpy())
    print(measured.answer(np.concatenate(outputs)))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]))
