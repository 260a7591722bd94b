"""Device code by backend, and code that the backends' adapters share.

An installed package holds the backends in this folder. In a checkout they are in `kernels` at its top level.
"""

from pathlib import Path

if not Path(__file__).with_name("cpu").is_dir():
    __path__.append(str(Path(__file__).resolve().parents[2] / "kernels"))
