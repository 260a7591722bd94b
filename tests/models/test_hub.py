"""Models on the Hub, with its network calls replaced."""

import shutil
import sys
from types import SimpleNamespace

import pytest
import torch

from dmtl.errors import CheckpointError, ConfigError
from dmtl.models import from_pretrained
from tests.models.cases import small_model


class FakeApi:
    """What the mixin needs of `HfApi`: repositories are folders in `root`."""

    root = None

    def __init__(self, token=None):
        self.token = token

    def create_repo(self, repo_id, private, exist_ok):
        assert exist_ok
        return SimpleNamespace(repo_id=repo_id)

    def upload_folder(self, repo_id, folder_path, commit_message, **options):
        shutil.copytree(folder_path, self.root / repo_id)
        return f"https://huggingface.co/{repo_id}/commit/{commit_message}/{self.token}"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A Hub in a folder; lists the downloads."""
    huggingface_hub = pytest.importorskip("huggingface_hub")
    hub_mixin = pytest.importorskip("huggingface_hub.hub_mixin")
    calls = []

    def snapshot_download(repo_id, **options):
        calls.append((repo_id, options))
        if not (tmp_path / "hub" / repo_id).is_dir():
            raise FileNotFoundError("Repository Not Found")
        return str(tmp_path / "hub" / repo_id)

    monkeypatch.setattr(FakeApi, "root", tmp_path / "hub")
    monkeypatch.setattr(hub_mixin, "HfApi", FakeApi)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    monkeypatch.chdir(tmp_path)
    return calls


@pytest.mark.parametrize("diffusion", ["feature", "none"])
def test_there_and_back(hub, tmp_path, diffusion):
    model = small_model(diffusion=diffusion)
    address = model.push_to_hub("lab/street-model", commit_message="first", token="secret")
    assert address == "https://huggingface.co/lab/street-model/commit/first/secret"
    folder = tmp_path / "hub" / "lab" / "street-model"
    assert sorted(p.name for p in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    card = (folder / "README.md").read_text()
    assert "library_name: dmtl" in card and "arxiv.org/abs/2403.15389" in card and "- semseg" in card
    again = from_pretrained("lab/street-model", revision="v1")
    patterns = ["config.json", "model.safetensors"]
    assert hub == [("lab/street-model", {"allow_patterns": patterns, "revision": "v1"})]
    assert type(again) is type(model) and again.config == model.config and not again.training
    state = again.state_dict()
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())


def test_a_local_folder_comes_first(hub, tmp_path):
    small_model().save_pretrained(tmp_path / "lab" / "street-model")
    from_pretrained("lab/street-model")
    assert hub == []


def test_what_is_nowhere(hub):
    with pytest.raises(
        CheckpointError, match="runs/mein: no such file .* here; .* Hub has no such .* the name$"
    ):
        from_pretrained("runs/mein")
    with pytest.raises(CheckpointError, match="expected a run, a model folder, .* or org/name"):
        from_pretrained("./runs/mein")
    assert len(hub) == 1


def test_without_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match=r"lab/model: no such .* pip install 'dmtl\[hub\]'"):
        from_pretrained("lab/model")
    with pytest.raises(ConfigError, match=r"models on the Hub need huggingface_hub .* 'dmtl\[hub\]'"):
        small_model().push_to_hub("lab/model")
