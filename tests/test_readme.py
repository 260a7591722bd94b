"""Commands and code blocks of the README and the documentation: executed if that is quick, else parsed."""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import tyro
from PIL import Image

import dmtl
from dmtl.cli import COMMANDS, main
from dmtl.data import open_dataset
from dmtl.train.toml import read_config
from tests.data.annotations import WRITERS

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "kernels" / "README.md"]
PROSE = [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", ROOT / "benchmarks" / "README.md"]
TEXT = {path: path.read_text(encoding="utf-8") for path in PROSE}
README = TEXT[ROOT / "README.md"]
TINY = [
    *["--model.width", "8", "--model.heads", "2", "--model.backbone", "resnet18"],
    *["--model.backbone-width", "8", "--data.size", "32", "32", "--optim.backbone-weights="],
    *["--optim.steps", "1", "--optim.batch-size", "2"],
]
PUBLIC = ["models", "data", "data.imports", "tasks", "metrics", "engine", "engine.export", "predict"]
PUBLIC += ["diffusion", "ops"]
EXECUTED = {  # the Python of a page -> who executes it
    "docs/getting-started.md": "here",
    "docs/faq.md": "here",
    "kernels/README.md": "here",
    "docs/adding-an-operator.md": "tests/test_docs.py",
    "docs/extending.md": "tests/test_docs.py",
    "docs/training.md": "tests/test_training_docs.py",
    "docs/inference.md": "tests/engine/test_engine.py",
    "docs/export.md": "tests/engine/test_export.py",
}


def blocks(page: str, language: str, section: str = "") -> list[str]:
    """Code blocks of one language, of a whole page or of the section with this title."""
    text = TEXT[ROOT / page]
    text = text if not section else text.split(f"\n## {section}\n")[1].split("\n## ")[0]
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def lines(page: str, section: str = "") -> list[str]:
    """Lines of shell blocks; what a backslash continues is one line."""
    text = "\n".join(blocks(page, "sh", section)).replace("\\\n", " ")
    return [line for line in text.splitlines() if line.strip()]


def commands(page: str, section: str = "") -> list[list[str]]:
    """The words after `dmtl` of every command, also of one that torchrun or a loop runs."""
    text = [line.replace("-m dmtl ", "dmtl ").replace("$seed", "1") for line in lines(page, section)]
    found = [re.search(r"(?:^|\s)dmtl (.*)", line) for line in text]
    return [shlex.split(match[1], comments=True) for match in found if match]


def pages() -> list[str]:
    return [str(path.relative_to(ROOT)) for path in PAGES]


class Understood(BaseException):
    """Raised in the place of what a command does."""


@pytest.mark.parametrize("page", [page for page in pages() if commands(page)])
def test_commands_are_understood(page, monkeypatch):
    """Each is parsed by the command itself, which also reads its configuration file, and then stopped."""
    monkeypatch.chdir(ROOT)

    def stopping(parse):
        def parse_and_stop(*given, **options):
            parse(*given, **options)
            raise Understood

        return parse_and_stop

    monkeypatch.setattr(tyro, "cli", stopping(tyro.cli))
    subcommands = stopping(tyro.extras.subcommand_cli_from_dict)
    monkeypatch.setattr(tyro.extras, "subcommand_cli_from_dict", subcommands)
    for words in commands(page):
        with pytest.raises(Understood):
            main(words)


def test_a_wrong_command_would_be_noticed(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--dry-runs"])
    assert "--dry-runs" in capsys.readouterr().err


def test_the_rest_of_the_shell_blocks():
    """Whatever is not `dmtl` is a make target, an installation, or a module that exists."""
    targets = re.findall(r"^(\w[\w-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for page in pages():
        for line in lines(page):
            words = [word for word in shlex.split(line, comments=True) if "=" not in word]
            if not words or "dmtl" in words:
                continue
            if words[0] == "make":
                assert words[1] in targets, line
            elif words[:2] == ["pip", "install"]:
                packages = {".", ".[encoders,import,video,app]"}
                assert {*words[2:]} <= packages | {"-e", "-c", "constraints.txt"}, line
            elif words[:2] == ["python", "-m"]:
                assert importlib.util.find_spec(words[2]), line
            else:
                assert words[0] in ("for", "done"), line


def test_python_blocks_have_a_test():
    found = {page for page in pages() if blocks(page, "python")}
    assert found == set(EXECUTED)
    for page, test in EXECUTED.items():
        assert test == "here" or Path(page).name in (ROOT / test).read_text(), page


def street(folder: Path, name: str = "street.jpg") -> None:
    """A photo of noise."""
    folder.mkdir(exist_ok=True)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 48, 3), np.uint8)).save(folder / name)


