"""One face for the CPU, CUDA and MPS: where a forward runs and how tensors get there."""
