"""Modules of a model by a pattern over their paths.

A path is what `named_modules` gives, such as `layers.0.streams.1`. Patterns are those of shells
(`fnmatch`): `*` stands for any text, dots included, `?` for one character, `[01]` for one of these.
"""

import difflib
from fnmatch import fnmatchcase

from torch import nn

SHOWN_PATHS = 12
"""Most paths that an error lists."""


def find_modules(model: nn.Module, pattern: str) -> dict[str, nn.Module]:
    """The modules whose path fits a pattern, by path; empty when none does.

    The model itself has the empty path.
    """
    return {path: part for path, part in model.named_modules() if fnmatchcase(path, pattern)}


def no_such_module(pattern: str, *models: nn.Module) -> ValueError:
    """The error of a pattern that fits no module, with the paths nearest to it."""
    paths = dict.fromkeys(path for model in models for path, _ in model.named_modules() if path)
    nearest = difflib.get_close_matches(pattern, paths, n=SHOWN_PATHS, cutoff=0.0)
    shown = [path for path in paths if path in set(nearest)]
    rest = len(paths) - len(shown)
    more = f" and {rest} more" if rest else ""
    return ValueError(
        f"no module fits {pattern!r}; modules are {', '.join(shown) or 'none'}{more} "
        "(* stands for any text)"
    )