def test_readme_is_one_page():
    assert len(README.split()) <= 900
    screen = "\n".join(README.splitlines()[:50])
    for text in ("pip install", "make demo", "make test", "dmtl predict docs/astronaut.jpg", "dmtl train"):
        assert text in screen, text


def test_predict_without_training(tmp_path, monkeypatch, one_thread):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "docs").mkdir()
    shutil.copy(ROOT / "docs" / "astronaut.jpg", tmp_path / "docs")
    words, *_ = commands("README.md", "Predict")
    assert words == ["predict", "docs/astronaut.jpg"] and main(words) == 0
    assert len(list((tmp_path / "predictions" / "pictures").iterdir())) == 6


def test_readme_from_annotations_to_maps(tmp_path, monkeypatch, one_thread):
    """The five lines, on a few annotated pictures and with a smaller network."""
    monkeypatch.chdir(tmp_path)
    WRITERS["labelme"](tmp_path / "annotated")
    street(tmp_path / "photos")
    done = []
    for words in commands("README.md", "Train on your own data"):
        assert main(words + (TINY if words[0] == "train" else [])) == 0, words
        done.append(words[0])
    assert done == ["data", "data", "train", "eval", "predict"]
    assert (tmp_path / "maps" / "semseg" / "street.png").is_file()


def test_python_in_a_few_lines(tmp_path, monkeypatch, one_thread):
    """Train, load, predict, evaluate; then the same on the command line."""
    example, _ = blocks("docs/getting-started.md", "python")
    monkeypatch.chdir(tmp_path)
    street(tmp_path)
    names: dict = {}
    exec(compile(example, "getting-started.md", "exec"), names)
    assert names["maps"]["semseg"].shape == names["maps"]["depth"].shape == (40, 48)
    assert "odsF_seism" in names["metrics"]["edge"] and names["metrics"]["depth"]["rmse"] > 0
    shutil.rmtree("runs")
    for words in commands("docs/getting-started.md", "Train, load, predict, evaluate"):
        assert main(words + (TINY if words[0] == "train" else [])) == 0, words
    assert (tmp_path / "maps" / "depth" / "street.png").is_file()


def test_python_training_loop(tmp_path, monkeypatch, one_thread):
    _, example = blocks("docs/getting-started.md", "python")
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(compile(example, "getting-started.md", "exec"), names)
    maps = names["maps"]
    assert maps["semseg"].shape == maps["depth"].shape == names["logits"][:, 0].shape == (8, 96, 96)
    assert maps["semseg"].dtype == torch.int64 and maps["depth"].dtype == torch.float32
    assert names["loss"].isfinite() and all(part.isfinite() for part in names["parts"].values())
    assert all(x["step"] > 0 for x in names["optimizer"].state.values()) and names["optimizer"].state
    assert (tmp_path / "my-model" / "model.safetensors").is_file()


def test_python_that_reads_distances(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "maps" / "depth").mkdir(parents=True)
    Image.fromarray(np.full((4, 5), 1500, np.uint16)).save("maps/depth/street.png")
    names: dict = {}
    exec(compile(blocks("docs/faq.md", "python")[0], "faq.md", "exec"), names)
    assert names["depth_m"].shape == (4, 5) and (names["depth_m"] == 1.5).all()


def test_python_of_the_operators():
    names: dict = {}
    exec(compile(blocks("kernels/README.md", "python")[0], "kernels/README.md", "exec"), names)
    assert names["total"].shape == names["skip"].shape


def test_five_steps(tmp_path, monkeypatch, one_thread):
    """The folder that the page describes, its dataset.yaml, and all its commands with a smaller network."""
    monkeypatch.chdir(tmp_path)
    page = "docs/your-own-data.md"
    [description] = blocks(page, "yaml")
    write_data(tmp_path / "my-data", description)
    for words in commands(page):
        assert main(words + (TINY if words[0] == "train" else [])) == 0, words
    for task in ("semseg", "cracks", "height"):
        names = {path.stem for path in (tmp_path / "maps" / task).glob("*.png")}
        assert names == {"0001", "0002", "0003", "0004"}
    assert (tmp_path / "samples.png").is_file()
    assert (tmp_path / "maps" / "maps.json").is_file()
    assert (tmp_path / "runs" / "some-labels" / "model").is_dir()


