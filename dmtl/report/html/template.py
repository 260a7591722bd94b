"""Fill in the templates in this folder."""

from __future__ import annotations

from pathlib import Path

from jinja2 import ChoiceLoader, Environment, FileSystemLoader, PackageLoader, StrictUndefined

from dmtl.report.html.images import picture
from dmtl.report.runs.values import texts_of, tone_of
from dmtl.text import fixed, percent

FUNCTIONS = {"picture": picture, "texts_of": texts_of, "tone_of": tone_of, "fixed": fixed, "percent": percent}


def page(template: str, *, folder: Path | None = None, **values: object) -> str:
    """Fill in a template and return the HTML. Strings are escaped; a name without a value is an error.

    Args:
        template: name of the template.
        folder: another folder with templates, which may include those of this package.
        values: the values of the names in the template.
    """
    ours = PackageLoader("dmtl.report.html")
    environment = Environment(
        loader=ours if folder is None else ChoiceLoader([FileSystemLoader(folder), ours]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals |= FUNCTIONS
    return environment.get_template(template).render(**values)
