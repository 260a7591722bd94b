"""The unrolled chain against a walk through its formulas, step by step."""

import pytest
import torch

from dmtl.diffusion import ArrayNoise, CounterNoise, Pairs, Schedule, make_sampler, noising, reverse_chain

SIGNAL = {
    "a": torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(0)),
    "b": torch.randn(2, 5, 4, 4, generator=torch.Generator().manual_seed(1)),
}
PAIRS = Pairs.of({"a": None, "b": torch.tensor([0, 2])}, 3)


@pytest.mark.parametrize("steps", [1, 2, 4])
@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_walk(steps, scale):
    arrays = {"a": torch.randn(steps, 3, 2, 4, 4), "b": torch.randn(steps, 3, 5, 4, 4)}
    plan = Schedule.from_range(3, 1e-2, 0.3).plan(steps, make_sampler("ddim", 0.7))
    noise, visited = ArrayNoise(arrays), []

    def denoise(x, level):
        visited.append(level)
        return [torch.tanh(value) + level for value in x]

    signals = list(SIGNAL.values())
    draws = [noise.draws(group, x) for group, x in zip(PAIRS.single(), signals, strict=True)]
    noisy = noising(signals, plan, draws)
    estimates = list(reverse_chain(denoise, noisy, plan, draws, lambda x: scale * x))
    assert visited == list(reversed(plan.levels)) and len(estimates) == steps
    for index, (task, rows) in enumerate((("a", [0, 1, 2]), ("b", [0, 2]))):
        x = plan.sqrt_abar[-1] * SIGNAL[task] + plan.sqrt_one_minus_abar[-1] * arrays[task][0, rows]
        torch.testing.assert_close(noisy[index], x)
        for k in range(steps):
            i = steps - 1 - k
            clean = torch.tanh(x) + plan.levels[i]
            torch.testing.assert_close(estimates[k][index], clean)
            if i:
                x = (
                    plan.coef1[i] * scale * clean
                    + plan.coef2[i] * x
                    + plan.sigma[i] * arrays[task][k + 1, rows]
                )


def test_gradient_flows_through_the_whole_chain():
    signal = SIGNAL["a"].clone().requires_grad_()
    plan = Schedule.from_range(3, 1e-2, 0.3).plan()
    gain = torch.ones((), requires_grad=True)
    draws = [CounterNoise(0).draws(Pairs.of({"a": None}, 3), signal)]
    noisy = noising([signal], plan, draws)
    out = list(reverse_chain(lambda x, level: [gain * x[0]], noisy, plan, draws))
    out[-1][0].sum().backward()
    # Every step multiplies by coef1 + coef2 (the estimate is x itself), the last one returns the estimate.
    factor = plan.sqrt_abar[-1] * torch.prod(plan.coef1[1:] + plan.coef2[1:])
    torch.testing.assert_close(signal.grad, factor.expand(3, 2, 4, 4))
    assert gain.grad.abs() > 0


def test_without_gradients_the_steps_are_made_in_place():
    """The same estimates to the bit, and every x_t in the memory of the first."""
    plan = Schedule.from_range(3, 1e-2, 0.3).plan()
    draws = [CounterNoise(0).draws(Pairs.of({"a": None}, 3), SIGNAL["a"])]

    def walk():
        places = []

        def denoise(x, level):
            places.append(x[0].data_ptr())
            return [torch.tanh(x[0]) + level]

        noisy = noising([SIGNAL["a"]], plan, draws)
        return list(reverse_chain(denoise, noisy, plan, draws)), set(places)

    expected, _ = walk()
    with torch.no_grad():
        actual, places = walk()
    assert len(places) == 1
    assert all(torch.equal(a[0], b[0]) for a, b in zip(actual, expected, strict=True))


def test_a_task_without_rows():
    pairs = Pairs.of({"a": torch.zeros(0, dtype=torch.int64)}, 3)
    signal = SIGNAL["a"][:0]
    [noisy] = noising([signal], Schedule.from_range(2).plan(), [CounterNoise(0).draws(pairs, signal)])
    assert noisy.shape == (0, 2, 4, 4)
