"""Checkpoints: states that come back bit by bit, damage that is refused, trainings that never stopped."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from problems import ROOT
from test_layers import breaches, imported

from kolmo import Problem, ResidualNetwork, checkpoint, control, data, noise, training
from kolmo.checkpoint import Checkpoint, Memo, State, pack, unpack
from kolmo.control import Box, Objective, lbfgs
from kolmo.errors import InputError, MaximumPrincipleError
from kolmo.explicit import ExplicitPenalty
from kolmo.penalty import StepPenalty, WeightDecay


class Tape(Checkpoint):
    """Keeps the bytes of every state it is offered, and begins from some that were kept before."""

    def __init__(self, begin: bytes | None = None) -> None:
        super().__init__()
        self.begin = begin
        self.kept: list[bytes] = []

    def load(self) -> State:
        return None if self.begin is None else unpack(self.begin)

    def offer(self, make: Callable[[], State]) -> None:
        self.kept.append(pack(make()))


def timeless(state: Any) -> Any:
    """What does not depend on the clock: everything but what is called `seconds`."""
    if isinstance(state, dict):
        return {key: timeless(value) for key, value in state.items() if key != "seconds"}
    return [timeless(value) for value in state] if isinstance(state, (list, tuple)) else state


def same(one: State, other: State) -> bool:
    """Bitwise equality of two states, apart from wall times."""
    return pack(timeless(one)) == pack(timeless(other))


# ------------------------------------------------------------------ states and files


def test_states_come_back_bit_by_bit() -> None:
    """Floats of every kind, large integers, texts, arrays of several types, all nested."""
    rng = np.random.default_rng(0)
    floats = [*rng.standard_normal(200), *np.exp(rng.uniform(-700, 700, 200)), 5e-324, -0.0, 0.1, math.inf]
    state = {
        "floats": [float(x) for x in floats],
        "integers": [0, -1, 2**53 + 1, 10**40],
        "texts": ["", "ä\n\"'", None, True, False],
        "arrays": [rng.standard_normal((3, 4)), np.float32([0.1, -0.0]), np.zeros((0, 2)), np.array(7)],
        "empty": [{}, []],
    }
    found = unpack(pack(state))
    assert found["floats"] == state["floats"] and math.copysign(1, found["floats"][402 - 1]) == -1
    assert found["integers"] == state["integers"] and found["texts"] == state["texts"]
    assert found["texts"][3] is True and found["empty"] == [{}, []]
    for one, other in zip(found["arrays"], state["arrays"], strict=True):
        assert one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()
    assert math.isnan(unpack(pack([math.nan]))[0])
    assert unpack(pack((np.float64(0.1), np.int64(3), np.bool_(True)))) == [0.1, 3, True]


@pytest.mark.parametrize(
    "state", [object(), {1: 2}, {"__array__": 0}, np.array([{}]), torch.zeros(1), {1, 2}]
)
def test_what_would_not_come_back_is_not_kept(state: object) -> None:
    with pytest.raises(TypeError, match="cannot be kept"):
        pack(state)


def test_a_memo_computes_a_part_once(tmp_path: Path) -> None:
    """Over sittings; the result is the same object's worth in the first as in the second."""
    calls: list[str] = []

    def compute(checkpoint: Checkpoint) -> State:
        calls.append("")
        return {"rows": [(1, 0.1)], "weights": np.arange(3.0)}

    first = Memo(tmp_path).remember("part", compute)
    memo = Memo(tmp_path)
    assert same(first, memo.remember("part", compute)) and first["rows"] == [[1, 0.1]]
    assert len(calls) == 1 and memo.finished == 1 and memo.seconds["part"] > 0
    assert [path.name for path in tmp_path.iterdir()] == ["part.npz"]
    # nothing is kept without a folder
    nowhere = Memo()
    nowhere.remember("part", compute), nowhere.remember("part", compute)
    assert len(calls) == 3


