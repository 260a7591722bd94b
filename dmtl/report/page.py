"""Templates of this folder to text."""

from __future__ import annotations

from jinja2 import Environment, PackageLoader, StrictUndefined


def page(template: str, **values: object) -> str:
    """The template of this name, filled in: strings are escaped, a name that has no value is an error."""
    environment = Environment(
        loader=PackageLoader("dmtl.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(**values)
