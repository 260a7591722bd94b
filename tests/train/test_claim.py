"""The methods of a table: what a file may say of them, and which runs follow."""

import dataclasses
import json

import pytest

from dmtl.data.sources import Source
from dmtl.errors import ConfigError
from dmtl.train.claim import claim_of
from dmtl.train.config import DataConfig, OptimConfig, RunConfig
from dmtl.train.identity import identity, what_changed
from dmtl.train.jobs import Job, run_jobs
from dmtl.train.toml import read_config, read_methods, write_config

MTL = {"model": {"diffusion": "none"}}
TIMED = {"mtl": MTL, "feature": {}, "longer": {"like": "mtl", "time_of": "feature"}}


def finish(folder, seconds: float, config: RunConfig | None = None, steps: int = 100) -> None:
    folder.mkdir(parents=True)
    (folder / "metrics.json").write_text(json.dumps({"step": steps, "seconds": seconds}))
    if config is not None:
        write_config(config, folder / "config.toml")


def test_methods_change_what_the_file_says(tmp_path):
    (tmp_path / "base.toml").write_text(
        "[optim]\nlr = 0.5\n[methods.mtl]\nlabel = 'MTL'\nmodel = {diffusion = 'none'}\n"
        "[methods.mtpsl]\nlike = 'mtl'\noptim = {objectives = {mtpsl = 2.0}, task_weights = {edge = 3}}"
    )
    (tmp_path / "table.toml").write_text(
        "extends = 'base.toml'\n[optim]\nsteps = 7\n[methods.mtpsl]\n"
        "optim = {objectives = {mtpsl = 1}}\n[methods.own]"
    )
    config = read_config(tmp_path / "table.toml")
    claim = claim_of(config, read_methods(tmp_path / "table.toml"))
    assert list(claim.methods) == ["mtl", "mtpsl", "own"] and claim.baseline == "mtl"
    mtl, mtpsl, own = claim.methods.values()
    assert (mtl.label, mtpsl.label, own.config) == ("MTL", "mtpsl", config)
    assert mtpsl.config.model == mtl.config.model and mtl.config.model.diffusion == "none"
    assert mtpsl.config.optim.objectives == {"mtpsl": 1.0} and mtl.config.optim.objectives == {}
    assert mtpsl.config.optim.task_weights == {"edge": 3.0}
    assert (mtpsl.config.optim.lr, mtpsl.config.optim.steps) == (0.5, 7)
    assert read_methods(tmp_path / "base.toml").keys() == {"mtl", "mtpsl"}
    write_config(config, tmp_path / "plain.toml")
    assert read_methods(tmp_path / "plain.toml") is None


@pytest.mark.parametrize(
    ("section", "message"),
    [
        (3, "methods must be a table, got 3"),
        ({"mtl": 3}, "methods.mtl must be a table, got 3"),
        ({"a/b": {}}, "methods.'a/b' must use"),
        (
            {"mtl": {"modle": {}}},
            "mtl.modle is not a known key; did you mean 'methods.mtl.model'. .known here: label",
        ),
        ({"mtl": {"model": {"stepz": 1}}}, "methods.mtl.model.stepz is not a known key; did you mean"),
        ({"mtl": {"optim": {"lr": "x"}}}, "methods.mtl.optim.lr must be of type float, got 'x'"),
        ({"mtl": {"model": {"width": 7}}}, "methods.mtl: model.width must be a multiple"),
        ({"mtl": {"like": "mlt"}}, "methods.mtl.like: no method is named 'mlt'; .* 'mtl'.* .methods: mtl"),
        ({"mtl": {"like": "mtl"}}, "methods.mtl.like must name a method without like, got 'mtl'"),
        ({"mtl": {}, "b": {"like": "mtl"}, "c": {"like": "b"}}, "methods.c.like must name a method without"),
        ({"mtl": {}, "b": {"time_of": "mtl"}}, "methods.b.time_of needs methods.b.like"),
        ({"mtl": {"single_task": 1}}, "methods.mtl.single_task must be of type bool, got 1"),
        (
            {**TIMED, "c": {"like": "mtl", "time_of": "longer"}},
            "methods.c.time_of must name a method without",
        ),
        (
            {"mtl": {}, "s": {"single_task": True}, "t": {"like": "s", "time_of": "mtl"}},
            "methods.t: single_task and time_of cannot be combined",
        ),
        ({"mtl": {"single_task": True, "single_source": True}}, "single_task and single_source cannot be"),
        (
            {"mtl": {"data": {"root": "b"}}},
            r"methods\.mtl\.data\.root: all methods .* the same data and seeds",
        ),
        ({"mtl": {"optim": {"seed": 5}}}, r"methods\.mtl\.optim\.seed: .*; use --seeds"),
        ({"mtl": {"single_source": True}}, "methods.mtl.single_source needs data.sources"),
        ({"own": {}}, "methods.baseline must name .* .methods: own."),
        ({}, "methods.baseline must name .* .methods: none."),
        ({"baseline": "owm", "own": {}}, "methods.baseline: no method is named 'owm'; did you mean 'own'"),
    ],
)
def test_what_is_wrong_is_named(section, message):
    with pytest.raises(ConfigError, match=message):
        claim_of(RunConfig(data=DataConfig(tasks=["edge"])), section)


