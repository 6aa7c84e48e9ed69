"""Shared fixtures: one thread per process, finite-element backends, a reproducible hypothesis profile."""

from __future__ import annotations

import os

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"  # before numpy and torch load their libraries

import logging

import pytest
import torch
from hypothesis import HealthCheck, settings

from kolmo.pde import dolfinx_compat

torch.set_num_threads(1)

for _name in ("FFC", "FFCx", "ffcx", "UFL", "ufl", "distutils", "cffi", "root"):
    logging.getLogger(_name).setLevel(logging.WARNING)

settings.register_profile(
    "fast", deadline=None, derandomize=True, max_examples=25, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fast"))


#: warnings of libraries about themselves, on their first use: message, category, module
THEIRS = (
    r".*torch\.jit.*:DeprecationWarning",  # torch's forward-mode differentiation warns of torch's scripting
    r".*torch\.jit.*:FutureWarning",  # the same from Python 3.14 on
    r":DeprecationWarning:ffcx",  # FFCx, cffi and setuptools while a form is compiled, never from its cache
    r":DeprecationWarning:(cffi|setuptools|distutils|_distutils_hack|pkg_resources)",
    r"unclosed file.*libffcx:ResourceWarning",
)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "slow: takes more than a few seconds")
    for warning in THEIRS:
        config.addinivalue_line("filterwarnings", f"ignore:{warning}")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks the tests that run dolfinx: those with its fixture, or with it as their backend."""
    for item in items:
        callspec = getattr(item, "callspec", None)
        backend = callspec.params.get("backend") if callspec is not None else None
        if backend == "dolfinx" or "dolfinx" in getattr(item, "fixturenames", ()):
            item.add_marker("needs_dolfinx")


@pytest.fixture(params=["skfem", "dolfinx"], scope="session")
def backend(request: pytest.FixtureRequest) -> str:
    """The name of a finite-element backend; dolfinx is skipped, visibly, where it is absent."""
    if request.param == "dolfinx":
        need_dolfinx()
    return request.param


@pytest.fixture(scope="session")
def dolfinx() -> None:
    """Skips, visibly, where dolfinx is absent."""
    need_dolfinx()


def need_dolfinx() -> None:
    reason = dolfinx_compat.unavailable()
    if reason is not None:
        pytest.skip(f"dolfinx: {reason}")
