"""Fields on disk: read back they are the solution, and their integrals are what they should be."""

from __future__ import annotations

import json
import subprocess
import sys
import xml.etree.ElementTree as ET
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from problems import problem

from kolmo import case, noise
from kolmo.cli import main
from kolmo.errors import InputError
from kolmo.fields import chosen_layers, fields_of, write_fields
from kolmo.pde import BackwardKolmogorov

#: meshio leaves files that it has read to the garbage collector
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
CELLS = {1: 32, 2: 12, 3: 6}

#: reads what dolfinx writes: points, times, and fields by name and step
READ = """
import sys, h5py, numpy as np, xml.etree.ElementTree as ET
root = ET.parse(sys.argv[1]).getroot()
with h5py.File(sys.argv[1][:-4] + "h5") as file:
    def values(parent):
        return file[parent.find(".//DataItem").text.partition(":")[2]][:]
    data = {"points": values(root.find(".//Geometry"))}
    for series in root.findall(".//Grid[@CollectionType='Temporal']"):
        data["times"] = [float(t.get("Value")) for t in series.findall(".//Time")]
        for step, attribute in enumerate(series.findall(".//Attribute")):
            data[attribute.get("Name") + f"_{step}"] = values(attribute)
np.savez(sys.argv[2], **data)
"""


def equation_of(dim: int, backend: str = "box") -> BackwardKolmogorov:
    return BackwardKolmogorov(problem(dim), cells=CELLS[dim], half_width=3.0, backend=backend, limit=False)


@pytest.mark.parametrize("dim", [1, 2, 3])
def test_vtu_holds_the_solution(dim: int, tmp_path: Path) -> None:
    """Points, cells and every value are read back bit by bit; the collection names the times."""
    meshio = pytest.importorskip("meshio", reason="meshio is not installed")
    equation = equation_of(dim)
    files = write_fields(equation, tmp_path, [0, 4, 10])
    entries = ET.parse(files[0]).getroot().findall("./Collection/DataSet")
    assert [float(e.get("timestep", "")) for e in entries] == [0.0, 0.4, 1.0]
    assert [e.get("file") for e in entries] == [f.name for f in files[1:]]
    assert sorted(f.name for f in tmp_path.iterdir()) == sorted(f.name for f in files)
    solution = equation.solve()
    for layer, path in zip((0, 4, 10), files[1:], strict=True):
        found = meshio.read(path)
        assert np.array_equal(found.points[:, :dim], solution.points)
        assert not found.points[:, dim:].any()
        assert np.array_equal(found.cells[0].data, equation.space.mesh.cells)
        for label in (0, 1):
            assert np.array_equal(found.point_data[f"u{label}"], solution.value[layer, :, label])
            density = solution.density[layer, :, label] / solution.lumped_mass
            assert np.array_equal(found.point_data[f"rho{label}"], density)
        drift = equation.coefficients().drift[min(layer, 9)].detach().numpy()
        assert np.array_equal(found.point_data["drift"][:, :dim], drift)


@pytest.mark.parametrize("backend", ["box", "skfem"])
def test_integrals(backend: str) -> None:
    """sum_y <u_y, rho_y> = J at every time; rho integrates to the classes' shares, 1/2 each."""
    equation = equation_of(2, backend)
    times, fields = fields_of(equation, range(11))
    assert np.allclose(times, np.arange(11) / 10)
    mass, J = equation.space.lumped_mass, float(equation.expected_loss().detach())
    for nodal in fields:
        total = sum(float(mass @ (nodal[f"u{y}"] * nodal[f"rho{y}"])) for y in (0, 1))
        assert total == pytest.approx(J, rel=1e-12)
        assert [float(mass @ nodal[f"rho{y}"]) for y in (0, 1)] == pytest.approx([0.5, 0.5], rel=1e-12)


@pytest.mark.parametrize("keep", [0.9, 0.99])
def test_the_penalty_is_what_noise_adds(keep: float) -> None:
    """Its integral is J - J_0 to first order in the noise; h times the sum over layers leaves O(h) of it."""
    with_noise, without = (
        BackwardKolmogorov(problem(2, model), cells=32, half_width=3.0, order=1, limit=False)
        for model in (noise.BernoulliDropout(keep), noise.NoNoise())
    )
    _, fields = fields_of(with_noise, range(10))
    total = 0.1 * sum(float(with_noise.space.lumped_mass @ nodal["penalty"]) for nodal in fields)
    added = float((with_noise.expected_loss() - without.expected_loss()).detach())
    assert total == pytest.approx(added, rel=0.03)


def test_xdmf_from_dolfinx(dolfinx: None, tmp_path: Path) -> None:
    """The values of the same nodes as on the box's mesh, found by their coordinates; vectors too."""
    if find_spec("h5py") is None:
        pytest.skip("h5py is not installed")
    equation = equation_of(2, "dolfinx")
    files = write_fields(equation, tmp_path, [0, 10])
    assert [f.name for f in files] == ["fields.xdmf", "fields.h5"]
    times, fields = fields_of(equation, [0, 10])
    points = equation.space.coefficient_points
    # by another process: the HDF5 of h5py and that of dolfinx do not share one
    subprocess.run([sys.executable, "-c", READ, files[0], tmp_path / "read.npz"], check=True)
    with np.load(tmp_path / "read.npz") as found:
        ours, theirs = (np.lexsort(p[:, :2].T.round(9)) for p in (points, found["points"]))
        assert np.array_equal(points[ours], found["points"][theirs, :2])
        assert np.array_equal(found["times"], times)
        for step, nodal in enumerate(fields):
            for name, values in nodal.items():
                read = found[f"{name}_{step}"][theirs]
                read = read[:, :2] if values.ndim == 2 else read.ravel()
                # dolfinx evaluates its basis at the vertices, to rounding
                assert np.abs(read - values[ours]).max() <= 1e-14 * np.abs(values).max(), name


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`kolmo fields CASE --times` writes the nearest ends of layers on a resolved mesh; --json says which."""
    pytest.importorskip("meshio", reason="meshio is not installed")
    case.save(problem(2), tmp_path / "case")
    arguments = ["fields", str(tmp_path / "case"), "--out", str(tmp_path / "out"), "--cells", "48"]
    assert main([*arguments, "--times", "0,0.52,1", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["times"] == [0.0, 0.5, 1.0] and told["cells"] == 48
    assert [Path(f).name for f in told["files"]] == ["fields.pvd", *(f"fields_000{k}.vtu" for k in range(3))]
    assert main(arguments) == 2
    assert "not empty" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("times", "words"), [("0,x", "'x' is not a number"), ("1.5", "not between 0 and T = 1")]
)
def test_bad_times(times: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        chosen_layers(0.1, 10, times)
