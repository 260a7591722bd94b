"""DiffusionMTL (CVPR 2024): multi-task dense prediction by denoising, learned from partially labelled
images."""

from importlib import import_module as _import_module
from typing import Any as _Any

__version__ = "0.1.0"

# Public names and the modules they live in, imported on first use: `import dmtl` loads nothing else.
_LAZY = {
    "DiffusionMTL": "dmtl.models",
    "Engine": "dmtl.engine",
    "ModelConfig": "dmtl.models",
    "MultiTaskBaseline": "dmtl.models",
    "Predictor": "dmtl.predict",
    "RunConfig": "dmtl.train.config",
    "Trainer": "dmtl.train.trainer",
    "create_model": "dmtl.models",
    "evaluate": "dmtl.evaluation.protocol",
    "from_pretrained": "dmtl.models",
    "list_backbones": "dmtl.nn.backbone",
    "list_tasks": "dmtl.tasks",
    "open_dataset": "dmtl.data",
    "print_info": "dmtl.info",
    "use_backend": "dmtl.ops",
}

__all__ = ["__version__", *_LAZY]


def __getattr__(name: str) -> _Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'dmtl' has no attribute {name!r}")
    value = getattr(_import_module(_LAZY[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
