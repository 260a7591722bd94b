"""Contenders, their race, memory, the reading of a profile, at toy sizes: the numbers mean nothing."""

import json
from types import SimpleNamespace

import pytest
import torch

from benchmarks import clock, contenders, memory, roofline
from benchmarks import race as race_module
from benchmarks.cases import Case, drawn_noise, standard
from benchmarks.contenders import Contender, difference, names, worst
from benchmarks.race import Race
from dmtl.models import ModelConfig, work
from dmtl.tasks import make_task
from tests.models.cases import small_config, small_model

TOY = Case(size=(64, 64), options={"width": 32, "backbone_width": 16, "blocks": 1, "decoder_blocks": 1})
CPU = torch.device("cpu")
IN_TORCH = ("published", "expert", "dmtl")


@pytest.fixture
def quick_ceilings(monkeypatch):
    """Ceilings that nobody has to measure."""
    monkeypatch.setattr(clock, "compute_rate", lambda precision, device: 1e12)
    monkeypatch.setattr(clock, "copy_rate", lambda device: 1e11)


def test_race():
    race = Race(TOY, ["fp32"], IN_TORCH, modes=())
    rows = race.run(rounds=3)
    assert [(row["contender"], row["precision"]) for row in rows] == [
        ("published", "fp32"), ("expert", "fp32"), ("dmtl", "fp32"),
    ]  # fmt: skip
    for row in rows:
        assert row["difference"] < 1e-3 and row["rounds"] == 3 and row["median_ms"] > 0
        assert row["p20_ms"] <= row["median_ms"] <= row["p80_ms"]
        assert row["images_per_s"] == pytest.approx(1e3 / row["median_ms"])
        assert row["case"] == "published" and row["steps"] == 2
        assert list(row["differences"]) == row["tasks"] and len(row["tasks"]) == 5
        assert row["difference"] == max(row["differences"].values())
        assert row["class_pixels"] == max(row["differences"][task] for task in ("semseg", "human_parts"))
    assert rows[0]["times_published"] == rows[1]["times_expert"] == 1.0
    assert json.loads(json.dumps(rows)) == rows


def test_rounds_end_in_time():
    race = Race(TOY, ["fp32"], IN_TORCH, modes=())
    assert race.run(rounds=50, most_s=0.0)[0]["rounds"] == 3  # never fewer


def test_who_is_wrong_is_not_timed(monkeypatch):
    """A contender that computes something else has a reason in its row, and no time."""
    honest = contenders.make

    def make(name, model, image, case, precision, **options):
        made = honest(name, model, image, case, precision, **options)
        if name == "expert":
            run = made.run
            return Contender(name, precision, lambda *a: {t: m + 1 for t, m in run(*a).items()})
        if name == "published":
            raise RuntimeError("out of memory\nand more")
        return made

    monkeypatch.setattr(contenders, "make", make)
    published, expert, ours = Race(TOY, ["fp32"], IN_TORCH, modes=()).run(rounds=3)
    assert published["error"] == "RuntimeError: out of memory and more" and "median_ms" not in published
    assert expert["error"].startswith("differs from the fp32 model by") and "median_ms" not in expert
    assert ours["median_ms"] > 0 and "times_expert" not in ours


def test_names():
    config = ModelConfig(tasks=[make_task("edge").spec()])
    assert names(CPU, ["fp32"], config) == [(name, "fp32") for name in contenders.NAMES]
    bf16 = {who for who, precision in names(CPU, None, config) if precision == "bf16"}
    assert {"openvino", "published-openvino"} <= bf16 and "onnxruntime" not in bf16
    gpu = names(torch.device("cuda"), None, config)
    assert [who for who in gpu if who[0] != "dmtl"] == [
        ("published", "fp32"), ("published", "tf32"), ("expert", "bf16"),
    ]  # fmt: skip
    assert {p for who, p in gpu if who == "dmtl"} == {"fp32", "tf32", "bf16", "fp16"}
    plain = small_config(diffusion="none")
    assert {who for who, _ in names(CPU, None, plain)} == {"onnxruntime", "openvino", "dmtl"}


def test_difference():
    ids = torch.tensor([[0, 1], [2, 3]])
    assert difference(make_task("semseg", classes=4), ids, ids.clamp(max=2)) == 0.25
    depth = make_task("depth")
    assert difference(depth, torch.tensor([3.0, 4.0]), torch.tensor([3.0, 0.0])) == pytest.approx(4 / 3)
    tasks = {"depth": depth}
    assert worst(tasks, {}, {"depth": ids}) == float("inf")
    broken = torch.tensor([float("nan"), 1.0])
    assert worst(tasks, {"depth": broken}, {"depth": torch.ones(2)}) == float("inf")


