"""What an experiment claims: measured against expected, and whether it holds."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Claim:
    """One line of an experiment's end: what is claimed, measured, expected; does it hold?"""

    claim: str
    measured: float | str
    expected: float | str
    holds: bool

    def as_dict(self) -> dict[str, Any]:
        """The claim for results.json."""
        return asdict(self)
