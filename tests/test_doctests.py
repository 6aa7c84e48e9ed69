"""The examples in docstrings run and print what they say."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
from collections.abc import Iterator

import pytest

PACKAGES = ("kolmo", "kolmo.noise", "kolmo.pde", "kolmo.control", "kolmo.experiments", "kolmo.images")


def modules() -> Iterator[str]:
    """Every module of the packages, by name; the folders are mapped, so each package is walked by itself."""
    for package in PACKAGES:
        yield package
        for info in pkgutil.iter_modules(importlib.import_module(package).__path__, package + "."):
            if info.name.rpartition(".")[2] != "__main__":
                yield info.name


@pytest.mark.parametrize("name", sorted(set(modules())))
def test_docstrings(name: str) -> None:
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if (error.name or "kolmo").split(".")[0] == "kolmo":
            raise
        pytest.skip(f"{error.name} is not installed")
    result = doctest.testmod(module, optionflags=doctest.ELLIPSIS)
    assert result.failed == 0


def test_the_package_shows_an_example() -> None:
    """`import kolmo` starts with a worked example, and every public name resolves."""
    import kolmo

    assert len(doctest.DocTestFinder().find(kolmo, "kolmo", module=kolmo)[0].examples) >= 3
    for name in kolmo.__all__:
        assert getattr(kolmo, name) is not None
    with pytest.raises(AttributeError, match="nonsense"):
        _ = kolmo.nonsense
