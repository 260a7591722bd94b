"""The run's configuration: TOML there and back, and every wrong value named."""

import pytest

from dmtl.errors import ConfigError
from dmtl.models import ModelConfig
from dmtl.train.config import DataConfig, OptimConfig, RunConfig
from dmtl.train.setup import open_data
from dmtl.train.toml import config_from_dict, read_config, to_toml, write_config


def read(tmp_path, text: str) -> RunConfig:
    (tmp_path / "run.toml").write_text(text, encoding="utf-8")
    return read_config(tmp_path / "run.toml")


@pytest.mark.parametrize(
    "config",
    [
        RunConfig(),
        RunConfig(
            out='a "quoted" \\ path\n\x7f\x01 é 😀',
            data=DataConfig(tasks=["edge", "a b"], scale=(1.0, 1.0)),
            optim=OptimConfig(
                lr=1e-05, task_weights={"human.parts": 2.0, "é": 0.0}, optimizer="adam", deterministic=True
            ),
            model=ModelConfig(betas=[0.1, 1e-9], tasks=[{"name": "edge", "kind": "binary", "weight": 50.0}]),
        ),
    ],
)
def test_round_trip(tmp_path, config):
    write_config(config, tmp_path / "deep" / "config.toml")
    assert read_config(tmp_path / "deep" / "config.toml") == config


def test_a_file_overrides_the_defaults(tmp_path):
    config = read(
        tmp_path,
        'out = "x"\n[optim]\nlr = 1\nsteps = 7\n[data]\nsize = [64, 48]\n[model]\ndiffusion = "none"\n',
    )
    assert (config.out, config.optim.lr, config.optim.steps, config.data.size) == ("x", 1.0, 7, (64, 48))
    assert isinstance(config.optim.lr, float) and config.model.diffusion == "none"
    assert config.log == RunConfig().log and config.data.root == "scenes"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[optim]\nstep = 3", r"optim\.step is not a known key; did you mean 'optim\.steps'"),
        ("[optm]\nlr = 3", "optm is not a known key; did you mean 'optim'"),
        ("[model]\nwidht = 3", r"model\.widht is not a known key; did you mean 'model\.width'"),
        ("[log]\nzzz = 3", r"log\.zzz is not a known key \(known here: every"),
        ("optim = 3", "optim must be a table, got 3"),
        ('[optim]\nsteps = "3"', r"optim\.steps must be of type int, got '3'"),
        ("[optim]\nsteps = 3.5", r"optim\.steps must be of type int, got 3\.5"),
        ("[optim]\nsteps = true", r"optim\.steps must be of type int, got True"),
        ("[optim]\nlr = true", r"optim\.lr must be of type float, got True"),
        ("[data]\nflip = 1", r"data\.flip must be of type bool, got 1"),
        ('[data]\ntasks = "edge"', r"data\.tasks must be a list, got 'edge'"),
        ("[data]\ntasks = [1]", r"data\.tasks must be of type str, got 1"),
        ("[data]\nsize = [64]", r"data\.size must be a list of 2 values, got \[64\]"),
        ("[data]\nsize = [64, 0]", r"data\.size must be a height and a width of at least 1"),
        ("[data]\nscale = [2, 1]", r"data\.scale must be \(low, high\)"),
        ('[optim]\nprecision = "fp8"', r"optim\.precision must be one of auto, fp32, bf16, fp16, got 'fp8'"),
        ("[optim]\ntask_weights = 3", r"optim\.task_weights must be a table"),
        ('[optim.task_weights]\nedge = "x"', r"optim\.task_weights\.edge must be of type float"),
        ("[optim.task_weights]\nedge = -1", r"optim\.task_weights\.edge must be at least 0"),
        ("[optim]\nsteps = 0", r"optim\.steps must be at least 1"),
        ("[optim]\nlr = nan", r"optim\.lr must be at least 0 and finite, got nan"),
        ("[optim]\nclip = inf", r"optim\.clip must be at least 0 and finite"),
        ("[optim]\nema = 1.0", r"optim\.ema must be below 1"),
        ("[log]\nevery = 0", r"log\.every must be at least 1"),
        ("[model]\nwidth = 0", r"model\.width must be at least 1"),
        ('[model]\ndiffusion = "both"', r"model\.diffusion must be one of feature, prediction, none"),
        ("[model]\ntasks = [3]", r"model\.tasks must be a table"),
        ("a = ", "not valid TOML"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, text, message):
    with pytest.raises(ConfigError, match=f"{tmp_path / 'run.toml'}: {message}"):
        read(tmp_path, text)