def test_an_interrupted_part_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From what it offered last, with its seconds; a state of somebody else's is kept beside it."""
    monkeypatch.setattr(checkpoint, "LEAST", 0.0)
    monkeypatch.setattr(checkpoint, "PATIENCE", 0.0)
    seen: list[int] = []

    def count(kept: Checkpoint, last: int) -> State:
        kept = kept.beside(lambda: {"seen": seen}, lambda state: seen.extend(state["seen"]))
        number = kept.load() or 0
        while number < last:
            time.sleep(0.02)
            number += 1
            seen.append(number)
            kept.offer(partial(int, number))
            if number == 3 and last == 10:
                raise KeyboardInterrupt
        return number

    with pytest.raises(KeyboardInterrupt):
        Memo(tmp_path).remember("count", lambda kept: count(kept, 10))
    assert seen == [1, 2, 3]
    seen.clear()
    memo = Memo(tmp_path)
    assert memo.finished == 0 and memo.seconds["count"] >= 0.05
    assert memo.remember("count", lambda kept: count(kept, 5)) == 5
    assert seen == [1, 2, 3, 4, 5] and memo.seconds["count"] >= 0.09


def test_checkpoints_cost_two_percent_at_most(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Writes are spaced by what they cost, however slow the disk."""
    spent: list[float] = []
    real = checkpoint.write_atomically

    def slow(path: Path, write: Callable[..., Any]) -> None:
        start = time.perf_counter()
        time.sleep(0.01)
        real(path, write)
        spent.append(time.perf_counter() - start)

    monkeypatch.setattr(checkpoint, "write_atomically", slow)
    monkeypatch.setattr(checkpoint, "LEAST", 0.0)

    def compute(kept: Checkpoint) -> State:
        while kept.seconds < 2.0:
            kept.offer(lambda: 0)
        return 0

    Memo(tmp_path).remember("part", compute)
    assert len(spent[:-1]) >= 2 and sum(spent[:-1]) < 0.02 * 2.0 + max(spent)


def test_damage_is_refused_in_one_line(tmp_path: Path) -> None:
    """Cut anywhere, one byte changed anywhere, or never ours: named, and not touched. Never a wrong state."""
    memo = Memo(tmp_path)
    state = {"weights": np.arange(20.0), "text": "abc"}
    memo.remember("part", lambda _: state)
    path, rng = tmp_path / "part.npz", np.random.default_rng(1)
    whole = path.read_bytes()
    broken = [whole[:cut] for cut in rng.integers(0, len(whole), 60)]
    for position in rng.integers(0, len(whole), 300):
        broken.append(
            whole[:position] + bytes([whole[position] ^ (1 << rng.integers(8))]) + whole[position + 1 :]
        )
    broken += [b"", b"junk", pack(None), pack({"state": 1}), pack({"state": 1, "finished": 1, "seconds": 0})]
    refused = unread = 0
    for content in broken:
        path.write_bytes(content)
        try:
            found = Memo(tmp_path).remember("part", lambda _: pytest.fail("computed again"))
        except InputError as error:
            refused += str(path) in str(error) and "\n" not in str(error)
        else:
            unread += 1
            assert same(found, state)  # a byte that nobody reads, as in a file's date
        assert path.read_bytes() == content
    assert refused + unread == len(broken) and refused > 0.7 * len(broken)


class Bomb:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.folder),)


def test_nothing_that_is_read_is_executed(tmp_path: Path) -> None:
    """A file like ours in all but an array that is pickled: refused, and not unpickled."""
    text = json.dumps({"state": {"__array__": 0}, "finished": True, "seconds": 1.0})
    array = np.array([Bomb(tmp_path / "exploded")], dtype=object)
    np.savez(tmp_path / "part.npz", text=np.frombuffer(text.encode(), np.uint8), array_0=array)
    with pytest.raises(InputError, match="damaged"):
        Memo(tmp_path)
    assert not (tmp_path / "exploded").exists()


def test_checkpoints_belong_to_the_core() -> None:
    for name in ("checkpoint", "files"):
        source = (ROOT / "kolmo" / f"{name}.py").read_text(encoding="utf-8")
        above = ("kolmo.pde", "kolmo.control", "kolmo.experiments", "kolmo.runs", "kolmo.cli")
        assert not breaches(imported(source, "kolmo"), above)


# ------------------------------------------------------------------ trainings, stopped after any step


def problem() -> Problem:
    return Problem(data.moons(40, seed=3), ResidualNetwork(2, 4, 4, seed=1), noise.BernoulliDropout(0.8))


PENALTIES = (WeightDecay(1e-2), StepPenalty())


def adam(given: Problem, kept: Checkpoint, seen: list[Any]) -> State:
    def note(step: training.Step) -> None:
        seen.append((step.number, step.objective, step.evaluations))

    training.train(given, PENALTIES, steps=12, paths=3, seed=4, callback=note, checkpoint=kept)
    return {}


def by_control(estimator: str) -> Callable[[Problem, Checkpoint, list[Any]], State]:
    """Two meshes, of which the first audit may fail; all that the training tells."""

    def train(given: Problem, kept: Checkpoint, seen: list[Any]) -> State:
        def note(step: control.training.Progress) -> None:
            seen.append((step.cells, step.objective, step.evaluations))

        meshes: dict[str, Any] = {"cells": [12, 24], "iterations": [8, 4], "estimator": estimator}
        found = control.train(given, PENALTIES, **meshes, callback=note, checkpoint=kept)
        return {**vars(found), "result": vars(found.result)}

    return train


def repeated(given: Problem, kept: Checkpoint, seen: list[Any]) -> State:
    """A mesh too coarse to pass its audit: a second, finer round is planned on the way."""

    def note(step: control.training.Progress) -> None:
        seen.append((step.cells, step.objective, step.evaluations))

    found = control.train(given, PENALTIES, cells=[16], iterations=[6], callback=note, checkpoint=kept)
    assert len(found.audits) > 1
    return {**vars(found), "result": vars(found.result)}


def explicit(given: Problem, kept: Checkpoint, seen: list[Any]) -> State:
    """L-BFGS by itself: more steps than pairs are remembered, and trial points that are refused."""
    estimator = ExplicitPenalty(given)

    def loss() -> torch.Tensor:
        if float(given.network.W.detach().norm()) > 3.9:
            raise MaximumPrincipleError("layer 0: too far out; take smaller weights", 0)
        return estimator.expected_loss()

    def note(step: control.Iterate) -> None:
        seen.append((step.iteration, step.value, step.evaluations, step.refused))
        kept.offer(step.state)

    objective = Objective(given.network, loss, PENALTIES)
    settings: dict[str, Any] = {"iterations": 14, "memory": 4, "initial_step": 40.0, "callback": note}
    found = lbfgs(objective, objective.theta, Box(1.0), **settings, resume=kept.load())
    assert found.refused
    return vars(found)


TRAININGS = {
    "adam": adam,
    "pde": by_control("pde"),
    "exact": by_control("exact"),
    "repeated": repeated,
    "explicit": explicit,
}


def box(given: Problem) -> float:
    """A half width that depends on the weights where a mesh begins, as the real one may."""
    return 3.6 + 0.1 * float(given.network.W.detach().norm())


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] if n == "repeated" else []) for n in TRAININGS]
)
def test_a_training_stopped_after_any_step_goes_on_bitwise(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights, what it tells, and every state that it keeps from there on."""
    monkeypatch.setattr(control.training, "choose_half_width", box)
    monkeypatch.setattr(control.training, "exact_half_width", box)
    train, given, tape, seen = TRAININGS[name], problem(), Tape(), list[Any]()
    outcome = train(given, tape, seen)
    assert len(tape.kept) == len(seen) >= 6
    for number, kept in enumerate(tape.kept, start=1):
        again, later, rest = problem(), Tape(kept), list[Any]()
        assert same(train(again, later, rest), outcome), f"after step {number}"
        assert rest == seen[number:]
        for p, q in zip(given.network.parameters(), again.network.parameters(), strict=True):
            assert torch.equal(p, q), f"after step {number}"
        assert [timeless(unpack(k)).keys() for k in later.kept] == [
            timeless(unpack(k)).keys() for k in tape.kept[number:]
        ]
        assert all(same(unpack(a), unpack(b)) for a, b in zip(later.kept, tape.kept[number:], strict=True))


def test_a_resumed_training_accumulates_its_seconds() -> None:
    """The clock goes on from where it stood, in both kinds of training."""
    for name in ("adam", "pde"):
        tape, seconds = Tape(), list[float]()
        TRAININGS[name](problem(), tape, [])
        state = unpack(tape.kept[5])
        state["seconds"] = 1000.0
        later = Tape(pack(state))
        TRAININGS[name](problem(), later, [])
        seconds = [unpack(kept)["seconds"] for kept in later.kept]
        assert min(seconds) > 1000.0 and seconds == sorted(seconds)
