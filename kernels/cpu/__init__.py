"""C++ kernels, one module per operator."""
