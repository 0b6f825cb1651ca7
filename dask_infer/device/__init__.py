"""One face for the CPU, CUDA and MPS: where forwards run, how tensors get there."""
