"""CUDA kernels, one module per operator."""
