"""The baselines of the whole model as contenders of `dmtl bench`, `test_inference.py` and `make
gpu-check`."""

from __future__ import annotations

from torch import Tensor

from dmtl.bench.contenders import Case, Contender

from .expert import MODES, Expert
from .published import Published


def published(model, image: Tensor, case: Case, precision: str, **_) -> Contender:
    """Eager, NCHW, one task after another."""

    def run(image: Tensor, noise=None) -> dict[str, Tensor]:
        return Published(model, noise, case.steps).maps(image, case.tasks)

    return Contender("published", precision, run, "eager, NCHW, task by task")


def expert(model, image: Tensor, case: Case, precision: str, modes: tuple[str, ...] = MODES) -> Contender:
    """Everything switched on that torch offers."""
    made = Expert(model, image, case.tasks, precision=precision, steps=case.steps, modes=modes)
    return Contender("expert", precision, made.maps, made.how)


BASELINES = {"published": published, "expert": expert}