def test_a_turn_is_long_enough(monkeypatch):
    """What takes long is called as often as asked; of what is fast, the median of many calls counts."""
    for each, least, calls in ((0.5, 1, 1), (0.5, 3, 3), (0.03, 1, 3)):
        taken = iter([each if calls == 1 else 2 * each, *[each] * 9])
        monkeypatch.setattr(race_module, "seconds", lambda call, device: next(taken))
        turns = race_module.Turns({"own": Contender("own", "fp32", None)}, lambda own: None, CPU, least)
        turns.round()
        assert turns.times_s == {"own": [each]} and len(list(taken)) == 10 - calls


def test_ratios_are_of_rounds():
    """Medians of the ratios in each round: what slows a whole round down drops out."""
    times = {"a": [1.0, 10.0, 1.0], "b": [0.5, 5.0, 0.4]}
    assert clock.ratios(times, "a") == {"a": 1.0, "b": 2.0}
    assert clock.quantiles_ms([0.002])["median_ms"] == 2.0


def test_ceilings_are_plausible():
    assert clock.fastest(lambda: None, CPU) < 1e-3
    assert 1e8 < clock.copy_rate(CPU) < 1e13
    assert 1e8 < clock.compute_rate("fp32", CPU) < 1e14


@pytest.mark.slow
def test_peak_memory_counts_what_a_prediction_needs():
    """In a process of its own; larger images need more."""
    small, large = (memory.peak(TOY.but(size=size), "dmtl", "fp32", 1) for size in ((64, 64), (1024, 1024)))
    assert large["peak_mib"] > small["peak_mib"] + 20 > 100
    failed = memory.peak(TOY.but(model="nowhere"), "dmtl", "fp32", 1)
    assert "nowhere" in failed["error"]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_roofline(quick_ceilings, precision):
    rows = roofline.roofline(TOY, precision, calls=2)
    stages = [row["stage"] for row in rows if row["operator"] == "all"]
    assert [s for s in stages if s != "between"] == ["initial", "condition", "chain", "decode", "all"]
    chain = {row["operator"]: row for row in rows if row["stage"] == "chain"}
    assert {"convolutions", "token_mlp", "cross_attention", "everything else"} <= set(chain)
    parts = [row for name, row in chain.items() if name != "all" and not row.get("of_which")]
    assert sum(row["ms"] for row in parts) == pytest.approx(chain["all"]["ms"])
    assert sum(row["flops"] for row in parts) == pytest.approx(chain["all"]["flops"])
    inner = [row["ms"] for row in chain.values() if row.get("of_which")]
    assert sum(inner) == pytest.approx(chain["convolutions"]["ms"])
    assert all(row["ms"] > 0 for row in rows)
    assert all(row["floor_ms"] <= row["direct_floor_ms"] for row in rows if "floor_ms" in row)
    model_flops = work.flops(work.count(TOY.build().config, (64, 64), published=True))
    assert rows[-1]["published_flops"] == model_flops


def event(name, us, children=()):
    kind = torch.autograd.DeviceType.CPU
    return SimpleNamespace(
        name=name, cpu_time_total=us, device_time_total=us / 2, cpu_children=list(children), device_type=kind
    )


def test_reading_a_profile():
    """Outermost calls count once; a conv3x3 that ends in the library is not Winograd's."""
    library = event("aten::conv2d", 20, [event("aten::convolution", 19)])
    served = event("dmtl::conv3x3", 30, [event("aten::empty", 1)])
    passed_on = event("dmtl::conv3x3", 25, [event("aten::_to_copy", 1), library])
    nested = event("aten::outer", 50, [event("dmtl::token_mlp", 40)])
    chain = event("dmtl: chain", 140, [served, passed_on, nested, event("aten::conv2d", 10)])
    found = roofline.read([chain, served, library, event("other", 5)], gpu=False)
    assert {key: round(1e6 * taken) for key, taken in found.items()} == {
        ("chain", "all"): 140,
        ("chain", "dmtl::conv3x3"): 55,
        ("chain", "winograd"): 30,
        ("chain", "dmtl::token_mlp"): 40,
        ("chain", "library convolutions"): 10,
    }
    on_gpu = roofline.read([chain], gpu=True)
    assert on_gpu["chain", "all"] == pytest.approx(70e-6) and ("chain", "winograd") not in on_gpu


