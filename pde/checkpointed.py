r"""The march and its exact adjoint under a memory budget.

The adjoint takes the states in the reverse of the order in which the march made them. Three ways to have
them, the first that fits:

1. records: all that the schemes' adjoints take, up to five states a substep;
2. states: one a substep, the stages of each are computed again;
3. snapshots: the first states of some layers, and the substeps of one layer; what lies between is marched
   again, in the order that needs the fewest layers for this number of snapshots.

The third's schedule is binomial, by the package checkpoint_schedules: its step n is layer L - 1 - n, since
the march goes from the output to the input. Every way does the same arithmetic, so that J and its gradient
are the same.
Source: Griewank, Walther, ACM Trans. Math. Software 26 (2000), algorithm 799.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import checkpoint_schedules as actions
import numpy as np

from kolmo.errors import InputError
from kolmo.pde.march import Bounds, EachLayer, Layer, March, adjoint_layer, over_layer, own
from kolmo.pde.space import Space, Steps
from kolmo.profile import timed

#: (layer, violation, entries clipped): called when a layer has been marched over
_Passed = Callable[[int, float, int], None]


@dataclass(frozen=True)
class Plan:
    """What is kept for the adjoint.

    snapshots: the number of layers' first states; None: the states of all substeps. record: what the
    schemes' adjoints take too, of all substeps or of the one layer's. needed: bytes kept at most.
    """

    snapshots: int | None
    record: bool
    needed: int


def record_size(steps: Steps, terminal: np.ndarray) -> int:
    """Bytes that `Steps.record` keeps of a substep from values like these (Q, C)."""
    if type(steps).record is Steps.record:
        return terminal.nbytes
    return int(getattr(steps.record(terminal)[1], "nbytes", terminal.nbytes))


def all_states(space: Space, counts: Sequence[int], terminal: np.ndarray, budget: float) -> Plan | None:
    """The states of all substeps; None where they do not fit, see `plan`."""
    needed = sum(counts) * (terminal.nbytes + terminal.size) + terminal.nbytes
    return Plan(None, False, needed) if space.maximum(needed - budget) <= 0 else None


def all_records(
    space: Space, counts: Sequence[int], terminal: np.ndarray, record: int, budget: float
) -> Plan | None:
    """What the adjoint takes of all substeps, `record` bytes each; None where it does not fit, see `plan`."""
    state, marks = terminal.nbytes, terminal.size  # a mark is a byte
    # beside the substeps' own: u(0), and each layer's first state
    needed = sum(counts) * (record + marks) + (len(counts) + 1) * state
    return Plan(None, True, needed) if space.maximum(needed - budget) <= 0 else None


def plan(
    space: Space, counts: Sequence[int], terminal: np.ndarray, record: int, budget: float, name: str
) -> Plan:
    """What to keep for the adjoint of layers with this many substeps in `budget` bytes a process.

    terminal: (Q, C). record: see `record_size`. name: whose limit it is, for the error.
    Raises InputError where the budget does not hold a snapshot and a layer. All processes make the same
    plan, that of the one with the least to spare.
    """
    state, marks = terminal.nbytes, terminal.size
    depth, most = len(counts), max(counts)

    def spare(needed: int) -> float:
        return -space.maximum(needed - budget)

    records = all_records(space, counts, terminal, record, budget)
    whole = records or all_states(space, counts, terminal, budget)
    if whole is not None:
        return whole
    # beside the snapshots: a layer, the state on its way and u(0)
    layer = most * (state + marks) + 2 * state
    least = min(depth - 1, 1) * state + layer
    if spare(least) < 0:
        raise InputError(
            f"{name}: the adjoint of {depth} layers of up to {most} substeps on {len(terminal)} nodes keeps "
            f"at least {_mib(least)}, it may keep {_mib(budget)}; allow more, or take fewer cells"
        )
    snapshots = min(depth - 1, int(-space.maximum(-((budget - layer) // state))))
    recorded = snapshots * state + most * (record + marks) + 3 * state
    if snapshots == depth - 1 and spare(recorded) >= 0:
        return Plan(snapshots, True, recorded)
    return Plan(snapshots, False, snapshots * state + layer)


def _mib(count: float) -> str:
    return f"{count / 2**20:.3g} MiB"


class Checkpointed(March):
    """A backward march that kept some layers' first states, and its adjoint.

    replayed: layers marched again so far. peak: most bytes of states, marks and records kept so far.
    """

    def __init__(
        self,
        space: Space,
        steps: Sequence[Steps],
        terminal: np.ndarray,
        plan: Plan,
        limit: bool = True,
        each: EachLayer | None = None,
    ) -> None:
        """March from the terminal values (Q, C) to time 0 with the plan's snapshots; otherwise, and in what
        it raises, as `march.backward`. each: see `march.passing`.
        """
        super().__init__(steps=steps, initial=terminal)
        assert plan.snapshots is not None
        self.replayed = self.peak = 0
        self._snapshots_wanted, self._record = plan.snapshots, plan.record
        self._terminal, self._bounds = terminal, Bounds.of(space, terminal, limit)

        def first_time(layer: int, violation: float, clipped: int) -> None:
            self.passed(space, layer, violation, clipped)
            if each is not None:
                each(layer, self._u)

        self._march(first_time)
        self.initial = self._u

    @timed("adjoint march")
    def adjoint(self, initial: np.ndarray, each: EachLayer, scale: float = 1.0) -> np.ndarray:
        """As `march.adjoint`. It uses the snapshots up: another call marches for new ones."""
        if self._schedule.r > 0:
            self._march(self._again)
        self._rho, self._each = scale * initial, each
        self._follow(actions.EndReverse, self._again)
        return self._rho

    @timed("march")
    def _march(self, passed: _Passed) -> None:
        self._schedule = actions.MultistageCheckpointSchedule(len(self.steps), self._snapshots_wanted, 0)
        self._u = self._terminal
        self._snapshots: dict[int, np.ndarray] = {}
        self._layers: dict[int, Layer] = {}
        self._follow(actions.EndForward, passed)

    def _again(self, layer: int, violation: float, clipped: int) -> None:
        """The guards have seen this layer, and it does what it did."""
        self.replayed += 1

    def _follow(self, end: type[actions.CheckpointAction], passed: _Passed) -> None:
        """Do what the schedule says up to its next action of this kind.

        Keys of snapshots and layers are the schedule's steps.
        """
        for action in self._schedule:
            match action:
                case actions.Forward():
                    self._forward(action, passed)
                case actions.Reverse():
                    self._reverse(action)
                case actions.Copy():
                    self._u = self._snapshots[action.n]
                case actions.Move():
                    self._u = self._snapshots.pop(action.n)
            if isinstance(action, end):
                return

    def _forward(self, action: actions.Forward, passed: _Passed) -> None:
        if action.write_ics:
            self._snapshots[action.n0] = self._u
        for n in action:
            layer = len(self.steps) - 1 - n
            into = Layer() if action.write_adj_deps else None
            u, violation, clipped = over_layer(
                self.steps[layer], self._u, self._bounds, into, self._record and into is not None
            )
            self._u = own(u)
            if into is not None:
                self._layers[n] = into
            self.peak = max(self.peak, self._stored())
            passed(layer, violation, clipped)

    def _reverse(self, action: actions.Reverse) -> None:
        for n in action:
            layer, kept = len(self.steps) - 1 - n, self._layers[n]
            if action.clear_adj_deps:
                del self._layers[n]
            self._rho, cotangent = adjoint_layer(self.steps[layer], self._rho, kept.kept, kept.records)
            self._each(layer, cotangent)

    def _stored(self) -> int:
        """Bytes of all states, marks and records kept now."""
        kept: list[np.ndarray | None] = [self._u, self.initial, *self._snapshots.values()]
        for layer in self._layers.values():
            kept += [*layer.states, *layer.kept, *layer.records]
        return sum({id(array): array.nbytes for array in kept if array is not None}.values())
