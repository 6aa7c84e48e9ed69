"""Configurations: complete, checked, round-tripping."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kolmo import config
from kolmo.errors import InputError

BAD = [
    ("[netwrok]\nwidth = 3", "'netwrok'; did you mean 'network'"),
    ("[network]\nwidht = 3", "'widht'; did you mean 'width'"),
    ("[network]\nwidth = 0", "width is 0, expected an integer from 1"),
    ("[network]\nwidth = 2.5", "width is 2.5, expected an integer"),
    ("[network]\ndepth = true", "depth is True, expected an integer"),
    ("[network]\nhorizon = inf", "horizon is inf, expected a positive number"),
    ("[noise]\nkind = 'bernoulli_dropout'\nkeep = 0.0", "noise.keep: 0.0"),
    ("[noise]\nkind = 'bernoulli_dropout'\nkeep = 1.5", "noise.keep: 1.5"),
    ("[noise]\nkind = 'bernouli_dropout'\nkeep = 0.5", "did you mean 'bernoulli_dropout'"),
    ("[noise]\nkind = 'bernoulli_dropout'\nkepe = 0.5", "did you mean 'keep'"),
    ("[loss]\nkind = 'hinge'", "loss.kind: 'hinge'"),
    ("[loss]\nscale = -3.0", "loss.scale: -3.0"),
    ("[loss]\nscales = 3.0", "'scales'; did you mean 'scale'"),
    ("[control]\ncells = [40]\niterations = [5, 5]", "cells has 1 entries and iterations 2"),
    ("[control]\ncells = [1]\niterations = [5]", "cells has 1, expected integers from 2"),
    ("[control]\norder = 3", "order is 3, expected 1 or 2"),
    ("[run]\nseed = -1", "seed is -1, expected an integer from 0"),
    ("network = 3", "network is 3, expected a table"),
    ("[data]\nkind = 'moon'", "did you mean 'moons'"),
    ("not toml at all", "not valid TOML"),
]


@pytest.mark.parametrize(("text", "message"), BAD, ids=[m for _, m in BAD])
def test_bad_settings_are_named(tmp_path: Path, text: str, message: str) -> None:
    """One line that names the key, its value and what was expected."""
    path = tmp_path / "bad.toml"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        config.load(path).datasets()
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", sorted(config.shipped()))
def test_shipped_configurations_round_trip(name: str, tmp_path: Path) -> None:
    """Loading what is dumped gives the same configuration; the default file is the default."""
    loaded = config.load(name)
    path = tmp_path / "again.toml"
    path.write_text(loaded.dumps())
    assert config.load(path) == loaded
    if name == "default":
        defaults = config.Config()
        defaults.data.kind, defaults.data.noise = "moons", 0.3
        assert loaded == defaults


def test_missing_files_are_named(tmp_path: Path) -> None:
    """No such configuration, no such CSV."""
    with pytest.raises(InputError, match="no such file"):
        config.load(tmp_path / "absent.toml")
    path = tmp_path / "c.toml"
    path.write_text("[data]\nfile = 'absent.csv'")
    with pytest.raises(InputError, match=r"absent\.csv"):
        config.load(path).datasets()


def test_csv_paths_are_relative_to_the_configuration(tmp_path: Path) -> None:
    """A folder with both can be moved."""
    (tmp_path / "points.csv").write_text("x1,label\n0.5,1\n-0.5,0\n")
    path = tmp_path / "c.toml"
    path.write_text("[data]\nfile = 'points.csv'")
    train, test = config.load(path).datasets()
    assert len(train) == len(test) == 2


def test_quick_changes_only_sizes() -> None:
    """The same problem, smaller."""
    full, small = config.load("default"), config.quick(config.load("default"))
    assert small.noise == full.noise
    assert small.data == full.data
    assert small.network.depth < full.network.depth


@given(st.dictionaries(st.text(min_size=1, max_size=8), st.integers() | st.text(max_size=5), max_size=4))
def test_any_table_is_taken_or_refused(table: dict[str, object]) -> None:
    """Filling a section raises InputError or nothing."""
    settings = config.NetworkSettings()
    known = {f.name for f in dataclasses.fields(settings)}
    complaint = ""
    try:
        config._fill(settings, table, "test: [network]")
    except InputError as error:
        complaint = str(error)
    assert complaint.startswith("test: [network]") or set(table) <= known
