"""`kolmo explore` without a browser: what is drawn, the worker, who is let in."""

from __future__ import annotations

import asyncio
import dataclasses
import http.client
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

from kolmo.cli import main
from kolmo.errors import InputError
from kolmo.explicit import explicit_penalty
from kolmo.explore import pixels, work
from kolmo.explore.model import TIMES, Lesson, Step, StoppedError, train
from kolmo.explore.settings import DATA, NOISES, RANGES, Settings
from kolmo.explore.work import News, Worker
from kolmo.problem import Problem

SMALL = Settings(points=40, depth=12, width=4, cells=32, iterations=8)


@pytest.fixture(scope="module")
def lesson() -> Lesson:
    return train(SMALL)


def cell_weights(axis: np.ndarray) -> np.ndarray:
    """The area that belongs to each node of a uniform grid, (n, n)."""
    line = np.full(len(axis), axis[1] - axis[0])
    line[[0, -1]] /= 2
    return np.outer(line, line)


# ------------------------------------------------------------------ what is drawn


def test_frames_are_at_most_eleven_times_from_the_data_to_the_loss(lesson: Lesson) -> None:
    found = lesson.at(0.3)
    assert len(found.times) == TIMES and found.layers[0] == 0 and found.layers[-1] == SMALL.depth
    np.testing.assert_allclose(found.times, found.layers / SMALL.depth, rtol=1e-14)
    assert np.all(np.diff(found.layers) >= 1)
    assert found.paths.shape[0] == found.noiseless.shape[0] == SMALL.depth + 1


def test_densities_keep_their_mass(lesson: Lesson) -> None:
    found = lesson.at(0.3)
    mass = np.einsum("kijc,ij->kc", found.density, cell_weights(found.axis))
    # half of the points are of either class; means over 2 cells lose what is at the edge of the box
    np.testing.assert_allclose(mass, 0.5, atol=2e-3)


def test_the_value_function_ends_in_the_loss_and_keeps_to_its_range(lesson: Lesson) -> None:
    found = lesson.at(0.3)
    nodes = np.stack(np.meshgrid(found.axis, found.axis, indexing="ij"), axis=-1)
    ends = np.stack([lesson.problem.loss(torch.from_numpy(nodes), y).numpy() for y in (0, 1)], axis=-1)
    np.testing.assert_allclose(found.value[-1], ends, rtol=1e-12)
    assert found.value.min() >= ends.min() and found.value.max() <= ends.max()


@pytest.mark.parametrize("name", NOISES)
def test_the_chains_dots_are_where_the_density_is(lesson: Lesson, name: str) -> None:
    other = dataclasses.replace(lesson, settings=dataclasses.replace(SMALL, noise=name), _known={})
    found, labels = other.at(0.3), lesson.problem.data.labels.numpy()
    x = np.stack(np.meshgrid(found.axis, found.axis, indexing="ij"), axis=-1)
    for label in (0, 1):
        masses = found.density[..., label] * cell_weights(found.axis)
        means = np.einsum("kij,ijd->kd", masses, x) / masses.sum(axis=(1, 2))[:, None]
        # copies of the data are independent: their means' spread is the standard error
        copies = found.paths[found.layers][:, :, labels == label].mean(axis=2)
        error = copies.std(axis=1, ddof=1) / np.sqrt(copies.shape[1])
        # 4 standard errors, plus what a mesh of this width and steps of this size are off by (h^2)
        allowed = 4 * error + (found.axis[1] - found.axis[0]) ** 2 / 4 + (1 / SMALL.depth) ** 2
        assert np.all(np.abs(means - copies.mean(axis=1)) <= allowed)


def test_without_noise_the_chain_is_the_noiseless_network(lesson: Lesson) -> None:
    found = lesson.at(0.0)
    np.testing.assert_allclose(found.paths, np.broadcast_to(found.noiseless[:, None], found.paths.shape))
    assert found.chain.value == pytest.approx(found.loss, rel=1e-12) and found.regulariser == 0


def test_noise_costs_and_the_equation_agrees_with_the_chain(lesson: Lesson) -> None:
    found = [lesson.at(rate) for rate in (0.0, 0.15, 0.3)]
    assert found[0].pde < found[1].pde < found[2].pde
    assert all(one.agrees for one in found)


def test_the_penalty_on_the_plane_is_r(lesson: Lesson) -> None:
    found = lesson.at(0.3)
    data, network = lesson.problem.data, lesson.problem.network
    problem = Problem(data, network, SMALL.noise_at(0.3), lesson.problem.loss)
    assert found.regulariser == pytest.approx(float(explicit_penalty(problem).detach()), rel=1e-12)
    on_plane = float((found.penalty * cell_weights(found.axis)).sum())
    assert on_plane == pytest.approx(found.regulariser, rel=1e-3)  # less what means lose at the edge


def test_the_decision_ends_where_the_classifier_has_it(lesson: Lesson) -> None:
    found = lesson.at(0.3)
    (line,) = found.boundary(len(found.times) - 1)
    np.testing.assert_allclose(line[:, 0], 0.0, atol=1e-9)  # the sign of x_1
    for line in found.boundary(0):
        u = [pixels_at(found.axis, found.value[0, :, :, label], line) for label in (0, 1)]
        np.testing.assert_allclose(u[0], u[1], rtol=1e-6)


