"""What TensorBoard is told is what the trainings said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from problems import points

import kolmo
from kolmo import control, training
from kolmo.control.lbfgs import lbfgs
from kolmo.control.objective import Objective
from kolmo.errors import InputError
from kolmo.images.training import Epoch
from kolmo.logging import TensorBoard
from kolmo.penalty import WeightDecay

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # protobuf's and tensorboard's own


@pytest.fixture(autouse=True)
def _installed() -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Every scalar by its name: steps and values."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events: Any = EventAccumulator(str(folder))
    events.Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def problem() -> kolmo.Problem:
    network = kolmo.ResidualNetwork(dim=2, width=4, depth=10)
    return kolmo.Problem(points(2, 20), network, kolmo.noise.BernoulliDropout(0.9))


def test_stochastic_training(tmp_path: Path) -> None:
    """Objective, evaluations and seconds of every third step, at the steps' own numbers."""
    told: list[training.Step] = []
    with TensorBoard(tmp_path, "adam", every=3) as board:

        def both(step: training.Step) -> None:
            told.append(step)
            board(step)

        training.train(problem(), steps=7, paths=2, callback=both)
    found = scalars(tmp_path)
    assert sorted(found) == ["adam/evaluations", "adam/objective", "adam/seconds"]
    assert [n for n, _ in found["adam/objective"]] == [3, 6]
    values = [told[k].objective for k in (2, 5)]
    assert np.allclose([v for _, v in found["adam/objective"]], values, rtol=1e-7)  # float32


def test_control_training_and_its_optimiser(tmp_path: Path) -> None:
    """control.train counts its steps over all meshes; lbfgs numbers its own; weights are no scalars."""
    ours = problem()
    values: list[float] = []
    with TensorBoard(tmp_path / "train") as board:
        control.train(
            ours,
            [WeightDecay(1e-2)],
            cells=(24, 32),
            iterations=(2, 1),
            callback=lambda p: (board(p), values.append(p.objective)),
        )
    found = scalars(tmp_path / "train")
    assert sorted(found) == [f"training/{key}" for key in ("cells", "evaluations", "objective", "seconds")]
    assert [n for n, _ in found["training/objective"]] == list(range(1, len(values) + 1))
    assert np.allclose([v for _, v in found["training/objective"]], values, rtol=1e-7)
    assert {v for _, v in found["training/cells"]} == {24.0, 32.0}

    equation = kolmo.pde.BackwardKolmogorov(ours, cells=12)
    objective = Objective(ours.network, equation.expected_loss)
    with TensorBoard(tmp_path / "lbfgs") as board:
        result = lbfgs(objective, objective.theta, iterations=2, callback=board)
    found = scalars(tmp_path / "lbfgs")
    assert found["training/value"][-1] == (2, pytest.approx(result.value, rel=1e-6))
    assert found["training/residual"][-1] == (2, pytest.approx(result.residual, rel=1e-6))


def test_epochs_of_images(tmp_path: Path) -> None:
    with TensorBoard(tmp_path, "images") as board:
        for number, loss in ((1, 2.3), (2, float("nan"))):
            board(Epoch(number, loss, 0.5 * number))
    found = scalars(tmp_path)
    assert found["images/loss"][0] == (1, pytest.approx(2.3, rel=1e-7))
    assert found["images/loss"][1][0] == 2 and np.isnan(found["images/loss"][1][1])
    assert [v for _, v in found["images/seconds"]] == [0.5, 1.0]


def test_what_is_wrong_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="file: cannot be made"):
        TensorBoard(tmp_path / "file")
    with pytest.raises(InputError, match="every: 0 is not a positive integer"):
        TensorBoard(tmp_path, every=0)
    monkeypatch.setattr("kolmo.logging.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'kolmo\[tensorboard\]'"):
        TensorBoard(tmp_path)
