"""Expected errors become one sentence on stderr and exit status 1; bugs keep their traceback."""

import functools
import os
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import typer

P = ParamSpec("P")
R = TypeVar("R")

INTERRUPTED = 130
"""Exit status after Ctrl-C, as shells have it."""


def show_errors(command: Callable[P, R]) -> Callable[P, R]:
    """Wrap a command so that bad input prints a sentence. RANKLOOM_TRACEBACK=1 shows everything."""

    @functools.wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return command(*args, **kwargs)
        except (ValueError, OSError, ImportError) as error:  # the last: an extra is missing
            if os.environ.get("RANKLOOM_TRACEBACK"):
                raise
            typer.echo(f"error: {_sentence(error)}", err=True)
            raise typer.Exit(1) from None
        except KeyboardInterrupt:
            typer.echo("interrupted; the same command continues where it can", err=True)
            raise typer.Exit(INTERRUPTED) from None

    return wrapped


def _sentence(error: Exception) -> str:
    """Without the number that Python puts before a message of an OSError."""
    if isinstance(error, OSError) and error.filename is None and error.strerror:
        return error.strerror
    return str(error)
