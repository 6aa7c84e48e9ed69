"""The package as one tree, for tools that read sources and know nothing of pyproject.toml's package-dir."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[2]
#: folders beside kolmo/ that are its subpackages
SUBPACKAGES = ("pde", "control", "experiments", "benchmarks")


def on_startup(command: str, dirty: bool) -> None:
    """Links in build/source/kolmo to everything that kolmo has."""
    tree = ROOT / "build" / "source" / "kolmo"
    tree.mkdir(parents=True, exist_ok=True)
    wanted = {
        p.name: p for p in (ROOT / "kolmo").iterdir() if p.suffix == ".py" or (p / "__init__.py").exists()
    }
    wanted |= {name: ROOT / name for name in SUBPACKAGES}
    for link in tree.iterdir():
        if link.name not in wanted:
            link.unlink()
    for name, path in wanted.items():
        if not (tree / name).is_symlink():
            (tree / name).symlink_to(path)
