"""C++ kernels, one module per op."""
