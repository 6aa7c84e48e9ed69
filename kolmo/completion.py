"""`kolmo completion SHELL`: what the shell completes, generated from the parser itself."""

from __future__ import annotations

import argparse
from collections.abc import Iterable

import shtab

from kolmo.config import shipped
from kolmo.errors import InputError
from kolmo.experiments import EXPERIMENTS
from kolmo.export import FORMATS
from kolmo.pde.backend import BACKENDS
from kolmo.text import nearest

#: words after an option, in any command
_WORDS: dict[str, Iterable[str]] = {
    "--backend": BACKENDS,
    "--device": ("auto", "cpu", "cuda"),
    "--order": ("1", "2"),
    "--rule": ("outcomes", "gauss"),
    "--format": FORMATS,
    "--dtype": ("float32", "float64"),
    "--defaults": shipped(),
}
#: what an option's or an argument's placeholder stands for
_PATHS = {"CASE_DIR": shtab.DIRECTORY, "DIR": shtab.DIRECTORY, "FILE": shtab.FILE}


def script(parser: argparse.ArgumentParser, shell: str) -> str:
    """The completion script of a parser with commands, for bash or zsh, say.

    The parser is changed and good for nothing else afterwards. Raises InputError on an unknown shell.
    """
    if shell not in shtab.SUPPORTED_SHELLS:
        raise InputError(f"completion: shell {shell!r} is unknown{nearest(shell, shtab.SUPPORTED_SHELLS)}")
    for command in _commands(parser):
        for action in command._actions:
            _teach(action)
    return shtab.complete(parser, shell=shell)


def _commands(parser: argparse.ArgumentParser) -> Iterable[argparse.ArgumentParser]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            yield from action.choices.values()


def _teach(action: argparse.Action) -> None:
    words = next((_WORDS[name] for name in action.option_strings if name in _WORDS), None)
    if action.metavar == "NAME" and not action.option_strings:
        words = EXPERIMENTS
    if action.dest == "shell":
        words = shtab.SUPPORTED_SHELLS
    if words is not None:
        action.choices = list(words)
    elif isinstance(action.metavar, str) and action.metavar in _PATHS:
        action.complete = _PATHS[action.metavar]  # type: ignore[attr-defined]
    elif action.dest in ("out", "config"):
        action.complete = shtab.DIRECTORY if action.dest == "out" else shtab.FILE  # type: ignore[attr-defined]
