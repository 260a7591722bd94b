"""Noise sources: what a sample gets depends on its identity alone."""

import pytest
import torch

from dmtl import ops
from dmtl.diffusion import ArrayNoise, CounterNoise, Pairs

X = torch.zeros(5, 3, 4, 6)


def arguments(noise, task, draw, rows, x) -> dict:
    """What the ops get for one task's rows of a batch."""
    return noise.draws(Pairs((task,), (rows,), (x.shape[0],)), x)(draw)


def drawn(noise: CounterNoise, task="semseg", draw=0, rows=None, x=X) -> torch.Tensor:
    x = x if rows is None else x[rows]
    found = arguments(noise, task, draw, rows, x)
    return ops.normal(found["key_B3"], tuple(x.shape[1:]), found["step"])


def test_noise_is_replayed():
    assert torch.equal(drawn(CounterNoise(3)), drawn(CounterNoise(3)))


def test_every_coordinate_counts():
    reference = drawn(CounterNoise(3))
    others = [
        drawn(CounterNoise(4)),
        drawn(CounterNoise(3 + 2**32)),
        drawn(CounterNoise(3), task="edge"),
        drawn(CounterNoise(3), draw=1),
        drawn(CounterNoise(3, torch.arange(5) + 5)),
    ]
    for other in others:
        assert not torch.isclose(reference, other).any(dim=-1).all()
    assert len({tuple(row.tolist()) for row in reference.flatten(1)}) == 5


@pytest.mark.parametrize("rows", [[0], [4, 1], [], [2, 2]])
def test_rows_get_the_noise_of_their_samples(rows):
    rows = torch.tensor(rows, dtype=torch.int64)
    assert torch.equal(drawn(CounterNoise(7), rows=rows), drawn(CounterNoise(7))[rows])
    samples = torch.tensor([9, 4, 2**40, 0, 17])
    assert torch.equal(drawn(CounterNoise(7, samples), rows=rows), drawn(CounterNoise(7, samples))[rows])


def test_noise_does_not_depend_on_the_batch_split():
    samples = torch.tensor([3, 1, 4, 15, 9])
    whole = drawn(CounterNoise(1, samples))
    parts = [
        drawn(CounterNoise(1, samples[part]), x=X[part]) for part in (slice(0, 1), slice(1, 4), slice(4, 5))
    ]
    assert torch.equal(whole, torch.cat(parts))


def test_samples_default_to_the_places_in_the_batch():
    assert torch.equal(drawn(CounterNoise(1)), drawn(CounterNoise(1, torch.arange(5))))


@pytest.mark.parametrize("seed", [-1, 2**63, 2**64 - 1, 2**31 << 32, -(2**63)])
def test_any_seed_of_64_bits(seed):
    assert torch.equal(drawn(CounterNoise(seed)), drawn(CounterNoise(seed + 2**64)))
    assert abs(drawn(CounterNoise(seed), x=torch.zeros(1, 4096)).mean()) < 0.1


def test_noise_is_standard_normal():
    x = drawn(CounterNoise(0), x=torch.zeros(4, 2**14))
    assert abs(x.mean()) < 0.02 and abs(x.var() - 1) < 0.02


def test_bad_counter_noise():
    with pytest.raises(TypeError, match="CounterNoise: seed must be an int, got float"):
        CounterNoise(1.5)
    for samples in ([0, 1], torch.zeros(2), torch.zeros(2, 2, dtype=torch.int64)):
        with pytest.raises(TypeError, match="CounterNoise: samples must be an int64 tensor"):
            CounterNoise(0, samples)
    with pytest.raises(ValueError, match="samples must name every image, got 4 for 5 rows of 1 tasks"):
        ops.q_sample(
            X,
            torch.zeros(5, dtype=torch.int64),
            torch.ones(1),
            torch.ones(1),
            **arguments(CounterNoise(0, torch.arange(4)), "edge", 0, None, X),
        )


def test_array_noise():
    arrays = torch.randn(2, 5, 3, 4, 6)
    noise = ArrayNoise({"edge": arrays})
    rows = torch.tensor([3, 0])
    assert torch.equal(arguments(noise, "edge", 1, None, X)["noise"], arrays[1])
    assert torch.equal(arguments(noise, "edge", 0, rows, X[rows])["noise"], arrays[0, rows])
    assert arguments(noise, "edge", 0, None, X.bfloat16())["noise"].dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("task", "draw", "message"),
    [("sal", 0, "draw 0 of task 'sal', got 0 draws"), ("edge", 2, "draw 2 of task 'edge', got 2 draws")],
)
def test_array_noise_that_is_missing(task, draw, message):
    with pytest.raises(ValueError, match=f"ArrayNoise: arrays must hold {message}"):
        arguments(ArrayNoise({"edge": torch.zeros(2, 5, 3, 4, 6)}), task, draw, None, X)


def test_array_noise_of_another_shape():
    with pytest.raises(
        ValueError, match=r"arrays\['edge'\]\[0\] must have shape \(5, 3, 4, 6\), got \(5, 3, 4, 4\)"
    ):
        arguments(ArrayNoise({"edge": [torch.zeros(5, 3, 4, 4)]}), "edge", 0, None, X)


def test_packed_rows_get_the_noise_of_their_task_and_sample():
    """All tasks in one tensor: the same numbers as task by task."""
    rows = {"sal": None, "edge": torch.tensor([4, 1]), "depth": torch.tensor([], dtype=torch.int64)}
    pairs = Pairs.of(rows, 5)
    assert pairs.counts == (5, 2, 0)
    x = torch.zeros(7, 3, 4, 6)
    together = pairs.split(drawn_packed(CounterNoise(7), pairs, x))
    for task, taken in rows.items():
        assert torch.equal(together[task], drawn(CounterNoise(7), task=task, draw=2, rows=taken))
    arrays = ArrayNoise({task: torch.randn(3, 5, 3, 4, 6) for task in rows})
    packed = pairs.split(arrays.draws(pairs, x)(2)["noise"])
    for task, taken in rows.items():
        assert torch.equal(packed[task], arguments(arrays, task, 2, taken, together[task])["noise"])


def drawn_packed(noise: CounterNoise, pairs: Pairs, x: torch.Tensor) -> torch.Tensor:
    found = noise.draws(pairs, x)(2)
    return ops.normal(found["key_B3"], tuple(x.shape[1:]), found["step"])


def test_pairs_pack_and_split():
    maps = {"a": torch.randn(3, 2), "b": torch.randn(3, 2)}
    pairs = Pairs.of({"b": torch.tensor([2, 0]), "a": None}, 3)
    packed = pairs.pack(maps)
    assert torch.equal(packed, torch.cat([maps["b"][[2, 0]], maps["a"]]))
    assert {t: x.tolist() for t, x in pairs.split(packed).items()} == {
        "b": maps["b"][[2, 0]].tolist(),
        "a": maps["a"].tolist(),
    }
    assert torch.equal(pairs.repeat(maps["a"]), torch.cat([maps["a"][[2, 0]], maps["a"]]))
    assert [group.tasks for group in pairs.single()] == [("b",), ("a",)]
