"""What the command line says when something is wrong: one line, what was expected, what came and
what to do; and the traceback for those who ask for it.
"""

from __future__ import annotations

import os
import sys
import traceback
from difflib import get_close_matches
from typing import Any, Final

import typer

UsageError: Final[type[Exception]] = typer.BadParameter.__mro__[1]
"""What typer raises of a wrong command line; it has no public name."""
DEBUG: Final = "RECLORA_DEBUG"


def tell(error: BaseException) -> None:
    """Print an error on stderr: a line, and above it the traceback where `RECLORA_DEBUG` is 1."""
    if os.environ.get(DEBUG, "0") not in ("", "0"):
        traceback.print_exception(error)
    said = of_usage(error) if isinstance(error, UsageError) else f"reclora: {of_work(error)}"
    print(said, file=sys.stderr)


def of_work(error: BaseException) -> str:
    """An error in a sentence: of the disk without its number, a key without its quotes."""
    if isinstance(error, OSError) and error.strerror:
        names = [str(name) for name in (error.filename, error.filename2) if name]
        return f"{' -> '.join(names)}: {error.strerror}" if names else error.strerror
    if isinstance(error, KeyError) and len(error.args) == 1:
        return str(error.args[0])
    return str(error)


def of_usage(error: Any) -> str:
    """A wrong command line in a sentence that begins with the verb; help where none was given."""
    context, parameter = error.ctx, getattr(error, "param", None)
    where = context.command_path if context else "reclora"
    if type(error).__name__ == "NoArgsIsHelpError":
        return str(error.format_message())
    if hasattr(error, "possibilities"):
        text = f"no such option {error.option_name}" + _meant((error.possibilities or [])[:1])
    elif error.message.startswith("No such command"):
        verbs = list(context.command.commands)
        word = error.message.split("'")[1]
        near = get_close_matches(word, verbs, n=1)
        text = f"no such verb {word!r}" + (_meant(near) or f"; expected {', '.join(verbs)}")
    elif type(error).__name__ == "MissingParameter" and parameter is not None:
        text = f"{error.format_message().rstrip('.')}: {parameter.help or 'it is needed'}"
    elif parameter is None:
        text = error.message
    else:
        error.message = _wrong_value(error)
        text = error.format_message()
    text = " ".join(text.split()).rstrip(".")
    return f"{where}: {text}{' See' if text.endswith('?') else '; see'} `{where} --help`"


def _wrong_value(error: Any) -> str:
    """What a value should be, and what it is."""
    details = getattr(error.__cause__, "errors", None)
    if details is None:
        return str(error.message)
    first = details()[0]
    text = first["msg"].removeprefix("Value error, ")
    if text.startswith("Input should be "):
        what = text.removeprefix("Input should be ").partition(",")[0]
        what = f"a number {what}" if what.startswith(("greater", "less")) else what
        return f"expected {what}, got {first['input']!r}"
    return str(text)


def _meant(near: list[str]) -> str:
    return f"; did you mean {near[0]}?" if near else ""