def pixels_at(axis: np.ndarray, nodal: np.ndarray, points: np.ndarray) -> np.ndarray:
    from scipy.interpolate import RegularGridInterpolator

    return RegularGridInterpolator((axis, axis), nodal)(points)


def test_pixels_give_back_what_is_linear() -> None:
    axis = np.linspace(-1, 1, 9)
    nodal = 2 + 3 * axis[:, None] - axis[None, :]
    shown = pixels.shown(axis, nodal, 0.9)
    x = 0.9 * (2 * (np.arange(pixels.PIXELS) + 0.5) / pixels.PIXELS - 1)
    np.testing.assert_allclose(shown, 2 + 3 * x[:, None] - x[None, :], atol=1e-12)


def test_each_class_is_followed_by_one_point(lesson: Lesson) -> None:
    assert [int(lesson.problem.data.labels[i]) for i in lesson.undecided()] == [0, 1]


def test_a_rate_is_solved_once(lesson: Lesson) -> None:
    assert lesson.at(0.15) is lesson.at(0.15)
    assert list(lesson.known) == sorted(lesson.known)


# ------------------------------------------------------------------ settings


@pytest.mark.parametrize(
    ("name", "value"),
    [(name, value) for name, (least, most) in RANGES.items() for value in (least - 1, most + 1, None, "3")]
    + [("depth", 4.5), ("rate", float("nan")), ("seed", True), ("data", "moon"), ("noise", ["dropout"])],
    ids=str,
)
def test_settings_out_of_range_are_refused_in_one_line(name: str, value: Any) -> None:
    with pytest.raises(InputError, match=f"^{name}: ") as caught:
        Settings(**{name: value})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("data", DATA)
def test_every_choice_makes_a_problem(data: str) -> None:
    for noise in NOISES:
        problem = Settings(data=data, noise=noise).problem()
        assert len(problem.data) == Settings().points and problem.network.depth == Settings().depth


# ------------------------------------------------------------------ training


def test_training_reports_every_step_and_can_be_stopped() -> None:
    steps: list[Step] = []
    with pytest.raises(StoppedError):
        train(SMALL, steps.append, lambda: len(steps) == 3)
    assert [step.number for step in steps] == [1, 2, 3]
    assert steps[0].objective > steps[1].objective > steps[2].objective


class Told:
    """What a worker says, in order."""

    def __init__(self) -> None:
        self.steps: list[Step] = []
        self.lessons: list[Lesson] = []
        self.rates: list[float] = []
        self.ends: list[tuple[str, bool]] = []
        self.over, self.first = threading.Event(), threading.Event()
        self.news = News(self._step, self._finished, self._looked, self._ended)

    def _step(self, step: Step) -> None:
        self.steps.append(step)
        self.first.set()

    def _finished(self, lesson: Lesson) -> None:
        self.lessons.append(lesson)
        self.over.set()

    def _looked(self, lesson: Lesson, found: Any) -> None:
        self.rates.append(found.rate)

    def _ended(self, reason: str, error: bool) -> None:
        self.ends.append((reason, error))
        self.over.set()


def call(function: Callable[[], None]) -> None:
    function()


def test_a_worker_trains_one_network_at_a_time() -> None:
    told = Told()
    worker = Worker(call, told.news)
    assert worker.start(dataclasses.replace(SMALL, iterations=3)) and not worker.start(SMALL)
    assert told.over.wait(60)
    assert len(told.lessons) == 1 and [step.number for step in told.steps] == [1, 2, 3] and not worker.busy
    worker.close()
    assert not worker.start(SMALL)


def test_a_stopped_worker_says_so_and_goes_on() -> None:
    told = Told()
    worker = Worker(call, told.news)
    worker.start(dataclasses.replace(SMALL, iterations=200))
    assert told.first.wait(60)
    worker.stop()
    assert told.over.wait(60)
    assert not told.lessons and told.ends == [("Stopped. What is shown is the last result.", False)]
    told.over.clear()
    assert worker.start(dataclasses.replace(SMALL, iterations=1)) and told.over.wait(60)
    assert len(told.lessons) == 1
    worker.close()


def test_a_refused_training_is_told_with_its_reason() -> None:
    told = Told()
    worker = Worker(call, told.news)
    # four layers for four clusters: their weights become too large for an explicit step
    worker.start(Settings(data="xor", points=20, depth=4, cells=16, iterations=10, rate=0.7))
    assert told.over.wait(60)
    ((reason, error),) = told.ends
    assert error and "\n" not in reason and "; take " in reason
    worker.close()


# ------------------------------------------------------------------ who is let in


@pytest.fixture(scope="module")
def server() -> Iterator[Any]:
    pytest.importorskip("panel", reason="kolmo explore needs panel: pip install 'kolmo[explore]'")
    from kolmo.explore.server import Server

    made: list[Any] = []
    ready = threading.Event()

    def serve() -> None:
        asyncio.set_event_loop(asyncio.new_event_loop())
        made.append(Server())
        made[0].io_loop.add_callback(ready.set)
        made[0].io_loop.start()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    assert ready.wait(30)
    yield made[0]

    def stop() -> None:
        made[0].stop()
        made[0].io_loop.stop()

    made[0].io_loop.add_callback(stop)
    thread.join(10)


