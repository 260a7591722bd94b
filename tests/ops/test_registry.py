"""Choice of backends: overrides and their order, announced fallbacks, the table of `dmtl info`; Triton
compiled without a GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
import warnings

import pytest
import torch

import dmtl
import dmtl.ops
from dmtl.info import info, print_info
from dmtl.ops import _registry

from .tools import missing

SPEC = _registry.REGISTRY["q_sample"]
PROBE = [torch.empty(0)]
needs_core = pytest.mark.skipif(bool(missing("cpu")), reason=missing("cpu"))


def test_order_of_overrides(monkeypatch):
    monkeypatch.delenv("DMTL_BACKEND", raising=False)
    assert _registry.requested("q_sample") is None
    monkeypatch.setenv("DMTL_BACKEND", "cpu")
    assert _registry.requested("q_sample") == ("cpu", "DMTL_BACKEND")
    monkeypatch.setenv("DMTL_BACKEND_Q_SAMPLE", "triton")
    assert _registry.requested("q_sample") == ("triton", "DMTL_BACKEND_Q_SAMPLE")
    assert _registry.requested("posterior_step") == ("cpu", "DMTL_BACKEND")
    with dmtl.use_backend("cuda"):
        assert _registry.requested("q_sample") == ("cuda", "dmtl.use_backend")
        with dmtl.use_backend(q_sample="reference"):
            assert _registry.choose(SPEC, PROBE) == "reference"
            assert _registry.requested("posterior_step") == ("cuda", "dmtl.use_backend")
        assert _registry.requested("q_sample") == ("cuda", "dmtl.use_backend")
    assert _registry.requested("q_sample") == ("triton", "DMTL_BACKEND_Q_SAMPLE")


def test_unknown_names(monkeypatch):
    with (
        pytest.raises(
            ValueError, match="use_backend: backend must be one of cuda, triton, cpu, reference, got gpu"
        ),
        dmtl.use_backend("gpu"),
    ):
        pass
    with (
        pytest.raises(ValueError, match="use_backend: op must be one of .*q_sample.*, got p_sample"),
        dmtl.use_backend(p_sample="cpu"),
    ):
        pass
    monkeypatch.setenv("DMTL_BACKEND", "fast")
    with pytest.raises(
        ValueError, match="DMTL_BACKEND must be one of cuda, triton, cpu, reference, got fast"
    ):
        _registry.choose(SPEC, PROBE)


@needs_core
def test_float64_falls_back_silently(monkeypatch):
    """No kernel takes float64: that is no fault of this machine, so nobody is told."""
    monkeypatch.delenv("DMTL_BACKEND", raising=False)
    assert _registry.choose(SPEC, PROBE) == "cpu"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert _registry.choose(SPEC, [torch.empty(0, dtype=torch.float64)]) == "reference"


def test_missing_core_is_announced_once(monkeypatch):
    from dmtl.kernels.cpu import q_sample as adapter

    reason = "dmtl._core was not built (in this test)"
    monkeypatch.delenv("DMTL_BACKEND", raising=False)
    monkeypatch.setattr(
        adapter, "SUPPORT", adapter.SUPPORT.__class__(("cpu",), (torch.float32,), available=lambda: [reason])
    )
    monkeypatch.setattr(_registry, "_announced", set())
    key_B3 = torch.tensor([[1, 2, 3]])
    with pytest.warns(
        RuntimeWarning,
        match=r"backend cpu is not available \(dmtl._core was not built \(in this test\)\)",
    ):
        dmtl.ops.normal(key_B3, (8,))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dmtl.ops.normal(key_B3, (8,))
    with dmtl.use_backend("cpu"), pytest.raises(NotImplementedError, match="in this test"):
        dmtl.ops.normal(key_B3, (8,))


def test_info(capsys, monkeypatch):
    monkeypatch.delenv("DMTL_BACKEND", raising=False)
    facts = json.loads(json.dumps(info()))
    rows = [row for row in facts["ops"] if row["device"] == "cpu"]
    assert {row["op"] for row in rows} == set(_registry.REGISTRY)
    built = facts["native"]["_core"]["built"]
    for row in rows:
        served = built and not row["why_not"].get("cpu")
        assert row["backend"] == ("cpu" if served else "reference")
        reasons = row["why_not"]["cuda"]
        assert "device cpu is not one of cuda" in reasons or reasons == ["has no kernel for this op"]
    assert not built or all(row["backend"] == "cpu" for row in rows if row["op"] == "q_sample")
    print_info()
    printed = capsys.readouterr().out
    assert "q_sample" in printed and dmtl.__version__ in printed


def test_triton_kernels_compile_without_a_gpu(tmp_path):
    """Every Triton kernel, to a cubin, for both architectures that the package names (in a process without
    the interpreter)."""
    pytest.importorskip("triton")
    if not sys.platform.startswith("linux"):
        pytest.skip("Triton compiles on Linux")
    program = textwrap.dedent("""
        import itertools
        import triton
        from triton.backends.compiler import GPUTarget
        from triton.compiler import ASTSource
        from dmtl.kernels.triton import _noising

        pointers = ("out_ptr", "x_ptr", "y_ptr", "noise_ptr", "grad_ptr")

        def compile(kernel, constants, arch, dtype):
            signature = {}
            for name in kernel.arg_names:
                if name in constants:
                    signature[name] = "constexpr"
                elif name in pointers:
                    signature[name] = f"*{dtype}"
                elif name.endswith("_ptr"):
                    signature[name] = "*i64" if name in ("key_ptr", "t_ptr") else "*fp32"
                else:
                    signature[name] = "i64" if name.startswith("stride") else "i32"
            source = ASTSource(fn=kernel, signature=signature, constexprs=constants)
            compiled = triton.compile(source, target=GPUTarget("cuda", arch, 32))
            assert compiled.asm["cubin"][:4] == b"\\x7fELF"

        for arch, dtype in ((80, "fp32"), (90, "bf16")):
            drawn = {"HAS_Y": True, "GIVEN": False, "DRAWN": True, "CHANNELS_LAST": False, "BLOCK": 256,
                     "noise_ptr": None}
            given = {"HAS_Y": False, "GIVEN": True, "DRAWN": False, "CHANNELS_LAST": True, "BLOCK": 256,
                     "key_ptr": None, "y_ptr": None, "coef_y_ptr": None}
            compile(_noising._noising_fwd_kernel, drawn, arch, dtype)
            compile(_noising._noising_fwd_kernel, given, arch, dtype)
            compile(_noising._scaling_kernel, {"SIZE": 1024}, arch, dtype)
        print("compiled")
    """)
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment
        | {"TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0 and "compiled" in done.stdout, done.stderr[-2000:]