def test_fraction_by_the_algorithm_used():
    parts = [work.Part("chain", "convolutions", "c", 4e9, 1.0, winograd=True)]
    ceilings = roofline.Ceilings(dict.fromkeys(work.OPERATORS, 1e12), 1e12)
    times = {("chain", "all"): 2e-3, ("chain", "dmtl::conv3x3"): 2e-3}
    direct = next(roofline.table(times, 2e-3, parts, ceilings))
    assert direct["floor_ms"] == direct["direct_floor_ms"] == pytest.approx(4.0)
    assert direct["fraction"] == pytest.approx(2.0)  # above the direct ceiling
    used = next(roofline.table(times | {("chain", "winograd"): 2e-3}, 2e-3, parts, ceilings))
    assert used["floor_ms"] == pytest.approx(1.0) and used["direct_floor_ms"] == pytest.approx(4.0)
    assert used["fraction"] == pytest.approx(0.5)
    between = list(roofline.table(times, 3e-3, parts, ceilings))[-2]
    assert between["stage"] == "between" and between["ms"] == pytest.approx(1.0)


def test_floor():
    parts = work.count(small_config(), (64, 64))

    def floor_s(parts, compute, copy, winograd=False):
        return roofline.Ceilings(dict.fromkeys(work.OPERATORS, compute), copy).floor_s(parts, winograd)

    assert floor_s(parts, compute=1.0, copy=1e30) == pytest.approx(work.flops(parts))
    assert floor_s(parts, compute=1e30, copy=1.0) == pytest.approx(sum(part.bytes for part in parts))
    quarter = [part for part in parts if part.winograd]
    assert floor_s(quarter, 1.0, 1e30, winograd=True) == pytest.approx(work.flops(quarter) / 4)
    halved = sum(part.bytes for part in work.count(small_config(), (64, 64), itemsize=2))
    assert halved < 0.7 * sum(part.bytes for part in parts)


def test_case_is_the_published_network():
    """Without options a case builds the published network; its seed makes two builds equal."""
    case = Case(options={"width": 32, "backbone_width": 8})
    first, second = case.build().state_dict(), case.build().state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert case.image().shape == (1, 3, 512, 512)


def test_standard_cases():
    """The published network, and the small model that comes with dmtl at two sizes."""
    cases = standard("cpu")
    assert [(case.name, case.size, case.batch) for case in cases] == [
        ("published", (512, 512), 1), ("published", (512, 512), 4),
        ("six-tasks", (512, 512), 1), ("six-tasks", (512, 512), 8),
        ("six-tasks", (128, 160), 1), ("six-tasks", (128, 160), 8),
    ]  # fmt: skip
    config = cases[-1].build().config
    assert (config.backbone, config.width) == ("efficientnet_lite0", 64)


@pytest.mark.parametrize("batch", [1, 2])
def test_a_model_that_sees_photos_smaller(tmp_path, batch):
    """All contenders compute every pixel, also of a model that the engine would show a smaller image."""
    small_model(width=32, blocks=1, image_size=(32, 32)).save_pretrained(tmp_path)
    case = Case(size=(64, 96), batch=batch, model=str(tmp_path))
    rows = Race(case, ["fp32"], IN_TORCH, modes=()).rows
    assert max(row["difference"] for row in rows) < 1e-3


def test_drawn_noise_is_the_models():
    from dmtl.diffusion import ArrayNoise

    model, image = small_model(), torch.randn(2, 3, 32, 64)
    given = ArrayNoise(drawn_noise(model, image, 2))
    assert worst(model.tasks, model.maps(image, noise=given).maps, model.maps(image).maps) < 1e-6


def test_the_benchmark_prints_its_table(monkeypatch, capsys):
    """What `pytest benchmarks/test_inference.py` does, at a toy size and without a compiler."""
    from benchmarks import test_inference as module

    monkeypatch.setattr(module, "Race", lambda case: Race(case, ["fp32"], IN_TORCH, modes=()))

    def pedantic(call, rounds):
        for _ in range(rounds):
            call()

    benchmark = SimpleNamespace(pedantic=pedantic, extra_info={})
    module.test_inference(benchmark, capsys, TOY.but(batch=2))
    rows = benchmark.extra_info["contenders"]
    assert [(row["contender"], row["batch"], row["rounds"]) for row in rows] == [
        (name, 2, module.ROUNDS) for name in ("published", "expert", "dmtl")
    ]
