"""Configurations and problem.toml with keys, values and bytes that are wrong."""

from __future__ import annotations

from typing import Any

from fuzzing import damage
from hypothesis import strategies as st

LITERALS = [
    "0", "1", "2", "-1", "3", "40", "4096", "10000", "1000000000", "9223372036854775807",
    "-9223372036854775808", "99999999999999999999", "0x" + "F" * 5000, "1e999", "nan", "-nan", "inf",
    "-inf", "0.0", "-0.0", "0.5", "1.5", "1e-320", "1e308", "true", "false", '""', '"x"', '"../x"',
    '"/dev/zero"', '"\\u0000"', '"a\\nb"', "'moons'", '"moons"', '"tanh"', '"relu"', '"interval"',
    '"spirals"', "[]", "[1]", "[16, 32]", "[5000]", "[0.5, 0.5, 0.5]", '["a"]', "[[1]]", "[true]", "{}",
    "{last = 0.5}", "{first = 0.9, last = 0.5}", "{last = nan}", "{kind = 1}", "1979-05-27", "07:32:00",
    "1979-05-27T07:32:00Z", "0b1", "1_0", "[" * 50 + "]" * 50, '"""\na\n"""', "'points.csv'",
    '"' + "x" * 5000 + '"', '"gaussian_injection"', '"stochastic_depth"', '"shake_shake"',
    '[{kind = "shake_shake"}, {kind = "gaussian_injection", std = 0.1}]',
    '[{kind = "composition", parts = []}]',
]  # fmt: skip

CONFIG: dict[str, dict[str, str]] = {
    "data": {"kind": '"moons"', "train": "20", "test": "40", "noise": "0.3", "file": '""', "test_file": '""'},
    "network": {"depth": "6", "width": "6", "horizon": "1.0", "activation": '"tanh"'},
    "noise": {"kind": '"bernoulli_dropout"', "keep": "0.8"},
    "loss": {"kind": '"logistic"', "scale": "4.0"},
    "penalty": {"weight_decay": "0.01"},
    "control": {"cells": "[16, 32]", "iterations": "[6, 4]", "mesh_scale": "1.0", "order": "2",
                "tolerance": "1e-5", "radius": "5.0"},
    "stochastic": {"steps": "20", "paths": "2", "learning_rate": "0.02"},
    "noiseless": {"steps": "20", "learning_rate": "0.02"},
    "check": {"paths": "4000", "gradient_paths": "4000", "sde_paths": "4000", "snapshots": "2",
              "excess": "0.1"},
    "run": {"seed": "0", "backend": '"skfem"', "device": '"cpu"'},
}  # fmt: skip

PROBLEM: dict[str, dict[str, str]] = {
    "network": {"weights": '"weights.npz"', "activation": '"tanh"', "horizon": "1.0"},
    "noise": {"kind": '"bernoulli_dropout"', "keep": "0.8"},
    "loss": {"kind": '"logistic"', "scale": "4.0"},
    "data": {"points": '"points.csv"'},
}

NAMES = [
    "keep", "std", "half_width", "scaling", "per", "parts", "kind", "widht", "noise", '""', '"a b"', "a.b",
    "file", '"\\u001b"', "x" * 300,
]  # fmt: skip


NOISES = [
    'kind = "none"', 'kind = "hidden_dropout"\nkeep = 0.7', 'kind = "shake_shake"',
    'kind = "stochastic_depth"\nkeep = {last = 0.5}\nscaling = "test_time"\nper = "batch"',
    'kind = "gaussian_dropout"\nstd = [0.1, 0.2, 0.3]',
    'kind = "uniform_noise"\nhalf_width = 0.5', 'kind = "dropconnect"\nkeep = 0.5',
    'kind = "composition"\nparts = [{kind = "shake_shake"}, {kind = "gaussian_injection", std = 0.1}]',
]  # fmt: skip


def toml(draw: Any, tables: dict[str, dict[str, str]]) -> bytes:
    """The tables with some keys changed, added, left out or twice, and sometimes with bytes damaged."""
    lines: list[tuple[str, list[str]]] = [
        (t, [f"{k} = {v}" for k, v in e.items()]) for t, e in tables.items()
    ]
    for _ in range(draw(st.integers(0, 3))):
        table, entries = draw(st.sampled_from(lines))
        if table == "noise" and draw(st.booleans()):
            entries[:] = draw(st.sampled_from(NOISES)).split("\n")
        known = [entry.split(" = ")[0] for entry in entries]
        key = draw(st.sampled_from(known if known and draw(st.integers(0, 4)) else NAMES))
        value = draw(st.sampled_from(LITERALS))
        kind = draw(st.sampled_from(["change", "change", "change", "add", "drop", "table"]))
        if kind in ("change", "drop"):
            entries[:] = [entry for entry in entries if not entry.startswith(f"{key} =")]
        if kind in ("change", "add"):
            entries.append(f"{key} = {value}")
        if kind == "table":
            lines[lines.index((table, entries))] = (draw(st.sampled_from(NAMES)), entries)
    text = "\n".join(f"[{table}]\n" + "\n".join(entries) for table, entries in lines)
    content = text.encode()
    return content if draw(st.integers(0, 2)) else damage(draw, content)
