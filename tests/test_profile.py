"""`--profile`: sections, self-times that add up, nothing where it is off."""

from __future__ import annotations

import importlib
import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from hostile import small_case
from problems import problem
from test_cli import TINY

from kolmo import cli, profile
from kolmo.parser import build
from kolmo.pde import BackwardKolmogorov, Implicit
from kolmo.profile import profiling, section, timed


def table(text: str) -> dict[str, float]:
    """Seconds by section, from a printed table."""
    lines = text.splitlines()
    start = next(k for k, line in enumerate(lines) if line.startswith("section"))
    return {line[:20].strip(): float(line[20:].split()[0]) for line in lines[start + 1 :]}


def run(*arguments: Any) -> int:
    return cli.main([str(a) for a in arguments])


def adds_up(found: dict[str, float]) -> None:
    """Sections and 'other' are the total, to the printed digits."""
    parts = [seconds for name, seconds in found.items() if name != "total"]
    assert sum(parts) == pytest.approx(found["total"], abs=1e-3 * len(found))
    assert all(seconds >= 0 for seconds in parts)


# ------------------------------------------------------------------ the registry


def test_nested_sections_have_their_own_time() -> None:
    """The outer one's is what the inner one does not take; a section that raises is counted too."""
    with profiling() as recorder:
        start = time.perf_counter()
        with section("outer"):
            time.sleep(0.02)
            for _ in range(2):
                with section("inner"):
                    time.sleep(0.03)
        spent = time.perf_counter() - start
        with pytest.raises(KeyError), section("raises"):
            raise KeyError
        time.sleep(0.01)
    found = recorder.sections
    assert found["outer"].seconds >= 0.02 and found["outer"].calls == 1
    assert found["inner"].seconds >= 0.06 and found["inner"].calls == 2
    assert found["outer"].seconds + found["inner"].seconds == pytest.approx(spent, rel=0.1)
    assert found["raises"].calls == 1
    rows = recorder.table()
    assert {row[0] for row in rows[:3]} == {"inner", "outer", "raises"}
    assert [row[0] for row in rows[3:]] == ["other", "total"]
    assert sum(row[1] for row in rows[:-1]) == pytest.approx(rows[-1][1])
    assert sum(row[2] for row in rows[:-1]) == pytest.approx(1) and rows[-1][2] == 1
    assert rows[-2][1] >= 0.01


def test_a_decorated_function_is_a_section() -> None:
    @timed("double")
    def double(x: int, *, more: int = 0) -> int:
        """Twice."""
        return 2 * x + more

    assert double.__doc__ == "Twice." and double(2) == 4
    with profiling() as recorder:
        assert double(2, more=1) == 5
    assert recorder.sections["double"].calls == 1


def test_other_threads_are_not_added() -> None:
    """Their seconds are those that the profile's thread waits."""

    def work() -> None:
        with section("inside"):
            time.sleep(0.02)

    with profiling() as recorder, section("waiting"):
        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert list(recorder.sections) == ["waiting"] and recorder.sections["waiting"].seconds >= 0.02


def test_off_it_costs_less_than_a_microsecond() -> None:
    def seconds(count: int = 20_000) -> float:
        start = time.perf_counter()
        for _ in range(count):
            with section("nothing"):
                pass
        return (time.perf_counter() - start) / count

    assert section("a") is section("b")
    assert min(seconds() for _ in range(5)) < 1e-6


def test_what_is_wrapped_from_outside_is_there() -> None:
    for module, kind, functions in profile.OUTSIDE.values():
        owner = importlib.import_module(module)
        for function in functions:
            assert callable(vars(owner if kind is None else getattr(owner, kind))[function])


# ------------------------------------------------------------------ the equation


@pytest.mark.parametrize("budget", [None, 60_000])
def test_sections_of_the_equation(budget: float | None) -> None:
    """Every part of J and its gradient on this thread, the network's parts layer by layer."""
    equation = BackwardKolmogorov(
        problem(2, depth=4), cells=20, half_width=3.0, backend="box", propagator=Implicit(2), budget=budget
    )
    with profiling() as recorder:
        loss = equation.expected_loss()
        torch.autograd.grad(loss, list(equation.problem.network.parameters()))
    calls = {name: found.calls for name, found in recorder.sections.items()}
    assert calls["march"] == calls["adjoint march"] == 1
    assert calls["coefficients"] == calls["assembly"] == calls["factorisation"] == calls["contraction"] == 4
    assert calls["network backward"] == 4 + 1  # every layer, and what is left of them at the end
    rows = {name: seconds for name, seconds, _, _ in recorder.table()}
    assert rows["network backward"] > 0 and rows["other"] < 0.5 * rows["total"]


# ------------------------------------------------------------------ commands


def test_evaluate_lists_where_its_time_went(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On standard error: --json stays one object; and nothing is left switched on."""
    folder = small_case(tmp_path / "case")
    arguments = ("evaluate", folder, "--estimator", "pde,chain,exact", "--paths", 8000, "--json")
    assert run(*arguments, "--gradient", "--out", tmp_path / "g", "--profile") == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["verdict"] == "agree"
    found = table(printed.err)
    adds_up(found)
    wanted = {"coefficients", "assembly", "march", "adjoint march", "contraction", "network backward"}
    assert wanted | {"chain", "exact recursion", "box", "residuals", "imports", "other"} < set(found)
    assert run(*arguments) == 0
    assert "seconds" not in capsys.readouterr().err
    for module, kind, functions in profile.OUTSIDE.values():
        owner = importlib.import_module(module)
        for function in functions:
            plain = vars(owner if kind is None else getattr(owner, kind))[function]
            assert not hasattr(plain, "__wrapped__") or plain.__wrapped__.__name__ != function


@pytest.mark.slow
def test_training_lists_where_its_time_went(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "tiny.toml"
    config.write_text(TINY)
    assert run("reproduce", "--config", config, "--out", tmp_path / "out", "--json", "--profile") in (0, 1)
    printed = capsys.readouterr()
    assert "claims" in json.loads(printed.out)
    found = table(printed.err)
    adds_up(found)
    wanted = {"coefficients", "assembly", "march", "adjoint march", "contraction", "network backward"}
    assert wanted | {"chain", "stochastic training", "writing"} < set(found)


def test_a_refusal_is_profiled_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("evaluate", "/no/such/case", "--profile") == 2
    printed = capsys.readouterr().err
    assert printed.startswith("section") and printed.splitlines()[-1].startswith("kolmo: ")


def test_every_command_has_the_flag() -> None:
    for command in ("reproduce", "evaluate", "compare", "experiment", "verify", "bench", "doctor"):
        words = [command, "case"] if command in ("evaluate", "compare", "experiment") else [command]
        parser = build()
        assert parser.parse_args([*words, "--profile"]).profile is True
        assert parser.parse_args(words).profile is False


def test_doctor_is_profiled_without_imports(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("doctor", "--json", "--profile") == 0
    printed = capsys.readouterr()
    json.loads(printed.out)
    assert set(table(printed.err)) == {"other", "total"}
