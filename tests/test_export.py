"""Exported networks compute what the network computes, and need nothing of Kolmo."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from problems import points, trained_size

import kolmo
from kolmo import case, noise
from kolmo.activation import ACTIVATIONS
from kolmo.cli import main
from kolmo.errors import InputError
from kolmo.export import plain, write
from kolmo.loss import LeastSquares, Logistic, LogisticHead, Loss
from kolmo.module_network import FieldNetwork
from kolmo.network import LayeredNetwork


def logits(network: LayeredNetwork, loss: Loss, x: torch.Tensor) -> torch.Tensor:
    """Phi_0 - Phi_1 at the last features: the log-odds of class 1 under a logistic loss."""
    with torch.no_grad():
        features = network(x)
        return loss(features, 0) - loss(features, 1)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
def test_logits_are_the_networks(activation: str, dtype: str) -> None:
    """To rounding: 1e-12 in float64, 1e-6 relative to the scale of the logits in float32."""
    network, x = trained_size(2, 5, activation=activation), points(2).points
    for loss in (Logistic(3.0), LogisticHead([0.5, -1.5], 0.25)):
        model = plain(network, loss, dtype)
        with torch.no_grad():
            found, chances = (f(x.to(model.step.dtype)).double() for f in (model, model.probability))
        expected = logits(network, loss, x)
        tolerance = 1e-12 if dtype == "float64" else 1e-6
        assert torch.allclose(found, expected, rtol=tolerance, atol=tolerance * float(expected.abs().max()))
        assert torch.allclose(chances, torch.sigmoid(expected), rtol=0, atol=tolerance)


def saved_case(folder: Path, loss: Loss | None = None) -> kolmo.Problem:
    problem = kolmo.Problem(
        points(2), trained_size(2, 5, seed=7), noise.BernoulliDropout(0.8), loss or Logistic(2.0)
    )
    case.save(problem, folder)
    return problem


def test_the_script_runs_without_kolmo(tmp_path: Path) -> None:
    """`kolmo export` leaves a state dict of tensors and a script that reads it without Kolmo."""
    problem = saved_case(tmp_path / "case", LogisticHead([1.0, 2.0], -0.5))
    assert main(["export", str(tmp_path / "case"), "--out", str(tmp_path / "out")]) == 0
    state = torch.load(tmp_path / "out" / "network.pt", weights_only=True)
    assert all(isinstance(value, torch.Tensor) for value in state.values())
    script = str(tmp_path / "out" / "network.py")
    blocked = "import sys, runpy; sys.modules['kolmo'] = None; "
    blocked += f"runpy.run_path({script!r}, run_name='__main__')"
    answer = subprocess.run(
        [sys.executable, "-I", "-W", "error", "-c", blocked],
        input=(tmp_path / "case" / "points.csv").read_text(),
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    expected = torch.sigmoid(logits(problem.network, problem.loss, problem.data.points))
    assert np.allclose([float(v) for v in answer.stdout.split()], expected, rtol=1e-12, atol=1e-14)


def test_the_command_says_what_it_wrote(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """--json names the files; a folder in use, a wrong format, no case: one line and code 2."""
    saved_case(tmp_path / "case")
    out = ["--out", str(tmp_path / "out")]
    assert main(["export", str(tmp_path / "case"), *out, "--json", "--dtype", "float32"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [Path(f).name for f in told["files"]] == ["network.pt", "network.py"]
    assert all(Path(f).is_file() for f in told["files"])
    for arguments, words in (
        ([str(tmp_path / "case"), *out], "not empty"),
        ([str(tmp_path / "case"), *out, "--overwrite", "--format", "onx"], "did you mean 'onnx'?"),
        ([str(tmp_path / "case"), *out, "--overwrite", "--dtype", "half"], "'half' is unknown"),
        ([str(tmp_path / "none"), *out, "--overwrite"], "not a directory"),
    ):
        assert main(["export", *arguments]) == 2
        told = capsys.readouterr().err
        assert words in told and told.count("\n") == 1


def test_what_cannot_be_exported_is_refused() -> None:
    with pytest.raises(InputError, match=r"save network\.module\.state_dict"):
        plain(FieldNetwork(_Field(), 2, 3))
    with pytest.raises(InputError, match="'least_squares' has no logits"):
        plain(trained_size(2, 3), LeastSquares())


def test_onnx_says_what_it_misses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a package is absent: one line with the command, and no folder."""
    monkeypatch.setattr("kolmo.export.networks.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"'onnx' needs onnx; install it with: pip install 'kolmo\[onnx\]'"):
        write(trained_size(2, 3), tmp_path / "out", "onnx")
    assert not (tmp_path / "out").exists()


class _Field(torch.nn.Module):
    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return -x


@pytest.mark.slow
@pytest.mark.parametrize(
    ("activation", "dtype"),
    [
        ("tanh", "float32"), ("tanh", "float64"), ("sin", "float64"), ("identity", "float64"),
        ("relu", "float64"), ("sigmoid", "float64"), ("softplus", "float32"), ("gelu", "float32"),
    ],
)  # fmt: skip
def test_onnx_computes_the_same(activation: str, dtype: str, tmp_path: Path) -> None:
    """By onnxruntime, for any number of points; its kernels of softplus and gelu are float32's only."""
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    network, loss = trained_size(2, 5, activation=activation), LogisticHead([0.5, -1.5], 0.25)
    (path,) = write(network, tmp_path, "onnx", loss=loss, dtype=dtype)
    assert str(Path(__file__).parents[1]).encode() not in path.read_bytes()
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for count in (1, 40):
        x = points(2).points[:count]
        logit, probability = session.run(["logit", "probability"], {"x": x.numpy().astype(dtype)})
        expected = logits(network, loss, x)
        tolerance = 1e-12 if dtype == "float64" else 1e-6
        assert logit.shape == (count,) and logit.dtype == dtype
        assert np.abs(logit - expected.numpy()).max() <= tolerance * max(1, float(expected.abs().max()))
        assert np.abs(probability - torch.sigmoid(expected).numpy()).max() <= tolerance
