"""Predictions in parts: shards, interrupted calls that continue, and what is never mixed."""

import json
import os
import shutil
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from dmtl.errors import ConfigError, DataError
from dmtl.predict import Predictor
from dmtl.predict.inputs import Input
from dmtl.predict.ledger import Ledger
from dmtl.predict.outputs import Outputs
from dmtl.predict.parts import Part, units_of
from dmtl.runtime.distributed import World

from .test_predictor import save
from .test_video import film


def tree(folder: Path) -> dict[str, bytes]:
    """Every file by its path, hidden ones too."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def index(folder: Path) -> dict:
    return json.loads((folder / "maps.json").read_text())


@pytest.fixture
def images(tmp_path):
    """Eleven images of two sizes, and one that is none."""
    for i in range(11):
        save(tmp_path / "in" / f"{i:02}.png", *((8, 12) if i % 4 else (12, 8)))
    (tmp_path / "in" / "05.png").write_bytes(b"broken")
    (tmp_path / "in" / "notes.txt").write_text("no image")
    return tmp_path / "in"


@contextmanager
def interrupted(model, number):
    """Prediction stops at the n-th image."""
    maps, calls = type(model).maps, []

    def stopped(self, *arguments, **options):
        calls.append(0)
        if len(calls) == number:
            raise KeyboardInterrupt
        return maps(self, *arguments, **options)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(type(model), "maps", stopped)
        yield patch


@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_units_are_dealt_out_once_and_evenly(count):
    names = [f"{i}.{'mp4' if i % 3 == 0 else 'png'}" for i in range(20)] + [f"{i}.png" for i in range(20, 40)]
    units = list(units_of([Input(Path(name), name) for name in names], 4))
    assert [item.name for unit in units for item in unit] == names
    assert max(map(len, units)) == 4 and all(len(unit) == 1 for unit in units if unit[0].is_video)
    parts = [list(Part(k, count).take(units)) for k in range(count)]
    assert sorted(map(units.index, sum(parts, []))) == list(range(len(units)))
    for is_video in (True, False):
        sizes = [sum(unit[0].is_video == is_video for unit in part) for part in parts]
        assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("order", [(1, 2, 3), (3, 1, 2)])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_shards_together_are_one_call(model, tmp_path, images, order, batch_size):
    """To the bit, with a network whose batches matter."""
    from dmtl.models import ModelConfig, create_model

    specs = [model.tasks[name].spec() for name in ("semseg", "height")]
    net = create_model(
        ModelConfig(tasks=specs, width=8, backbone_width=4, heads=2, blocks=1, decoder_blocks=1)
    )
    predictor = Predictor(net, batch_size=batch_size)
    whole = predictor.predict_files([images], tmp_path / "whole")
    for place, k in enumerate(order):
        summary = predictor.predict_files([images], tmp_path / "shards", shard=(k, 3))
        assert summary.missing == sorted(order[place + 1 :])
        assert ("maps.json is written" in str(summary)) == bool(summary.missing)
        if summary.missing:
            assert index(tmp_path / "shards")["inputs"] is None
    assert tree(tmp_path / "shards") == tree(tmp_path / "whole")
    assert summary.written == whole.written and len(whole.written) == 10
    assert summary.failures == whole.failures and summary.left_out == whole.left_out


def test_more_shards_than_inputs(model, tmp_path):
    paths = [save(tmp_path / f"{name}.png") for name in "ab"]
    for k in range(1, 6):
        summary = Predictor(model).predict_files(paths, tmp_path / "out", shard=(k, 5))
    assert summary.written == ["a", "b"] and not summary.missing


@pytest.mark.parametrize("shard", [(0, 2), (3, 2), (1, 0)])
def test_shards_that_do_not_exist(model, tmp_path, shard):
    with pytest.raises(ConfigError, match="shard must be"):
        Predictor(model).predict_files([save(tmp_path / "a.png")], tmp_path / "out", shard=shard)
    assert not (tmp_path / "out").exists()


def test_shards_of_several_processes():
    parts = [Part.of((k, 3), World(rank, 2)) for k in (1, 2, 3) for rank in (0, 1)]
    assert [part.number for part in parts] == list(range(6)) and {part.count for part in parts} == {6}
    assert list(parts[3].together) == [2, 3] and parts[0].shards([1, 2, 3, 5]) == [1, 2, 3]


def test_processes_that_share_no_folder(model, tmp_path, monkeypatch):
    monkeypatch.setattr("dmtl.predict.ledger._VISIBLE", 0)
    with pytest.raises(DataError, match="out: process 1 does not see this folder"):
        Predictor(model).predict_files([save(tmp_path / "a.png")], tmp_path / "out", world=World(0, 2))


def test_processes_that_see_different_inputs(model, tmp_path, monkeypatch):
    monkeypatch.setattr("dmtl.predict.predictor.gather", lambda seen: [seen, ("other", seen[1])])
    with pytest.raises(DataError, match="out: the processes have different inputs"):
        Predictor(model).predict_files([save(tmp_path / "a.png")], tmp_path / "out", world=World(0, 2))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["images", "video"])
@pytest.mark.parametrize("again", [[(1, 1)], [(1, 2), (2, 2)]])
def test_a_killed_shard_continues_with_any_number_of_parts(model, tmp_path, images, kind, again):
    if kind == "video":
        pytest.importorskip("av")
        film(tmp_path / "in" / "04.mp4", count=6)
    predictor, out = Predictor(model, tasks=["sal", "height"]), tmp_path / "out"
    predictor.predict_files([images], tmp_path / "whole")
    for shard in ((1, 3), (2, 3)):
        predictor.predict_files([images], out, shard=shard)
    done = {path.stat().st_ino for path in out.rglob("*.png")}
    with interrupted(model, 2 if kind == "images" else 3) as patch:
        patch.setattr(Ledger, "interrupt", lambda self: self._journal.close())  # nothing is tidied up
        predictor.predict_files([images], out, shard=(3, 3))
    (journal,) = (out / ".parts").glob("*.open")
    journal.write_text(journal.read_text() + '{"input": "torn')
    (out / "sal" / ".08.png.abcd1234.png").write_bytes(b"torn")  # as write_atomically leaves it
    (out / "sal" / ".other.png.abcd1234.png").write_bytes(b"not of these inputs")
    before = len(model.calls)
    for shard in again:
        summary = predictor.predict_files([images], out, shard=shard)
    (out / "sal" / ".other.png.abcd1234.png").unlink()
    files, expected = tree(out), tree(tmp_path / "whole")
    assert files.keys() == expected.keys()
    assert all(files[name] == expected[name] for name in files if not name.endswith(".mp4"))
    assert done <= {path.stat().st_ino for path in out.rglob("*.png")}  # none of these was written again
    assert len(model.calls) - before == (1 if kind == "images" else 7)
    assert summary.kept > 0 and f", {summary.kept} of them earlier" in str(summary)


def test_an_interrupted_call_continues(model, tmp_path, images):
    """Ctrl-C: what was done is in maps.json, nothing else is left, and the next call does the rest."""
    predictor = Predictor(model, tasks=["sal"])
    predictor.predict_files([images], tmp_path / "whole")
    before = len(model.calls)
    with interrupted(model, 5):
        predictor.predict_files([images], tmp_path / "out")
    assert not (tmp_path / "out" / ".parts").exists() and index(tmp_path / "out")["inputs"] is None
    summary = predictor.predict_files([images], tmp_path / "out")
    assert len(model.calls) - before == 10 and summary.kept == 4
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")


def mend(images, out):
    save(images / "05.png", 8, 8)


def remove_an_output(images, out):
    (out / "overview" / "03.png").unlink()


def change_an_input(images, out):
    save(images / "03.png", 9, 9)


def move_another_in_its_place(images, out):
    os.utime(save(images / "new.png", 9, 9), (0, 0))
    (images / "new.png").replace(images / "03.png")


def add_an_input(images, out):
    save(images / "99.png")


def rename_by_a_namesake(images, out):
    save(images / "03.jpg")


@pytest.mark.parametrize(
    ("change", "predicted"),
    [
        (lambda images, out: None, []),
        (mend, ["05"]),
        (remove_an_output, ["03"]),
        (change_an_input, ["03"]),
        (move_another_in_its_place, ["03"]),
        (add_an_input, ["99"]),
        (rename_by_a_namesake, ["03.jpg", "03.png"]),
    ],
)
def test_only_what_is_missing_or_older_than_its_input_is_predicted(
    model, tmp_path, images, monkeypatch, change, predicted
):
    predictor, out, names = Predictor(model, tasks=["sal"]), tmp_path / "out", []
    predictor.predict_files([images], out)
    change(images, out)
    write = Outputs.write
    monkeypatch.setattr(
        Outputs, "write", lambda self, frame, maps: names.append(frame.name) or write(self, frame, maps)
    )
    summary = predictor.predict_files([images], out)
    assert sorted(names) == predicted and summary.kept == len(summary.written) - len(predicted)
    predictor.predict_files([images], tmp_path / "straight")
    assert tree(out)["maps.json"] == tree(tmp_path / "straight")["maps.json"]
    assert tree(tmp_path / "straight").items() <= tree(out).items()


def test_a_batch_is_predicted_as_a_whole(model, tmp_path):
    """So that its bits do not depend on what was missing."""
    for i in range(6):
        save(tmp_path / "in" / f"{i}.png", 8, 8)
    predictor = Predictor(model, batch_size=3)
    predictor.predict_files([tmp_path / "in"], tmp_path / "out")
    (tmp_path / "out" / "sal" / "4.png").unlink()
    model.calls.clear()
    assert predictor.predict_files([tmp_path / "in"], tmp_path / "out").kept == 3
    assert [shape for shape, _, _ in model.calls] == [(3, 3, 8, 8)]


@pytest.mark.parametrize(
    ("options", "call", "text"),
    [
        ({"steps": 2}, {}, "the trained number of steps, now 2"),
        ({"seed": 1}, {}, "seed 0, now 1"),
        ({"samples": 2}, {}, "samples 1, now 2"),
        ({"batch_size": 2}, {}, "the default batch size, now 2"),
        ({"precision": "bf16"}, {}, "precision 'fp32', now 'bf16'"),
        ({"tasks": ["sal"]}, {}, "other tasks"),
        ({}, {"pictures": False}, "pictures True, now False"),
        ({}, {"npy": True}, "npy False, now True"),
        ({}, {"every": 2}, "every 1, now 2"),
        ({}, {"frames": 2}, "all frames, now 2"),
        ({"tile": 0}, {}, "automatic tiles, now 0"),
    ],
)
def test_other_options_are_refused(model, tmp_path, options, call, text):
    path = save(tmp_path / "a.png")
    Predictor(model).predict_files([path], tmp_path / "out")
    before = tree(tmp_path / "out")
    with pytest.raises(DataError, match=f"out: holds maps made with {text}; choose another folder"):
        Predictor(model, **options).predict_files([path], tmp_path / "out", **call)
    assert tree(tmp_path / "out") == before


def test_an_option_that_is_no_longer_given_is_refused(model, tmp_path):
    path = save(tmp_path / "a.png")
    Predictor(model, steps=2).predict_files([path], tmp_path / "out")
    with pytest.raises(DataError, match="made with steps 2, now the trained number of steps; choose"):
        Predictor(model).predict_files([path], tmp_path / "out")


@pytest.mark.parametrize("what", ["weight", "config"])
def test_another_model_is_refused(model, tmp_path, what):
    from dmtl.models import ModelConfig, create_model

    def network(**options):
        torch.manual_seed(0)
        specs = [model.tasks[name].spec() for name in ("semseg", "depth")]
        small = dict(width=8, backbone_width=4, heads=2, blocks=1, decoder_blocks=1)
        return create_model(ModelConfig(tasks=specs, **small | options))

    path, other = save(tmp_path / "a.png"), network(**({"steps": 3} if what == "config" else {}))
    Predictor(network()).predict_files([path], tmp_path / "out")
    assert Predictor(network()).predict_files([path], tmp_path / "out").kept == 1
    if what == "weight":
        with torch.no_grad():
            next(reversed(list(other.parameters()))).add_(1e-6)
    with pytest.raises(DataError, match="holds maps made with another model"):
        Predictor(other).predict_files([path], tmp_path / "out")


def test_two_calls_that_begin_together_with_other_options(model, tmp_path, monkeypatch):
    """Neither sees the other's maps.json in time; their parts give them away."""
    path, out = save(tmp_path / "a.png"), tmp_path / "out"
    Predictor(model, seed=1).predict_files([path], out, shard=(1, 2))
    (part,) = (out / ".parts").iterdir()
    part.rename(part.with_suffix(".open"))
    (out / "maps.json").unlink()
    shutil.rmtree(out / "sal")
    monkeypatch.setattr("dmtl.predict.predictor.output_folder", Path)
    with pytest.raises(DataError, match="seed 1, now 0"):
        Predictor(model).predict_files([path], out, shard=(2, 2))
    assert [file.name for file in (out / ".parts").iterdir()] == ["1-of-2.open"]