def test_no_file_and_no_text(tmp_path):
    with pytest.raises(ConfigError, match="nothing.toml: no such configuration file"):
        read_config(tmp_path / "nothing.toml")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="binary.toml: not valid TOML"):
        read_config(tmp_path / "binary.toml")


def test_none_is_left_out():
    assert "betas" not in to_toml(RunConfig()) and "None" not in to_toml(RunConfig())
    assert config_from_dict({"data": {"tasks": None}}) == RunConfig()


def write(tmp_path, **files: str) -> None:
    for name, text in files.items():
        (tmp_path / f"{name}.toml").write_text(text)


def test_extends_merges_tables_and_replaces_the_rest(tmp_path):
    (tmp_path / "bases").mkdir()
    write(
        tmp_path / "bases",
        low='out = "low"\n[optim]\nlr = 1\nsteps = 3\nmilestones = [0.1, 0.2]\n'
        "task_weights = {edge = 1, sal = 2}",
        middle='extends = "low.toml"\n[optim]\nlr = 2\ntask_weights = {sal = 3}',
        other='device = "cpu"\n[optim]\nlr = 5\n[data]\nsize = [64, 48]',
    )
    leaf = 'extends = ["bases/other.toml", "bases/middle.toml"]\n[optim]\nsteps = 9\nmilestones = [0.5]'
    config = read(tmp_path, leaf)
    assert (config.out, config.device, config.data.size) == ("low", "cpu", (64, 48))
    assert (config.optim.lr, config.optim.steps, config.optim.milestones) == (2.0, 9, [0.5])
    assert config.optim.task_weights == {"edge": 1.0, "sal": 3.0}
    assert "extends" not in to_toml(config)
    write_config(config, tmp_path / "elsewhere" / "config.toml")
    assert read_config(tmp_path / "elsewhere" / "config.toml") == config


@pytest.mark.parametrize(
    ("base", "message"),
    [
        ('extends = "run.toml"', "base.toml: extends .*run.toml: a configuration must not extend itself"),
        ('extends = "gone.toml"', "base.toml: extends .*gone.toml: no such configuration file"),
        ("extends = 3", "base.toml: extends must be the name of a file or a list of names, got 3"),
        ("[optim]\nstep = 3", "base.toml: optim.step is not a known key; did you mean 'optim.steps'"),
        ("extend = 3", "base.toml: extend is not a known key; did you mean 'extends'"),
        ("lr = ", "base.toml: not valid TOML"),
    ],
)
def test_what_is_wrong_in_a_base_is_named_with_the_way_there(tmp_path, base, message):
    write(tmp_path, base=base)
    with pytest.raises(ConfigError, match=f"^{tmp_path / 'run.toml'}: extends {tmp_path}/{message}"):
        read(tmp_path, 'extends = "base.toml"')


def test_a_file_may_be_a_base_twice(tmp_path):
    """Two ways to one base are no cycle."""
    write(
        tmp_path,
        base="[optim]\nlr = 3",
        left='extends = "base.toml"\n[optim]\nsteps = 5',
        right='extends = "base.toml"\n[log]\nevery = 7',
    )
    config = read(tmp_path, 'extends = ["left.toml", "right.toml"]')
    assert (config.optim.lr, config.optim.steps, config.log.every) == (3.0, 5, 7)


def test_a_table_does_not_hide_a_wrong_value(tmp_path):
    write(tmp_path, base="optim = 3")
    with pytest.raises(ConfigError, match="base.toml: optim must be a table, got 3"):
        read(tmp_path, 'extends = "base.toml"\n[optim]\nlr = 1')


def test_weights_of_tasks_that_are_left_out(config_for):
    """A single-task run keeps the weights of the runs next to it; a name that no task has is an error."""
    data = open_data(config_for(data=dict(tasks=["edge"])).data, {"edge": 3.5, "semseg": 2.0})
    assert {name: task.weight for name, task in data.tasks.items()} == {"edge": 3.5}
    with pytest.raises(
        ConfigError, match=r"optim\.task_weights\.sal is not a task of tiny \(tasks: semseg, "
    ):
        open_data(config_for(data=dict(tasks=["edge"])).data, {"edge": 3.5, "sal": 2.0})
