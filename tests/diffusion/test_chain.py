"""The unrolled chain against a walk through its formulas, step by step."""

import pytest
import torch

from dmtl.diffusion import ArrayNoise, CounterNoise, Schedule, noising, reverse_chain

SIGNAL = {
    "a": torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(0)),
    "b": torch.randn(2, 5, 4, 4, generator=torch.Generator().manual_seed(1)),
}
ROWS = {"a": None, "b": torch.tensor([0, 2])}


@pytest.mark.parametrize("steps", [1, 2, 4])
@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_walk(steps, scale):
    arrays = {"a": torch.randn(steps, 3, 2, 4, 4), "b": torch.randn(steps, 3, 5, 4, 4)}
    plan = Schedule.from_range(3, 1e-2, 0.3).plan(steps, eta=0.7)
    noise, visited = ArrayNoise(arrays), []

    def denoise(x, level):
        visited.append(level)
        return {task: torch.tanh(value) + level for task, value in x.items()}

    noisy = noising(SIGNAL, ROWS, plan, noise)
    estimates = reverse_chain(denoise, noisy, ROWS, plan, noise, lambda x: scale * x)
    assert visited == list(reversed(plan.levels)) and len(estimates) == steps
    for task, rows in (("a", [0, 1, 2]), ("b", [0, 2])):
        x = plan.sqrt_abar[-1] * SIGNAL[task] + plan.sqrt_one_minus_abar[-1] * arrays[task][0, rows]
        torch.testing.assert_close(noisy[task], x)
        for k in range(steps):
            i = steps - 1 - k
            clean = torch.tanh(x) + plan.levels[i]
            torch.testing.assert_close(estimates[k][task], clean)
            if i:
                x = (
                    plan.coef1[i] * scale * clean
                    + plan.coef2[i] * x
                    + plan.sigma[i] * arrays[task][k + 1, rows]
                )


def test_gradient_flows_through_the_whole_chain():
    signal = {"a": SIGNAL["a"].clone().requires_grad_()}
    plan = Schedule.from_range(3, 1e-2, 0.3).plan()
    gain = torch.ones((), requires_grad=True)
    rows, noise = {"a": None}, CounterNoise(0)
    out = reverse_chain(
        lambda x, level: {"a": gain * x["a"]}, noising(signal, rows, plan, noise), rows, plan, noise
    )
    out[-1]["a"].sum().backward()
    # Every step multiplies by coef1 + coef2 (the estimate is x itself), the last one returns the estimate.
    factor = plan.sqrt_abar[-1] * torch.prod(plan.coef1[1:] + plan.coef2[1:])
    torch.testing.assert_close(signal["a"].grad, factor.expand(3, 2, 4, 4))
    assert gain.grad.abs() > 0


def test_a_task_without_rows():
    rows = {"a": torch.zeros(0, dtype=torch.int64)}
    plan = Schedule.from_range(2).plan()
    noisy = noising({"a": SIGNAL["a"][:0]}, rows, plan, CounterNoise(0))
    assert noisy["a"].shape == (0, 2, 4, 4)
