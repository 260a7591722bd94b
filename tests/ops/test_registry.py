"""Choice of backends: overrides and their order, announced fallbacks, the table of `dmtl info`."""

from __future__ import annotations

import json
import warnings

import pytest
import torch

import dmtl
import dmtl.ops
from dmtl.info import info, print_info
from dmtl.ops import registry

from .tools import missing

SPEC = registry.REGISTRY["q_sample"]
PROBE = [torch.empty(0)]
needs_core = pytest.mark.skipif(bool(missing("cpu")), reason=missing("cpu"))


def test_order_of_overrides(monkeypatch):
    monkeypatch.delenv("DMTL_BACKEND", raising=False)
    assert registry.requested("q_sample") is None
    monkeypatch.setenv("DMTL_BACKEND", "cpu")
    assert registry.requested("q_sample") == ("cpu", "DMTL_BACKEND")
    monkeypatch.setenv("DMTL_BACKEND_Q_SAMPLE", "triton")
    assert registry.requested("q_sample") == ("triton", "DMTL_BACKEND_Q_SAMPLE")
    assert registry.requested("posterior_step") == ("cpu", "DMTL_BACKEND")
    with dmtl.use_backend("cuda"):
        assert registry.requested("q_sample") == ("cuda", "dmtl.use_backend")
        with dmtl.use_backend(q_sample="reference"):
            assert registry.choose(SPEC, PROBE) == "reference"
            assert registry.requested("posterior_step") == ("cuda", "dmtl.use_backend")
        assert registry.requested("q_sample") == ("cuda", "dmtl.use_backend")
    assert registry.requested("q_sample") == ("triton", "DMTL_BACKEND_Q_SAMPLE")


def test_unknown_names(monkeypatch):
    with (
        pytest.raises(
            ValueError, match="use_backend: backend must be one of cuda, triton, cpu, reference, got gpu"
        ),
        dmtl.use_backend("gpu"),
    ):
        pass
    with (
        pytest.raises(ValueError, match="use_backend: operator must be one of .*q_sample.*, got p_sample"),
        dmtl.use_backend(p_sample="cpu"),
    ):
        pass
    monkeypatch.setenv("DMTL_BACKEND", "fast")
    with pytest.raises(
        ValueError, match="DMTL_BACKEND must be one of cuda, triton, cpu, reference, got fast"
    ):
        registry.choose(SPEC, PROBE)


@needs_core
def test_float64_falls_back_silently(monkeypatch):
    """No kernel takes float64: that is no fault of this machine, so nobody is told."""
    monkeypatch.delenv("DMTL_BACKEND", raising=False)
    assert registry.choose(SPEC, PROBE) == "cpu"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert registry.choose(SPEC, [torch.empty(0, dtype=torch.float64)]) == "reference"


def test_missing_core_is_announced_once(monkeypatch):
    from dmtl.kernels.cpu import q_sample as adapter

    reason = "dmtl._core was not built (in this test)"
    monkeypatch.delenv("DMTL_BACKEND", raising=False)
    monkeypatch.setattr(
        adapter, "SUPPORT", adapter.SUPPORT.__class__(("cpu",), (torch.float32,), available=lambda: [reason])
    )
    monkeypatch.setattr(registry, "_announced", set())
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
    assert {row["op"] for row in rows} == set(registry.REGISTRY)
    built = facts["native"]["_core"]["built"]
    for row in rows:
        served = built and not row["why_not"].get("cpu")
        assert row["backend"] == ("cpu" if served else "reference")
        reasons = row["why_not"]["cuda"]
        assert "device cpu is not one of cuda" in reasons or reasons == ["has no kernel for this operator"]
    assert not built or all(row["backend"] == "cpu" for row in rows if row["op"] == "q_sample")
    print_info()
    printed = capsys.readouterr().out
    assert "q_sample" in printed and dmtl.__version__ in printed
    assert "fp32*" in printed  # the backend that is used, also without colours
