"""Training as others watch it: a callback that writes TensorBoard's event files.

    with kolmo.logging.TensorBoard("runs/board/control") as board:
        kolmo.control.train(problem, callback=board)

It serves wherever a training takes a `callback`: `kolmo.training.train`, `kolmo.control.train`, `lbfgs`,
`newton`, `successive_approximations` and `kolmo.images.training.train`. Needs the package tensorboard.
"""

from __future__ import annotations

import numbers
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any

from kolmo.errors import InputError

__all__ = ["TensorBoard"]

#: fields that number the steps
_NUMBERS = ("iteration", "number")


class TensorBoard:
    """A callback: each number of what it is called with becomes a scalar NAME/field, float32.

    folder: of the event files, made where it is not there. name: before the slash, to tell trainings in one
    folder apart. every: writes one step in so many. The step is what the training calls `iteration` or
    `number`, else it is counted from 1. Raises InputError where tensorboard is not installed, the folder
    cannot be made, or `every` is no positive integer.
    """

    def __init__(self, folder: str | Path, name: str = "training", every: int = 1) -> None:
        if find_spec("tensorboard") is None:
            raise InputError(
                "tensorboard: it is not installed; install it with: pip install 'kolmo[tensorboard]'"
            )
        if int(every) != every or every < 1:
            raise InputError(f"every: {every!r} is not a positive integer")
        from torch.utils.tensorboard import SummaryWriter

        try:
            self._writer: Any = SummaryWriter(str(folder))
        except OSError as error:
            raise InputError(f"{folder}: cannot be made: {error.strerror or error}") from error
        self._name, self._every, self._called = name, int(every), 0

    def __enter__(self) -> TensorBoard:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __call__(self, step: Any) -> None:
        """One step of a training, as its callback sees it."""
        self._called += 1
        found = vars(step)
        number = next((int(found[key]) for key in _NUMBERS if key in found), self._called)
        if self._called % self._every:
            return
        for key, value in found.items():
            if isinstance(value, numbers.Real) and key not in _NUMBERS:
                self._writer.add_scalar(f"{self._name}/{key}", float(value), number)

    def close(self) -> None:
        """Write what is still in memory; nothing can be written after it."""
        self._writer.close()