def test_runs_of_a_seed(tmp_path):
    config = RunConfig(data=DataConfig(tasks=["edge", "depth"]))
    section = TIMED | {"stl": {"single_task": True, "like": "mtl"}}
    claim = claim_of(config, section)
    jobs = claim.jobs(tmp_path, [4, 5], claim.with_needed(["stl"]))
    assert [str(job.out.relative_to(tmp_path)) for job in jobs] == [
        f"seed{seed}/stl/{task}" for seed in (4, 5) for task in ("edge", "depth")
    ]
    run = jobs[-1].config()
    assert (run.data.tasks, run.optim.seed, run.model.diffusion) == (["depth"], 5, "none")
    assert run.out == str(jobs[-1].out)
    assert claim.with_needed(["longer"]) == {"longer", "mtl", "feature"}
    finish(tmp_path / "seed5" / "mtl", 10)  # of another method than the wanted ones: in the table
    assert [job.name for job in claim.jobs(tmp_path, [5], ["feature"])] == ["seed 5: mtl", "seed 5: feature"]
    scenes = claim_of(RunConfig(), {"mtl": MTL, "stl": {"single_task": True}})
    assert set(scenes.methods["stl"].parts) >= {"semseg", "edge", "depth"}


def test_a_run_for_each_source(tmp_path):
    sources = [Source("rooms", weight=2.0, drop=["edge"]), Source("elsewhere/photos", name="street")]
    config = RunConfig(data=DataConfig(sources=sources))
    claim = claim_of(config, {"mtl": MTL, "alone": {"single_source": True}})
    whole, *alone = claim.jobs(tmp_path, [7], claim.methods)
    assert whole.config().data == config.data
    assert [job.out for job in alone] == [tmp_path / "seed7" / "alone" / name for name in ("rooms", "street")]
    for job, source in zip(alone, sources, strict=True):
        assert job.config().data == DataConfig(sources=[source]) and job.config().optim.seed == 7


def test_as_many_steps_as_fit_into_the_time_of_another_method(tmp_path):
    claim = claim_of(RunConfig(optim=OptimConfig(epochs=3, warmup=20)), TIMED)
    *_, job = claim.jobs(tmp_path, [0], claim.methods)
    assert [path.name for path in job.needs] == ["mtl", "feature"] and not job.ready
    finish(tmp_path / "seed0" / "mtl", 50, steps=100)
    assert not job.ready
    finish(tmp_path / "seed0" / "feature", 80, steps=90)
    optim = job.config().optim
    assert job.ready and (optim.steps, optim.epochs, optim.warmup) == (160, 0, 32)


def test_a_failed_run_leaves_out_what_needs_it(tmp_path):
    """The others are run; nothing is started for what is finished."""
    broken = RunConfig(data=DataConfig(root=str(tmp_path / "nothing")))
    config = dataclasses.replace(broken, out="elsewhere")
    finish(tmp_path / "done", 5, config)
    jobs = [
        Job("done", tmp_path / "done", (), lambda: config),
        Job("bad", tmp_path / "bad", (tmp_path / "done",), lambda: broken),
        Job("after", tmp_path / "after", (tmp_path / "bad",), lambda: broken),
    ]
    failed = run_jobs(jobs)
    assert len(failed) == 2 and failed[0].startswith("bad failed: dmtl train: ")
    assert failed[1] == "after was skipped, because a run that it needs failed"
    assert not (tmp_path / "done.log").exists() and (tmp_path / "bad.log").is_file()


def test_what_changed_between_two_configurations():
    config = RunConfig(optim=OptimConfig(lr=0.5))
    older = identity(config)
    assert what_changed(older, config) == ""
    del older["model"]["without"]  # written before the key was known
    assert what_changed(older, config) == ""
    assert what_changed(older, RunConfig()) == "optim.lr was 0.5, now 0.001"
    moved = dataclasses.replace(config, out="elsewhere", data=DataConfig(workers=3))
    assert what_changed(older, moved) == ""
