"""What a long computation has done so far, kept so that it can go on after any end, kill -9 included.

A `Memo` keeps the parts of a run, a file each. While a part is being computed, its file holds what the
computation last offered to its `Checkpoint`, which trainings take as an argument; in the end it holds the
result. Whoever asks a memo for a part gets what was read back from those bytes, in a first sitting as in a
resumed one: the two cannot differ.

A state is made of None, bool, int, float, str, arrays, lists (tuples come back as lists) and dicts with texts
as keys. It is kept as npz, arrays as they are and the rest as one JSON text, floats by the shortest decimals
that give them back exactly. Nothing that is read is executed.
"""

from __future__ import annotations

import io
import json
import struct
import time
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kolmo.errors import InputError
from kolmo.files import write_atomically

State = Any

#: seconds between two writes of a part, at least; and how many times as long as a write took, which keeps the
#: cost of checkpoints below 2%
LEAST, PATIENCE = 0.25, 50.0
#: in the JSON text, where an array goes
_ARRAY = "__array__"
#: what readers raise at bytes that are not ours
_DAMAGE = (
    OSError, ValueError, LookupError, TypeError, AttributeError, EOFError, RuntimeError, MemoryError,
    OverflowError, SyntaxError, struct.error, zipfile.BadZipFile, zlib.error,
)  # fmt: skip


def pack(state: State) -> bytes:
    """A state as the bytes of an npz file. Raises TypeError at what no state may hold."""
    arrays: list[np.ndarray] = []

    def plain(value: State) -> Any:
        if isinstance(value, np.ndarray) and not value.dtype.hasobject:
            arrays.append(value)
            return {_ARRAY: len(arrays) - 1}
        if isinstance(value, dict) and all(isinstance(key, str) and key != _ARRAY for key in value):
            return {key: plain(v) for key, v in value.items()}
        if isinstance(value, (list, tuple)):
            return [plain(v) for v in value]
        if isinstance(value, np.generic):
            return plain(value.item())
        if value is None or isinstance(value, (bool, int, float, str)):
            return value
        raise TypeError(f"checkpoint: {value!r} cannot be kept")

    text = np.frombuffer(json.dumps(plain(state)).encode(), dtype=np.uint8)
    buffer = io.BytesIO()
    np.savez(buffer, text=text, **{f"array_{k}": array for k, array in enumerate(arrays)})
    return buffer.getvalue()


def unpack(content: bytes) -> State:
    """The state in such bytes; what it raises at others is in `_DAMAGE`."""
    with np.load(io.BytesIO(content), allow_pickle=False) as archive:
        arrays = [archive[f"array_{k}"] for k in range(len(archive.files) - 1)]
        text = archive["text"].tobytes().decode()
    return json.loads(text, object_hook=lambda found: arrays[found[_ARRAY]] if _ARRAY in found else found)


class Checkpoint:
    """Where one computation leaves its state while it goes on; this one keeps nothing."""

    def __init__(self, earlier: float = 0.0) -> None:
        self._start = time.perf_counter() - earlier

    @property
    def seconds(self) -> float:
        """Seconds that the computation has taken, over all sittings."""
        return time.perf_counter() - self._start

    def load(self) -> State:
        """The state that was kept last; None: there is none, begin at the beginning."""
        return None

    def offer(self, make: Callable[[], State]) -> None:
        """Keep make() if it is time to: states may be offered as often as one likes."""

    def beside(self, give: Callable[[], State], take: Callable[[State], None]) -> Checkpoint:
        """This checkpoint for somebody who keeps a state of their own in it, next to ours.

        give() is ours when theirs is kept; take(...) gets it back before theirs is loaded.
        """
        return _Shared(self, give, take)


class _Shared(Checkpoint):
    def __init__(self, kept: Checkpoint, give: Callable[[], State], take: Callable[[State], None]) -> None:
        super().__init__(kept.seconds)
        self._kept, self._give, self._take = kept, give, take

    def load(self) -> State:
        both = self._kept.load()
        if both is None:
            return None
        self._take(both["ours"])
        return both["theirs"]

    def offer(self, make: Callable[[], State]) -> None:
        self._kept.offer(lambda: {"ours": self._give(), "theirs": make()})


@dataclass(frozen=True)
class _Kept:
    """What a part's file holds."""

    state: State
    finished: bool = False
    seconds: float = 0.0


class _Part(Checkpoint):
    """The checkpoint of one part, in its file."""

    def __init__(self, path: Path, kept: _Kept) -> None:
        super().__init__(kept.seconds)
        self._path, self._kept = path, kept
        self._due = time.perf_counter() + LEAST

    def load(self) -> State:
        return self._kept.state

    def offer(self, make: Callable[[], State]) -> None:
        start = time.perf_counter()
        if start < self._due:
            return
        self.write(_Kept(make(), False, self.seconds))
        now = time.perf_counter()
        # of a long part, losing 1% is no loss either
        self._due = now + max(LEAST, PATIENCE * (now - start), self.seconds / 100)

    def write(self, kept: _Kept) -> None:
        content = pack({"state": kept.state, "finished": kept.finished, "seconds": kept.seconds})
        write_atomically(self._path, lambda file: file.write(content))


class Memo:
    """The parts of a run that are done, and where the one in progress stood.

    Without a folder nothing is kept. seconds: of each part by its key, over all sittings. Raises InputError
    that names a damaged file.
    """

    def __init__(self, folder: str | Path | None = None) -> None:
        self._folder = None if folder is None else Path(folder)
        self._kept: dict[str, _Kept] = {}
        if self._folder is not None:
            self._kept = {path.stem: _read(path) for path in sorted(self._folder.glob("*.npz"))}
        self.seconds = {key: kept.seconds for key, kept in self._kept.items()}

    @property
    def finished(self) -> int:
        """The number of parts that are done."""
        return sum(kept.finished for kept in self._kept.values())

    def remember(self, key: str, compute: Callable[[Checkpoint], State]) -> State:
        """The part called `key` (a file name without its ending): as kept, else compute(checkpoint), kept."""
        kept = self._kept.get(key, _Kept(None))
        if not kept.finished:
            checkpoint = Checkpoint() if self._folder is None else _Part(self._folder / f"{key}.npz", kept)
            state = compute(checkpoint)
            kept = _Kept(unpack(pack(state)), True, checkpoint.seconds)
            if isinstance(checkpoint, _Part):
                checkpoint.write(kept)
                self._kept[key] = kept
            self.seconds[key] = kept.seconds
        return kept.state


def _read(path: Path) -> _Kept:
    try:
        found = unpack(path.read_bytes())
        kept = _Kept(found["state"], found["finished"], found["seconds"])
    except _DAMAGE as error:
        raise InputError(f"{path}: damaged; remove it to have this part of the run computed again") from error
    if not isinstance(kept.finished, bool) or not isinstance(kept.seconds, float):
        raise InputError(f"{path}: not a part of a run of Kolmo")
    return kept
