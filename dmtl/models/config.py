"""Model configuration: one dataclass, stored as `config.json` next to the weights."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from dmtl.diffusion.samplers import make_sampler
from dmtl.errors import ConfigError
from dmtl.fields import check_fields, require_known
from dmtl.tasks import Task, task_from_spec


@dataclass(frozen=True)
class ModelConfig:
    """Architecture of the model and of its baselines. In Python, the defaults are the published network,
    except for `chain_init`; `dmtl train` has the defaults of its recipe."""

    tasks: list[dict] = field(default_factory=list)
    """Task specifications (`Task.spec()`), in the order in which the condition concatenates their
    predictions. Also accepts task objects, names of known tasks, and a mapping of task objects
    (`data.tasks`)."""
    backbone: str = "resnet18"
    """"resnet18", "resnet34", "efficientnet_lite0" to "_lite2", or any timm model with `features_only` (extra
    `dmtl[timm]`)."""
    backbone_width: int = 64
    """Channels of the first ResNet stage."""
    width: int = 512
    """Channels C of every map at 1/8 resolution and of every token."""
    decoder_blocks: int = 2
    """Residual blocks in each preliminary decoder."""
    output_stride: Literal[8, 4] = 8
    """Pixels of the image to each of a final map: 8 (published), or 4, with a skip connection from the
    encoder, for finer contours."""
    diffusion: Literal["feature", "prediction", "none"] = "feature"
    """What is noised and denoised: "feature", "prediction", or "none" (the plain multi-task baseline)."""
    steps: int = 2
    """S, the number of denoising steps."""
    beta_start: float = 1e-3
    """Variance of the first noise level."""
    beta_end: float = 1e-2
    """Variance of the last noise level."""
    betas: list[float] | None = None
    """Variances of all noise levels, if the schedule does not have the published form; `steps` becomes their
    number, and beta_start and beta_end have no effect."""
    signal_scale: float = 1.0
    """Factor on the clean signal before it is noised: larger means less noise relative to the signal."""
    sampler: str | None = None
    """The sampler: "ancestral" (published), "ddim", "dpmpp_2m" (second order, for many steps), or a
    registered one; default: "ancestral", or "ddim" if `eta` is set."""
    eta: float | None = None
    """Amount of noise of "ddim": 1 is the ancestral sampler, 0 (the default) is deterministic."""
    heads: int = 4
    """Attention heads."""
    blocks: int = 4
    """Number of cross blocks, which all tasks share."""
    mlp_ratio: int = 4
    """Hidden width of the blocks' MLPs, as a multiple of C."""
    token_reduction: Literal[1, 2, 4] = 4
    """Side of the square of positions at 1/8 resolution that share a token: 4 (published); 2 or 1 for small
    images."""
    chain_init: Literal["identity", "default"] = "identity"
    """Initialisation of MTDNet: "identity" passes its input signal on nearly unchanged; "default" (published)
    loses most of it."""
    detach_signal: bool = False
    """True: no gradient flows from the chain into the initial network, which is then trained like the plain
    baseline."""
    residual: bool = False
    """True: the final prediction is the initial one plus a correction that starts at zero. False: as
    published."""
    detach_condition: bool = True
    """True: no gradient flows from the condition into the initial predictions (published)."""
    image_size: tuple[int, int] | None = None
    """Height and width of the training images; training sets it if it resizes images. For prediction, images
    with at least four times as many pixels are scaled down (`dmtl.engine.scale`). None: images keep their
    size (published)."""
    without: list[Literal["noise", "condition"]] = field(default_factory=list)
    """Ablations. "noise": no noise is added to the signal at any step. "condition": the denoiser gets zeros
    instead of the initial predictions. Parameters and operations stay the same; with both ablations, MTDNet
    only adds layers."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "tasks", _specifications(self.tasks))
        check_fields(self, "model.")
        if self.image_size is not None:  # a list in JSON
            object.__setattr__(self, "image_size", tuple(self.image_size))
        for name in ("backbone_width", "width", "decoder_blocks", "steps", "heads", "blocks", "mlp_ratio"):
            if getattr(self, name) < 1:
                raise ConfigError(f"model.{name} must be at least 1, got {getattr(self, name)}")
        if self.image_size is not None and min(self.image_size) < 1:
            raise ConfigError(f"model.image_size must be at least 1x1, got {list(self.image_size)}")
        if self.width % self.heads:
            raise ConfigError(
                f"model.width must be a multiple of model.heads = {self.heads}, got {self.width}"
            )
        if not 0 < self.beta_start <= self.beta_end < 1:
            raise ConfigError(
                "model.beta_start and model.beta_end must satisfy 0 < beta_start <= beta_end < 1, "
                f"got {self.beta_start} and {self.beta_end}"
            )
        if self.betas is not None and not (self.betas and all(0 < beta < 1 for beta in self.betas)):
            raise ConfigError(
                f"model.betas must be a list of numbers between 0 and 1, got {self.betas!r:.200}"
            )
        if self.betas is not None:
            if self.steps not in (len(self.betas), ModelConfig.steps):
                raise ConfigError(
                    f"model.steps must be the number of model.betas, {len(self.betas)}, got {self.steps}; "
                    "leave it out"
                )
            object.__setattr__(self, "steps", len(self.betas))
        if self.without and self.diffusion == "none":
            raise ConfigError(
                'model.without must be empty if model.diffusion is "none", which has neither noise nor '
                f"condition, got {', '.join(self.without)}"
            )
        make_sampler(*self.sampler_for(), where="model.")
        if not 0 < self.signal_scale < math.inf:
            raise ConfigError(f"model.signal_scale must be positive and finite, got {self.signal_scale}")

    def sampler_for(self, sampler: str | None = None, eta: float | None = None) -> tuple[str, float | None]:
        """Return name and eta of the requested sampler, or those of the configuration if none is
        requested."""
        if sampler is None:
            sampler, eta = self.sampler, self.eta if eta is None else eta
        return sampler or ("ancestral" if eta is None else "ddim"), eta

    def to_dict(self) -> dict:
        """Return a dictionary of JSON values, from which `from_dict` builds an equal configuration."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping) -> ModelConfig:
        """Build a configuration from a dictionary.

        Raises:
            ConfigError: a key is unknown, or a value is wrong.
        """
        for key in values:
            require_known(key, (f.name for f in dataclasses.fields(cls)), "model.")
        return cls(**values)


def _specifications(tasks: object) -> list:
    """Return tasks in any form as a list of specifications."""
    given = tasks.values() if isinstance(tasks, Mapping) else tasks
    if isinstance(given, Iterable) and not isinstance(given, str):
        given = list(given)
        if all(isinstance(task, (Task, str, Mapping)) for task in given):
            return [t if isinstance(t, Mapping) else task_from_spec(t).spec() for t in given]
    raise ConfigError(f"model.tasks must be a list of task specifications, got {tasks!r:.200}")