def test_shards_of_different_lists_are_never_merged(model, tmp_path, images):
    predictor, out = Predictor(model, tasks=["sal"]), tmp_path / "out"
    predictor.predict_files([images], out, shard=(1, 2))
    save(images / "99.png")
    assert predictor.predict_files([images], out, shard=(2, 2)).missing == [1]
    assert index(out)["inputs"] is None and index(out)["images"] == []
    summary = predictor.predict_files([images], out, shard=(1, 2))
    assert not summary.missing and len(index(out)["images"]) == 11
    predictor.predict_files([images], tmp_path / "whole")
    assert tree(out) == tree(tmp_path / "whole")


def test_shards_that_finish_at_the_same_time(model, tmp_path, images, monkeypatch):
    """The other one has written maps.json and removed the parts while this one was about to."""
    predictor, out = Predictor(model, tasks=["sal"]), tmp_path / "out"
    predictor.predict_files([images], tmp_path / "whole")
    predictor.predict_files([images], out, shard=(1, 2))
    gather = Ledger._gather

    def late(self, numbers):
        monkeypatch.setattr(Ledger, "_gather", gather)
        predictor.predict_files([images], out, shard=(1, 2))
        assert index(out)["inputs"] is not None and not (out / ".parts").exists()
        return gather(self, numbers)

    monkeypatch.setattr(Ledger, "_gather", late)
    summary = predictor.predict_files([images], out, shard=(2, 2))
    assert len(summary.written) == 10 and not summary.missing
    assert tree(out) == tree(tmp_path / "whole")


@pytest.mark.parametrize("place", ["maps.json", ".parts/1-of-2.jsonl"])
@pytest.mark.parametrize("content", ["{", "[]", "{}", ""])
def test_damaged_records_are_refused(model, tmp_path, place, content, monkeypatch):
    path, out = save(tmp_path / "a.png"), tmp_path / "out"
    Predictor(model).predict_files([path], out, shard=(1, 2))
    (out / place).write_text(content)
    monkeypatch.setattr("dmtl.predict.predictor.output_folder", Path)
    with pytest.raises(DataError, match="out"):
        Predictor(model).predict_files([path], out, shard=(2, 2))


def test_a_folder_in_which_only_a_torn_file_is(model, tmp_path):
    """Left by a process that was killed, or just being written by another."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".maps.json.abcd1234.json").write_text("{")
    assert Predictor(model).predict_files([save(tmp_path / "a.png")], tmp_path / "out").ok