def write_data(root: Path, description: str) -> None:
    """Three images with one label each, as the page's listing has them; the validation image has all."""
    rng = np.random.default_rng(0)
    for folder in ("images", "semseg", "cracks", "height", "splits"):
        (root / folder).mkdir(parents=True)
    (root / "dataset.yaml").write_text(description)
    (root / "splits" / "train.txt").write_text("0001\n0002\n0003\n")
    (root / "splits" / "val.txt").write_text("0004\n")
    for id in ("0001", "0002", "0003", "0004"):
        Image.fromarray(rng.integers(0, 256, (40, 48, 3), np.uint8)).save(root / "images" / f"{id}.jpg")
    for id in ("0001", "0004"):
        Image.fromarray(rng.integers(0, 3, (40, 48)).astype(np.uint8)).save(root / "semseg" / f"{id}.png")
    for id in ("0002", "0004"):
        Image.fromarray(rng.integers(0, 2, (40, 48)).astype(np.uint8)).save(root / "cracks" / f"{id}.png")
    for id in ("0003", "0004"):
        height = np.where(rng.random((40, 48)) < 0.1, -1, rng.random((40, 48)))
        np.save(root / "height" / f"{id}.npy", height.astype(np.float32))


def test_options_of_dataset_yaml(tmp_path):
    """The entries of docs/data.md, each for a task of one data set."""
    [tasks] = blocks("docs/data.md", "yaml")
    root = tmp_path / "my-data"
    write_data(root, f"name: my-data\n{tasks}")
    for path in (root / "semseg").iterdir():
        path.unlink()
    data = open_dataset(root, "train")
    assert list(data.tasks) == ["road", "parts", "semseg", "height"]
    assert set(data.read(2).labels) == {"height"}


def test_commands_page_is_up_to_date():
    spec = importlib.util.spec_from_file_location("docs_cli", ROOT / "docs" / "cli.py")
    generator = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generator)
    written = TEXT[ROOT / "docs" / "cli.md"]
    assert written == generator.page(), "docs/cli.md is not up to date; run `python docs/cli.py`"
    assert re.findall(r"^## dmtl (\w+)$", written, re.MULTILINE) == list(COMMANDS)


def test_reference_covers_every_public_name():
    """Each `::: path` of docs/api exists; each name of `dmtl.__all__` and of the public packages is one."""
    paths = []
    for page in (ROOT / "docs" / "api").glob("*.md"):
        for path, members in re.findall(
            r"^::: (\S+)\n(?: +options:\n +members: \[(.*)\])?", page.read_text() + "\n", re.MULTILINE
        ):
            paths += [f"{path}.{name}" for name in members.split(", ")] if members else [path]
    documented = [pkgutil.resolve_name(path) for path in paths]
    assert len(paths) == len(set(paths))
    for package in [dmtl, *(importlib.import_module(f"dmtl.{name}") for name in PUBLIC)]:
        for name in package.__all__:
            value = getattr(package, name)
            assert name == "__version__" or any(value is x for x in documented), f"{package.__name__}.{name}"
    overview = (ROOT / "docs" / "api" / "index.md").read_text()
    assert sorted(re.findall(r"`dmtl\.(\w+)`", overview)) == sorted(dmtl.__all__)


def test_named_options_and_files_exist():
    targets = re.findall(r"^(\w[\w-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    code = [path for folder in ("dmtl", "kernels") for path in (ROOT / folder).rglob("*.py")]
    settings = "".join(path.read_text(encoding="utf-8") for path in [ROOT / "setup.py", *code])
    for path, text in TEXT.items():
        for target in re.findall(r"`make ([a-z-]+)", text):
            assert target in targets, f"{path.name}: make {target}"
        for config in re.findall(r"configs/[\w/-]+\.toml", text):
            read_config(ROOT / config)
        for variable in re.findall(r"`(DMTL_[A-Z]+(?:_ARCHS)?)`", text):
            assert variable in settings, f"{path.name}: {variable}"
        for link in re.findall(r"\]\((?!http|#)([^)#\s]+)(?:#[^)]*)?\)", text):
            assert (path.parent / link).exists(), f"{path.name}: {link}"


def test_options_of_the_prose():
    """`--some.option` in inline code is an option of a command (docs/cli.md lists them), or of pytest."""
    known = set(re.findall(r"--[a-z][\w.-]+", TEXT[ROOT / "docs" / "cli.md"]))
    known |= {"--benchmark-only", "--quick", "--parts", "--hypothesis-profile", "--max-restarts"}
    known |= {"--no-deps", "--no-build-isolation"}  # of pip
    for path in PAGES:
        code = " ".join(re.findall(r"`([^`\n]+)`", TEXT[path]))
        used = set(re.findall(r"--[a-z][\w.-]+", code))
        assert used <= known, f"{path.name}: {used - known}"
