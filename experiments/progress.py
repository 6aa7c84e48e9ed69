"""How experiments tell what they are doing; the command line draws it."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """A stage of known length, moved on step by step."""

    def start(self, stage: str, total: int) -> None:
        """A new stage of `total` steps begins; the one before is over."""

    def advance(self, note: str = "", steps: int = 1) -> None:
        """Some steps of the stage are done; `note` is shown beside it."""


class Silent:
    """No progress shown."""

    def start(self, stage: str, total: int) -> None:
        """Nothing."""

    def advance(self, note: str = "", steps: int = 1) -> None:
        """Nothing."""
