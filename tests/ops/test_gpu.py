"""What only a GPU can show of every op: graph capture and replay, no host synchronisation, other streams."""

from __future__ import annotations

import pytest
import torch

import dmtl.ops
from dmtl.ops.registry import REGISTRY

from .tools import DTYPES, leaves_of, outputs, serves, to_dtype

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

SPECS = [pytest.param(spec, id=name) for name, spec in REGISTRY.items()]
BACKENDS = ("cuda", "triton")


def calls(spec, backend, dtype):
    """The op's samples that this backend serves, as (sample, callable)."""
    if reason := serves(spec, backend, dtype):
        pytest.skip(reason)
    for sample in spec.samples("odd", dtype, "cuda"):
        if not serves(spec, backend, dtype, sample):
            sample = to_dtype(sample, spec.differentiable, dtype)

            def call(sample=sample):
                with dmtl.ops.use_backend(**{spec.name: backend}):
                    return outputs(spec.function(**sample))

            yield sample, call


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("spec", SPECS)
def test_graph_capture(spec, backend, dtype):
    """Forward and backward are captured, and a replay gives the eager bits, also after the inputs changed."""
    for sample, call in calls(spec, backend, dtype):
        leaves = leaves_of(spec, sample)

        def both(call=call, leaves=leaves):
            outs = call()
            total = sum(out.float().sum() for out in outs)
            grads = torch.autograd.grad(total, list(leaves.values())) if leaves else ()
            return [*(o.detach() for o in outs), *grads]

        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(2):
                both()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = both()
        with torch.no_grad():
            for leaf in leaves.values():
                leaf.mul_(-0.5)
        graph.replay()
        for got, want in zip(captured, both(), strict=True):
            assert torch.equal(got, want)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("spec", SPECS)
def test_no_host_synchronisation(spec, backend):
    for _, call in calls(spec, backend, torch.float32):
        call()
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            call()
        finally:
            torch.cuda.set_sync_debug_mode("default")
