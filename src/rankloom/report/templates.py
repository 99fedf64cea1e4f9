"""The HTML pages' templates."""

from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from plotly.offline import get_plotlyjs

import rankloom


def render(template: str, *, charts: bool = True, **values: Any) -> str:
    """The HTML text of a template of this package.

    Args:
        template: its file name.
        charts: whether the page draws any, and so carries the library that draws them.
        values: what the template names; the version of rankloom is there.
    """
    environment = Environment(
        loader=PackageLoader("rankloom.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(
        version=rankloom.__version__, plotly=get_plotlyjs() if charts else "", **values
    )
