"""The argument that names a data set."""

from __future__ import annotations

from typing import Annotated

from dmtl.cli._arguments import positional

Source = Annotated[str, *positional("[DATA]")]
