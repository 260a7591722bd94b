"""Device code by backend. In a checkout the backends lie in `<repository>/kernels`, which this module adds to
its path."""

from pathlib import Path

_root = Path(__file__).resolve().parents[2]
# Only beside dmtl's own sources: an installed package must not pick up somebody else's folder called
# `kernels`.
if (_root / "kernels").is_dir() and (_root / "csrc").is_dir() and (_root / "pyproject.toml").is_file():
    __path__.append(str(_root / "kernels"))
del _root, Path
