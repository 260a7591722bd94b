"""Metrics of a model on a data set."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from dmtl.data import LabelMatrix, eval_transform, make_loader, open_dataset
from dmtl.diffusion import CounterNoise
from dmtl.engine.engine import Engine
from dmtl.evaluation import scoring
from dmtl.evaluation.scoring import Boundaries, primary_metrics, score
from dmtl.metrics import Metric
from dmtl.models import ModelConfig, create_model
from dmtl.runtime.distributed import World
from dmtl.tasks import make_task


@pytest.fixture(scope="module")
def dataset(images):
    return open_dataset(images, "train")


@pytest.fixture(scope="module")
def model(dataset):
    torch.manual_seed(0)
    specs = [task.spec() for task in dataset.tasks.values()]
    return create_model(
        ModelConfig(
            tasks=specs, width=16, heads=2, backbone_width=4, blocks=1, decoder_blocks=1, beta_end=0.2
        )
    )


def batches(dataset, size: int, labels=None):
    return make_loader(dataset, labels, eval_transform(), batch_size=size, shuffle=False)


def test_metrics_do_not_depend_on_the_batches(model, dataset):
    one, many = (score(model, batches(dataset, size), initial=True) for size in (1, 8))
    assert list(one) == ["semseg", "initial/semseg", "edge", "initial/edge", "heat", "initial/heat"]
    for key in one:
        assert one[key] == pytest.approx(many[key], rel=1e-3, abs=1e-3), key


def test_metrics_are_those_of_the_decoded_maps(model, dataset):
    out = score(model, batches(dataset, 4))
    metric = dataset.tasks["heat"].new_metric()
    model.eval()
    with torch.no_grad():
        for batch in batches(dataset, 8):
            logits = model(batch.image, noise=CounterNoise(0, batch.index)).final["heat"]
            metric.update(dataset.tasks["heat"].decode(logits), batch.labels["heat"])
    assert out["heat"] == pytest.approx(metric.compute(), rel=1e-3)


def test_options(model, dataset):
    done = []
    model.train()
    out = score(model, batches(dataset, 3), tasks=["edge"], steps=1, on_batch=done.append)
    assert list(out) == ["edge"] and done == [3, 3, 2] and model.training
    assert out["edge"] != score(model, batches(dataset, 3), tasks=["edge"], steps=1, seed=1)["edge"]
    model.eval()
    score(model, batches(dataset, 8), tasks=["edge"])
    assert not model.training


def test_the_mode_is_restored_after_an_error(model):
    model.train()
    with pytest.raises(AttributeError):
        score(model, [None])
    assert model.training


def test_evaluation_does_not_move_the_statistics(model, dataset):
    model.train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    score(model, batches(dataset, 4))
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_primary_metrics(model, dataset):
    metrics = score(model, batches(dataset, 4), initial=True)
    primary = primary_metrics(metrics, model.tasks)
    assert set(primary) == {"semseg", "edge", "heat"}
    assert primary["semseg"] == ("mIoU", metrics["semseg"]["mIoU"], True)
    assert primary["heat"][2] is False


def test_shares_add_up_to_the_bit(model, dataset):
    """Each of three processes reads every third batch, and only those."""
    alone = score(model, batches(dataset, 1), initial=True)
    scores = scoring._Scores(model.eval(), model.tasks, True, None, lambda batch, maps: None)
    states, seen = [], []
    for rank in range(3):
        sums = scoring._Sums(World())
        for batch in scoring._share(batches(dataset, 1), World(rank, 3)):
            seen.append(batch.position)
            with torch.inference_mode():
                sums.add(scores(batch, list(model.tasks), steps=None, seed=0))
        states.append((sums.counts, sums.parts))
    assert seen == [0, 3, 6, 1, 4, 7, 2, 5]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scoring, "gather", lambda value: states)
        meters = scoring._Sums(World(0, 3)).meters(scores.meter)
    for (name, kind, _), meter in meters.items():
        assert repr(meter.compute()) == repr(alone[name if kind == "final" else f"initial/{name}"])


class Hits(Metric):
    """Stands for the boundary metric: the share of pixels above one half that lie on the truth."""

    def __init__(self, ignore: float):
        names = ("hits", "pixels", "images")
        super().__init__({name: torch.zeros((), dtype=torch.int64) for name in names}, ignore=ignore)

    def _accumulate(self, map_BHW, label_BKHW, valid_BHW) -> None:
        hits = (map_BHW > 0.5) & (label_BKHW[:, 0] > 0.5) & valid_BHW
        self._add(hits=hits.sum(), pixels=valid_BHW.sum(), images=torch.tensor(len(map_BHW)))

    def compute(self) -> dict[str, float]:
        hits, pixels, images = (self._sums[name].item() for name in ("hits", "pixels", "images"))
        return {"odsF_raw": hits / max(pixels, 1), "images_raw": images}


class EdgeMaps:
    """Stands for a model: edge maps by id, laid into the frame of their batch."""

    device = torch.device("cpu")

    def __init__(self, tasks, maps):
        self.tasks, self.maps = tasks, maps

    def maps_of(self, batch, names):
        out = torch.full((len(batch), *batch.image.shape[-2:]), 0.9)  # scores high wherever it may not count
        for row, id in enumerate(batch.ids):
            out[row][batch.unpadded(row)] = self.maps[id]
        return {"edge": out}


@pytest.mark.parametrize("frame", [None, (41, 50)])
def test_boundaries_of_the_image_without_its_padding(images, frame, monkeypatch):
    """Apart truth where there is one, the edge label elsewhere; listed images with an edge label alone."""
    data = open_dataset(images, "train", tasks=["edge"])
    data.tasks = {"edge": make_task("edge")}
    rng = np.random.default_rng(0)
    maps = {id: torch.from_numpy(rng.random((32, 32), np.float32)) for id in data.ids}
    truths = {2: torch.from_numpy(rng.random((32, 32)) < 0.5), 3: torch.zeros(32, 32, dtype=torch.bool)}
    labels = LabelMatrix(data.ids, ["edge"], np.arange(8)[:, None] != 4)  # i4 has no edge label
    loader = make_loader(data, labels, eval_transform(frame=frame), batch_size=3, shuffle=False)
    scored = Boundaries(Hits, lambda index, task: truths.get(index), ids=[f"i{n}" for n in range(1, 7)])
    out = score(EdgeMaps(data.tasks, maps), loader, tasks=data.tasks, boundaries=scored)["edge"]
    hits = pixels = 0
    for index in (1, 2, 3, 5, 6):
        label = data.read(index).labels["edge"][0] if index not in truths else truths[index]
        hits += int(((maps[f"i{index}"] > 0.5).numpy() & (label.numpy() > 0)).sum())
        pixels += 32 * 32
    assert out["odsF_raw"] == hits / pixels and out["images_raw"] == 5
    assert primary_metrics({"edge": out}, data.tasks) == {"edge": ("odsF_raw", hits / pixels, True)}


def test_every_thin_task_is_scored_as_boundaries(images):
    """By capability, not by name; each with its own truth, and no other task."""
    data = open_dataset(images, "train", tasks=["edge"])
    tasks = {
        "edge": make_task("edge"),
        "cracks": make_task("cracks", "binary", thin=True),
        "mask": make_task("mask", "binary"),
    }
    truth = torch.zeros(32, 32, dtype=torch.bool)
    scored = Boundaries(Hits, lambda index, task: truth if task == "cracks" else None)
    map_BHW = torch.ones(len(data), 32, 32)
    model = SimpleNamespace(tasks=tasks, device=torch.device("cpu"))
    model.maps_of = lambda batch, names: dict.fromkeys(names, map_BHW[: len(batch)])

    def batches():
        data.tasks = {"edge": tasks["edge"]}
        for batch in make_loader(data, None, eval_transform(), batch_size=3, shuffle=False):
            for name in ("cracks", "mask"):
                batch.labels[name], batch.present[name] = batch.labels["edge"], batch.present["edge"]
            yield batch

    out = score(model, batches(), tasks=tasks, boundaries=scored)
    assert out["cracks"]["odsF_raw"] == 0 < out["edge"]["odsF_raw"] and "odsF_raw" not in out["mask"]
    assert [name for name, _, _ in primary_metrics(out, tasks).values()] == ["odsF_raw", "odsF_raw", "pixelF"]


def test_tasks_of_the_data_set_say_what_labels_mean(model, dataset):
    """Their order of classes, which have the names of the model's, and their ignored value."""
    theirs = {"semseg": make_task("semseg", classes=["car", "sky", "road"], ignore=77)}
    batch = next(iter(batches(dataset, 8)))
    batch.labels["semseg"][:, :, :20] = 77
    out = score(model, [batch], tasks=theirs)
    assert list(out) == ["semseg"]
    with torch.no_grad():
        map = model.maps(batch.image, noise=CounterNoise(0, batch.index)).maps["semseg"][:, 20:]
    right = (torch.tensor([1, 2, 0])[map] == batch.labels["semseg"][:, 0, 20:]).double().mean().item()
    assert out["semseg"]["pixel_acc"] == pytest.approx(100 * right, rel=1e-9)
    assert [key for key in out["semseg"] if "/" in key] == ["IoU/car", "IoU/sky", "IoU/road"]


