"""The notebooks: committed without outputs, exercises with solutions, and they run."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

NOTEBOOKS = sorted((Path(__file__).parents[1] / "docs" / "notebooks").glob("*.ipynb"))


def cells(path: Path) -> list[dict[str, Any]]:
    return json.loads(path.read_text(encoding="utf-8"))["cells"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_form(path: Path) -> None:
    """No outputs and fixed ids; it says what one learns and sums up; every exercise has a folded solution."""
    found = cells(path)
    assert [c["id"] for c in found] == [f"cell-{k + 1:02d}" for k in range(len(found))]
    code = [c for c in found if c["cell_type"] == "code"]
    assert all(c["outputs"] == [] and c["execution_count"] is None for c in code)
    first, last = ("".join(found[k]["source"]) for k in (0, -1))
    assert first.startswith("# ") and "What you learn:" in first and last.startswith("## Summary")
    exercises = [k for k, c in enumerate(found) if "".join(c["source"]).startswith("## Exercise")]
    assert len(exercises) == 2
    for k in exercises:
        solution = found[k + 1]["metadata"]
        assert solution == {"jupyter": {"source_hidden": True}, "tags": ["solution"]}
    assert any("assert " in "".join(c["source"]) for c in code)


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From top to bottom in a fresh kernel, solutions too; their assertions hold and figures come out."""
    for module in ("nbclient", "ipykernel"):
        if find_spec(module) is None:
            pytest.skip(f"{module} is not installed: pip install 'kolmo[notebooks]'")
    import nbformat
    from nbclient import NotebookClient

    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    notebook = nbformat.read(path, as_version=4)
    resources = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, timeout=600, kernel_name="python3", resources=resources).execute()
    outputs = [o for c in notebook.cells if c.cell_type == "code" for o in c.outputs]
    figures = [o for o in outputs if "image/png" in o.get("data", {})]
    assert figures
