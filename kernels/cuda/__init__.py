"""CUDA kernels, one module per op."""

if not __name__.startswith("dmtl."):
    raise ImportError(f"{__name__}: import this package as dmtl.kernels.cuda")