@pytest.mark.parametrize("initial", [False, True])
def test_maps_are_handed_out(model, dataset, initial):
    """All final maps of all images, as they are scored."""
    seen = {}

    def on_maps(batch, maps):
        for row, id in enumerate(batch.ids):
            seen[id] = maps["heat"][row]

    out = score(model, batches(dataset, 3), initial=initial, on_maps=on_maps)
    maps = torch.stack([seen[id] for id in dataset.ids])
    labels = torch.stack([dataset.read(index).labels["heat"][0] for index in range(8)])
    error = (maps - labels).abs()[labels > -1e30].double().mean().item()
    assert out["heat"]["abs_err"] == pytest.approx(error, rel=1e-5)


def test_uncertainty_is_scored_over_all_batches(model, dataset):
    engine = Engine(model, samples=2)
    one, many = (score(engine, batches(dataset, size), tasks=["edge", "heat"]) for size in (8, 3))
    for task in ("edge", "heat"):
        assert one[task]["uncertainty_auroc"] == pytest.approx(many[task]["uncertainty_auroc"], abs=1e-3)


def test_an_image_is_predicted_at_its_own_size_whatever_shares_its_batch(tmp_path):
    """Landscape and portrait images in one batch are padded to a square for their labels only."""
    rng = np.random.default_rng(0)
    for index, size in enumerate([(40, 70), (70, 40), (40, 70)]):
        for folder, picture in (("images", (*size, 3)), ("edge", size)):
            path = tmp_path / folder / f"{index}.png"
            path.parent.mkdir(exist_ok=True)
            limit = 256 if folder == "images" else 2
            Image.fromarray(rng.integers(0, limit, picture).astype(np.uint8)).save(path)
    (tmp_path / "dataset.yaml").write_text("tasks: {edge: {kind: binary}}\n")
    (tmp_path / "splits").mkdir()
    (tmp_path / "splits" / "val.txt").write_text("0\n1\n2\n")
    data = open_dataset(tmp_path, "val")
    model = create_model("diffusionmtl", data.tasks, width=8, heads=2, backbone_width=4, blocks=1).eval()
    singly, together = [], []
    for size, maps in ((1, singly), (3, together)):
        keep = lambda batch, found, maps=maps: maps.extend(  # noqa: E731
            found["edge"][row][batch.unpadded(row)] for row in range(len(batch))
        )
        score(Engine(model), batches(data, size), on_maps=keep)
    for one, other in zip(singly, together, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
