"""Figures: whole files with something on them, fewer of them for an interrupted run, the same bytes twice."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.image import imread

from kolmo import figures, plotting
from kolmo.config import Config
from kolmo.data import Dataset, to_csv
from kolmo.experiments.binary_classification import BinaryClassification
from kolmo.experiments.progress import Silent
from kolmo.experiments.three_ways import Trained
from kolmo.figures import write_figures
from kolmo.pde.mesh import box_mesh

ALL = ["regions", "value_density", "training", "paths", "weights", "errors", "pontryagin"]


@pytest.fixture(autouse=True)
def _coarse(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "CELLS", {1: (64, 32), 2: (24, 32), 3: (10, 14)})


def tiny(kind: str, file: str = "") -> BinaryClassification:
    config = Config()
    config.data.kind, config.data.file, config.data.train, config.data.test = kind, file, 20, 20
    config.network.depth = config.network.width = 4
    config.control.cells, config.control.iterations = [16], [3]
    config.stochastic.steps, config.noiseless.steps = 60, 20
    config.check.paths, config.check.gradient_paths, config.check.snapshots = 1000, 1000, 2
    config.run.backend, config.run.device = "skfem", "cpu"
    return BinaryClassification(config)


def train(run: BinaryClassification) -> None:
    """The three trainings, and what the cross-check would have left, without its long chains."""
    for method in ("control", "stochastic", "noiseless"):
        run._train(method, Silent())
        run.measured[method] = {
            "train_accuracy": 0.9,
            "test_accuracy": 0.85,
            "pde": {"value": 0.41, "error": {"mesh": 2e-3, "time": 1e-9, "domain": 0.0, "model": 4e-4}},
            "chain": {"value": 0.4, "error": {"sampling": 1e-3}},
        }
    run._judge(Silent())
    for name in ("control", "stochastic"):
        values = [{"pde": 0.61, "chain": 0.6}, {"pde": None, "chain": 0.5}, {"pde": 0.41, "chain": 0.4}]
        run.paths[name] = [
            {"seconds": i + 1.0, "evaluations": 100 * (i + 1), "standard_error": 0.002, **row}
            for i, row in enumerate(values)
        ]


def check(folder: Path, names: list[str]) -> None:
    """Exactly these figures, within their size limits, not blank."""
    expected = sorted(f"{name}.{ending}" for name in names for ending in ("pdf", "png"))
    assert sorted(p.name for p in folder.iterdir()) == expected
    for name in names:
        png, pdf = folder / f"{name}.png", folder / f"{name}.pdf"
        assert 5_000 < png.stat().st_size < 400_000
        assert 5_000 < pdf.stat().st_size < 1_000_000
        assert pdf.read_bytes().startswith(b"%PDF-")
        image = imread(png)
        assert min(image.shape[:2]) > 300
        assert image[..., :3].std() > 0.05


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["moons", "interval"])
def test_every_figure_of_a_tiny_run(kind: str, tmp_path: Path) -> None:
    run = tiny(kind)
    train(run)
    assert write_figures(run, tmp_path) == ALL
    check(tmp_path, ALL)


def test_three_features_are_shown_on_a_slice(tmp_path: Path) -> None:
    points = np.random.default_rng(0).uniform(-1, 1, (20, 3))
    data = Dataset(torch.from_numpy(points), torch.from_numpy((points[:, 0] > 0).astype(np.int64)))
    to_csv(data, tmp_path / "data.csv")
    run = tiny("", str(tmp_path / "data.csv"))
    run.trained["control"] = Trained(copy.deepcopy(run.problem.network), [(0.1, 100, 0.7), (0.2, 200, 0.6)])
    for make in (figures.regions, figures.value_density):
        figure = make(run)
        assert figure is not None
        assert "slice $x_3$ = 0" in figure.get_suptitle()


@pytest.mark.slow
def test_an_interrupted_run_gets_fewer_figures(tmp_path: Path) -> None:
    run = tiny("moons")
    assert write_figures(run, tmp_path) == []
    run.trained["control"] = Trained(copy.deepcopy(run.problem.network))
    run.paths["control"] = []
    assert write_figures(run, tmp_path) == []
    run._train("control", Silent())
    written = write_figures(run, tmp_path)
    assert written == [name for name in ALL if name not in ("paths", "errors", "pontryagin")]
    check(tmp_path, written)


def test_weights_no_mesh_takes_leave_that_figure_out(tmp_path: Path) -> None:
    run = tiny("moons")
    wild = copy.deepcopy(run.problem.network)
    with torch.no_grad():
        wild.V.mul_(500)
    run.trained["control"] = Trained(wild, [(0.1, 100, 0.7)])
    assert write_figures(run, tmp_path) == ["regions", "training", "weights"]


@pytest.mark.slow
def test_the_same_run_gives_the_same_bytes(tmp_path: Path) -> None:
    run = tiny("interval")
    run.trained["control"] = Trained(copy.deepcopy(run.problem.network), [(0.1, 100, 0.7), (0.2, 200, 0.6)])
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        folder.mkdir()
        write_figures(run, folder)
    one, two = ({p.name: p.read_bytes() for p in folder.iterdir()} for folder in folders)
    assert one == two
    assert not any(b"/CreationDate" in content for content in one.values())


@pytest.mark.parametrize("dim", [1, 2, 3])
@pytest.mark.parametrize("cells", [4, 5])
def test_node_grid_undoes_any_numbering(dim: int, cells: int) -> None:
    points = box_mesh(dim, cells, 1.5).points
    points = np.random.default_rng(0).permutation(points)
    values = np.stack([points.sum(axis=1), points[:, 0]], axis=1)
    axes, grid = plotting.node_grid(points, values)
    off = 0 if dim < 3 or cells % 2 == 0 else -1.5 / cells  # an odd number of cells has no plane at 0
    plane = plotting.in_plane(axes, dim)
    np.testing.assert_allclose(np.abs(grid[..., 0] - plane.sum(axis=-1)), abs(off), atol=1e-12)
    np.testing.assert_allclose(grid[..., 1], plane[..., 0], atol=1e-12)


def test_running_mean_and_smoothing_keep_constants_and_means() -> None:
    np.testing.assert_allclose(plotting.running_mean(np.full(200, 3.0)), 3.0)
    assert plotting.running_mean(np.arange(200.0))[100] == pytest.approx(100)
    grid = np.zeros((9, 9))
    grid[4, 4] = 1
    assert plotting.smooth(grid, 2).sum() == pytest.approx(1)
    assert plotting.smooth(grid, 2)[4, 4] == pytest.approx(0.25)