def answer(server: Any, path: str, **headers: str) -> tuple[int, str]:
    """Status and text of a request to the server's port on this machine."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
    try:
        connection.request("GET", path, headers={"Host": f"127.0.0.1:{server.port}", **headers})
        response = connection.getresponse()
        return response.status, response.read().decode(errors="replace")
    finally:
        connection.close()


STATIC = "static/js/bokeh.min.js"
SOCKET = {"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Version": "13"}


def test_the_token_opens_the_page_and_nothing_comes_from_elsewhere(server: Any) -> None:
    status, text = answer(server, f"/{server.token}/")
    assert status == 200 and "bokeh.min.js" in text
    assert 'src="http' not in text and 'href="http' not in text and "cdn." not in text


@pytest.mark.parametrize("path", ["favicon.ico", STATIC], ids=["icon", "script"])
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_the_token_opens_what_the_page_loads(server: Any, host: str, path: str) -> None:
    status, text = answer(server, f"/{server.token}/{path}", Host=f"{host}:{server.port}")
    assert status == 200 and text


@pytest.mark.parametrize("path", ["/", f"/{STATIC}", "/ws", "/wrong/", "/wrong/ws", "//", "/%00/"], ids=str)
def test_without_the_token_everything_is_refused(server: Any, path: str) -> None:
    status, text = answer(server, path)
    assert status == 403 and "token" in text and server.token not in text
    assert answer(server, path, **SOCKET, **{"Sec-WebSocket-Key": "a2VpbiBTY2hsdWVzc2Vs"})[0] == 403


@pytest.mark.parametrize(
    "host", ["example.org", "example.org:{port}", "127.0.0.1", "localhost:1", "127.0.0.1.nip.io:{port}"]
)
def test_other_hosts_are_refused_with_the_token_too(server: Any, host: str) -> None:
    assert answer(server, f"/{server.token}/", Host=host.format(port=server.port))[0] == 403


def test_a_socket_of_another_page_is_refused(server: Any) -> None:
    headers = {**SOCKET, "Sec-WebSocket-Key": "a2VpbiBTY2hsdWVzc2Vs", "Origin": "http://example.org"}
    assert answer(server, f"/{server.token}/ws", **headers)[0] == 403


def test_only_the_loopback_address_is_listened_on(server: Any) -> None:
    # another address of the loopback network: a server bound to all of them would answer
    with pytest.raises(ConnectionRefusedError):
        http.client.HTTPConnection("127.0.0.2", server.port, timeout=5).connect()


def test_tokens_are_long_and_never_the_same(server: Any) -> None:
    from kolmo.explore.server import Server

    async def make() -> Any:
        other = Server()
        other.stop()
        return other

    other = asyncio.run(make())
    assert len(server.token) >= 32 and other.token != server.token and other.port != server.port


@pytest.mark.parametrize("port", [-1, 65536])
def test_ports_out_of_range_are_refused(server: Any, port: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explore", "--no-browser", "--port", str(port)]) == 2
    assert capsys.readouterr().err == f"kolmo: --port: {port} is not between 0 and 65535\n"


def test_a_port_in_use_is_refused(server: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explore", "--no-browser", "--port", str(server.port)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"kolmo: --port: {server.port} cannot be had: ") and error.count("\n") == 1


def test_missing_libraries_are_named_with_the_remedy(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("kolmo.explore.command.find_spec", lambda name: None)
    assert main(["explore"]) == 2
    assert capsys.readouterr().err == "kolmo: explore: panel is not installed; pip install 'kolmo[explore]'\n"


def test_threads_come_to_their_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """A training stops after its present step; what does not stop is said."""
    monkeypatch.setattr(work, "_threads", [])
    monkeypatch.setattr(work, "_ending", threading.Event())
    told = Told()
    worker = Worker(call, told.news)
    assert worker.start(dataclasses.replace(SMALL, iterations=200)) and told.first.wait(60)
    assert work.end(60.0) and not worker.busy and not told.lessons
    release = threading.Event()
    work.start(release.wait)
    assert not work.end(0.05)
    release.set()
    assert work.end(60.0)


@pytest.mark.slow
@pytest.mark.parametrize("delay", [0.0, 1.0, 3.0])
def test_ctrl_c_while_something_is_computed(delay: float) -> None:
    """The interpreter is not aborted by a thread of its own."""
    command = [sys.executable, "-m", "kolmo.cli", "explore", "--no-browser"]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        text=True,
        # shells let what they run in the background ignore Ctrl-C, and it would inherit that
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout is not None and process.stdout.readline().startswith("kolmo: the page is at")
    time.sleep(delay)
    process.send_signal(signal.SIGINT)
    rest, _ = process.communicate(timeout=60)
    assert (process.returncode, rest) == (0, "kolmo: the page is closed\n")
