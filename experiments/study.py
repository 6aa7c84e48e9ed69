"""What an experiment is to the command line and the report."""

from __future__ import annotations

from typing import Any, Protocol

from kolmo.checkpoint import Memo
from kolmo.config import Config
from kolmo.experiments.claims import Claim
from kolmo.experiments.progress import Progress


class Study(Protocol):
    """An experiment: run it, ask what it shows. It keeps what is done when it is interrupted."""

    name: str
    summary: str
    #: the shipped configuration that it runs by default
    shipped: str
    config: Config
    #: keeps the parts that are done; by default nowhere, give it one with a folder to be able to resume
    memo: Memo

    def __init__(self, config: Config, quick: bool = False) -> None: ...

    def run(self, progress: Progress | None = None) -> None:
        """Everything. Raises KolmoError where a part cannot be answered for."""

    @property
    def finished(self) -> bool:
        """Whether `run` came to its end."""

    def claims(self) -> list[Claim]:
        """What was shown; of a finished study."""

    def results(self) -> dict[str, Any]:
        """Figures for results.json, of what is done so far."""

    def tables(self) -> list[tuple[str, list[str], list[list[object]]]]:
        """Title, columns and rows of each table to print."""
