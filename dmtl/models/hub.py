"""Models on the Hugging Face Hub, through huggingface_hub (extra `dmtl[hub]`), imported on first use."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from dmtl.errors import CheckpointError, ConfigError
from dmtl.models.weights import CONFIG, WEIGHTS

_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def is_hub_id(source: object) -> bool:
    """Return whether `source` is a string of the form "org/name"."""
    return isinstance(source, str) and _ID.fullmatch(source) is not None


def download(repo_id: str, **options: Any) -> Path:
    """Download a model folder from the Hub, unless it is cached, and return its path.

    Args:
        repo_id: "org/name".
        options: those of `huggingface_hub.snapshot_download`, such as revision, token, cache_dir.

    Raises:
        CheckpointError: huggingface_hub is not installed, the Hub cannot be reached, or it has no such model.
    """
    try:
        hub = _huggingface_hub()
        return Path(hub.snapshot_download(repo_id, allow_patterns=[CONFIG, WEIGHTS], **options))
    except Exception as error:  # a download may raise anything
        hub_says = "the Hugging Face Hub has no such model or cannot be reached; check the name"
        reason = error if isinstance(error, ConfigError) else hub_says
        raise CheckpointError(f"{repo_id}: no such file or folder here; {reason}") from error


def upload(model: Any, repo_id: str, **options: Any) -> str:
    """Upload a model with a model card; see `DiffusionMTL.push_to_hub`."""
    mixin: Any = _huggingface_hub().ModelHubMixin

    class HubModel(  # type: ignore[call-arg]  # keywords of a mixin that may not be installed
        mixin,
        library_name="dmtl",
        pipeline_tag="image-segmentation",
        tags=["dense-prediction", "multi-task-learning", *model.tasks],
        paper_url="https://arxiv.org/abs/2403.15389",
    ):
        """The model as the Hub's mixin sees it."""

        def _save_pretrained(self, save_directory: Path) -> None:
            model.save_pretrained(save_directory)

    return str(HubModel().push_to_hub(repo_id, **options))


def _huggingface_hub() -> Any:
    try:
        import huggingface_hub
    except ImportError as error:
        raise ConfigError(
            f"models on the Hub need huggingface_hub ({error}): pip install 'dmtl[hub]'"
        ) from None
    return huggingface_hub
