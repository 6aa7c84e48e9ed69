"""report.html: well-formed, whole without a network, usable by keyboard, on a phone and on paper."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from kolmo import commands, html, plotting, report
from kolmo.config import Config
from kolmo.data import moons, to_csv
from kolmo.experiments.binary_classification import BinaryClassification
from kolmo.experiments.claims import Claim
from kolmo.figures import control_solution, training
from kolmo.runs import versions

missing = html.unavailable()
needs_page = pytest.mark.skipif(missing is not None, reason=f"no page can be written: {missing}")
if missing is None:
    from kolmo.html.fields import fields
    from kolmo.html.page import render
    from kolmo.html.run import page
    from kolmo.html.study import first_sentence, plain

HOSTILE = "<script>alert(1)</script>"
#: elements that have no end
VOID = ("meta", "link", "img", "br", "input")


class Reader(HTMLParser):
    """The elements of a page, its visible text, and what is open that ought to be closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.wrong: list[str] = []
        self.said = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self.said += " " * (tag in ("td", "th"))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.wrong.append(tag)

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("script", "style"):
            self.said += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    def values(self, name: str) -> list[str]:
        """Every value of an attribute, whatever the element."""
        return [a[name] or "" for _, a in self.elements if name in a]


def tiny(file: str = "") -> BinaryClassification:
    """The smallest run that has everything."""
    config = Config()
    config.data.kind, config.data.file = ("", file) if file else ("moons", "")
    config.data.train = config.data.test = 20
    config.network.depth = config.network.width = 4
    config.control.cells, config.control.iterations = [16], [3]
    config.stochastic.steps, config.noiseless.steps = 40, 20
    config.check.paths, config.check.gradient_paths, config.check.snapshots = 1000, 1000, 2
    config.check.sde_paths = 1000
    config.run.device, config.run.seed = "cpu", 5
    return BinaryClassification(config)


def content(run: Any, status: str = "finished", figures: tuple[str, ...] = (), reason: str = "") -> dict:
    """What `kolmo.report` hands to a page."""
    return {
        "status": status, "reason": reason, "figures": list(figures), "seed": run.config.run.seed,
        "versions": versions(), "seconds": {"total": 1.5}, "backend": "box", "device": "cpu",
    }  # fmt: skip


@pytest.fixture(scope="module")
def run() -> BinaryClassification:
    made = tiny()
    made.run()
    return made


@pytest.fixture(scope="module")
def folder(run: BinaryClassification, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with report.html of the tiny run, and one of its pictures."""
    where = tmp_path_factory.mktemp("run")
    drawing = training(run)
    assert drawing is not None
    plotting.save(drawing, where, "training")
    text = render(page(run, run.claims(), where, content(run, figures=("training",))))
    (where / html.NAME).write_text(text, encoding="utf-8")
    return where


@pytest.fixture(scope="module")
def reader(folder: Path) -> Reader:
    return Reader((folder / html.NAME).read_text(encoding="utf-8"))


# ------------------------------------------------------------------ the page of a run


@needs_page
def test_well_formed_and_marked_up(reader: Reader) -> None:
    """What is opened is closed; landmarks, one h1, names that exist, tables and pictures with their texts."""
    assert not reader.wrong and not reader.open
    assert reader.all("html")[0]["lang"] == "en"
    assert {"header", "nav", "main", "footer"} <= {tag for tag, _ in reader.elements}
    assert len(reader.all("h1")) == len(reader.all("main")) == 1
    assert any(a.get("name") == "viewport" for a in reader.all("meta"))
    names = reader.values("id")
    assert len(names) == len(set(names))
    inside = [v[1:] for v in reader.values("href") if v.startswith("#")]
    assert "content" in inside and len(inside) > 8  # the link that skips, and the sections
    assert set(inside + reader.values("aria-labelledby")) <= set(names)
    assert len(reader.all("caption")) == len(reader.all("table")) > 4
    assert all(a.get("scope") in ("col", "row") for a in reader.all("th"))
    assert reader.all("img") and all(len(a["alt"] or "") > 20 for a in reader.all("img"))
    assert len(reader.all("figcaption")) == len(reader.all("figure"))
    assert len(reader.all("math")) == 6  # formulas that need no script


@needs_page
def test_asks_for_nothing_from_outside(folder: Path, reader: Reader) -> None:
    """Every address is inside the file, which is small enough to be sent by mail."""
    text = (folder / html.NAME).read_text(encoding="utf-8")
    addresses = [v for name in ("src", "href", "srcset", "data", "action") for v in reader.values(name)]
    assert addresses and all(v.startswith(("#", "data:")) for v in addresses)
    style = "".join(re.findall(r"<style>(.*?)</style>", text, re.DOTALL))
    assert "@media print" in style and "url(" not in style and "@import" not in style
    assert 1_000_000 < len(text.encode()) < 5_000_000


@needs_page
def test_other_packages_of_the_process_leave_nothing_on_the_page() -> None:
    """panel registers scripts of its own with bokeh, which would be looked for beside the file."""
    pytest.importorskip("panel")
    from bokeh.plotting import figure

    from kolmo.html.page import Figure, Page, Section, render

    chart = figure(width=100, height=100)
    chart.line([0, 1], [0, 1])
    section = Section("one", "One", figures=[Figure("chart", "a line", charts=[chart], caption="")])
    text = render(Page("A page", "of one chart", [("status", "finished")], [section]))
    assert "static/extensions" not in text and "Bokeh" in text


@needs_page
def test_says_every_verdict_in_words(run: BinaryClassification, reader: Reader) -> None:
    """Claims, cross-check, budget and Pontryagin's conditions, as the run found them."""
    claims = run.claims()
    held = sum(c.holds for c in claims)
    assert all(c.claim in reader.said for c in claims)
    assert reader.said.count("holds") >= held and reader.said.count("fails") == len(claims) - held
    assert all(line.verdict.reason in reader.said for line in run.lines)
    assert len(re.findall(r"\bagree\b|\bdiffer\b(?! by)", reader.said)) >= len(run.lines)
    assert reader.said.count("explained") == 3
    four = run.comparisons.values()
    assert len(four) == 3 and all(p.reason in reader.said for found in four for p in found.pairs)
    assert reader.said.count(", single steps") == 3
    assert all(f"{one.value:.5f}" in reader.said for found in four for one in found.reached.values())
    assert f"control network: {run.optimality['verdict']}." in reader.said
    assert f"{run.measured['control']['objective']:.4f}" in reader.said
    assert "finished" in reader.said and "--seed 5" in reader.said and "@software{kolmo," in reader.said


@needs_page
def test_the_configuration_on_the_page_is_the_run_s(run: BinaryClassification, reader: Reader) -> None:
    assert run.config.dumps() in reader.said


@needs_page
def test_frames_are_the_solution(run: BinaryClassification) -> None:
    """What the slider chooses from: the value function of the label at the times that it names."""
    made, solution = fields(run, []), control_solution(run)
    assert made is not None and solution is not None
    figure, numbers = made
    assert figure.slider.categories == [f"{time:.3g}" for time in solution.times]
    (images,) = [r for r in figure.charts[1].renderers if "image" in r.data_source.data]
    for number in range(len(solution.times)):
        _, grid = plotting.node_grid(solution.points, solution.value[number])
        shown = images.data_source.data["image"][number]
        assert np.allclose(shown, grid[..., 1].T, rtol=1e-6)  # float32 rounds to 6e-8
        assert float(numbers.rows[number][-1]) == pytest.approx(solution.duality[number], abs=1e-5)


@needs_page
def test_an_unfinished_run_has_what_was_done(tmp_path: Path) -> None:
    """The status is at the top, one network is shown, nothing is claimed."""
    from kolmo.experiments.progress import Silent

    run = tiny()
    run._train("noiseless", Silent())
    reader = Reader(render(page(run, [], tmp_path, content(run, "refused", reason=f"layer 3: {HOSTILE}"))))
    assert reader.said.index("refused: layer 3: <script>alert(1)") < reader.said.index("Verdicts")
    assert "nothing is claimed" in reader.said
    assert "decision-regions" not in reader.said and "Decision regions" in reader.said
    assert "four ways" not in reader.said and "Four estimators" not in reader.said
    assert "Error budget" not in reader.said and "Value function" not in reader.said
    assert "alert(1)" not in " ".join(reader.values("src")) and not reader.wrong


@needs_page
def test_hostile_names_stay_text(tmp_path: Path) -> None:
    """A data file that is named like a script."""
    path = tmp_path / "<script>alert(1)<" / "b>.csv"
    path.parent.mkdir()
    to_csv(moons(20), path)
    run = tiny(str(path))
    text = render(page(run, [], tmp_path, content(run, "interrupted")))
    assert "<script>alert" not in text and str(path) in Reader(text).said


@needs_page
@pytest.mark.parametrize("quick", [True, False])
def test_the_command_that_runs_it_again(quick: bool, tmp_path: Path) -> None:
    """Quick as the folder says, the seed as in the settings."""
    (tmp_path / "run.json").write_text(json.dumps({"quick": quick}))
    run = tiny()
    said = Reader(render(page(run, [], tmp_path, content(run, "interrupted")))).said
    flag = "--quick " if quick else ""
    assert f"kolmo reproduce {flag}--config config.toml --seed 5 --out again" in said


# ------------------------------------------------------------------ the page of an experiment


def study(name: str = "short") -> Any:
    return SimpleNamespace(
        name=name,
        summary="for the tests",
        config=Config(),
        results=lambda: {"found": [1.0]},
        tables=lambda: [(f"table of {HOSTILE}", ["what", "x"], [[HOSTILE, 0.123456789], ["none", None]])],
    )


@needs_page
def test_an_experiment_s_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Claims and tables, escaped; figures with a caption and their panels in words."""

    def drawn(_: Any) -> Any:
        """Errors over the depth; None without any."""
        figure = plotting.new_figure(4, 3)
        axes = figure.subplots()
        axes.plot([1, 2], [3, 4], label=r"$|\theta_k|$")
        plotting.tidy(axes, "depth $t = kh$", r"$\rho$", "one panel")
        axes.legend()
        return figure

    monkeypatch.setattr(report, "study_figures", lambda _: {"drawn": drawn})
    claims = [Claim(f"{HOSTILE} is small", 0.5, "< 1", True), Claim("and more", "2 of 3", "all", False)]
    report.write_study(study(), claims, tmp_path, seconds=1.0, status="finished")
    text = (tmp_path / html.NAME).read_text(encoding="utf-8")
    reader = Reader(text)
    assert "<script>alert" not in text and not reader.wrong and not reader.open
    assert f"{HOSTILE} is small" in reader.said and f"table of {HOSTILE}" in reader.said
    assert "1 of 2 claims hold, 1 fail." in reader.said
    assert "0.12346" in reader.said and "Errors over the depth." in reader.said
    (image,) = reader.all("img")
    assert image["alt"] == "one panel: ρ against depth t = kh (|θ_k|)"
    assert (image["src"] or "").startswith("data:image/png;base64,")
    assert len(text) < 200_000  # no chart: the library that draws them is left out
    assert json.loads((tmp_path / "results.json").read_text())["status"] == "finished"


@needs_page
def test_labels_and_docstrings_in_words() -> None:
    assert plain(r"$|\theta_k - P(\theta_k - \partial H_k)|$") == "|θ_k - P(θ_k - ∂ H_k)|"
    assert plain(r"$|J_\mathrm{pde} - J_\mathrm{chain}|$") == "|J_pde - J_chain|"
    assert first_sentence("H over time; None without any depth.") == "H over time."
    assert first_sentence("the two. \n\n More.") == "The two."


def test_without_bokeh_the_run_is_written_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """results.json is there, an older page is not left to be taken for this run's, one line says why."""
    monkeypatch.setitem(sys.modules, "bokeh", None)
    (tmp_path / html.NAME).write_text("of another run")
    report.write_study(study(), [], tmp_path, seconds=1.0, status="finished")
    assert (tmp_path / "results.json").exists() and not (tmp_path / html.NAME).exists()
    assert commands._conclude("short", [], tmp_path, as_json=False) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "no report.html: it needs pip install 'kolmo[report]'"
    assert "bokeh cannot be imported" in (html.unavailable() or "")


@needs_page
def test_the_last_line_names_the_page(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert commands._conclude("short", [], folder, as_json=False) == 0
    assert capsys.readouterr().out.splitlines()[-1].endswith(str(folder / "report.html"))


# ------------------------------------------------------------------ in a browser

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture
def browser(request: pytest.FixtureRequest) -> Iterator[Any]:
    """Chromium without a window and without a network, as wide as it is told."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    driver = shutil.which("chromedriver")
    if CHROMIUM is None or driver is None:
        pytest.skip("no Chromium with its driver (Debian, Ubuntu: apt-get install chromium chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    flags = ["--headless=new", "--disable-gpu", "--disable-dev-shm-usage", "--window-size=1280,900"]
    for flag in [*flags, *(["--no-sandbox"] if os.geteuid() == 0 else [])]:
        options.add_argument(flag)
    width = getattr(request, "param", None)
    if width is not None:
        screen = {"width": width, "height": 844, "pixelRatio": 2.0, "touch": True}
        options.add_experimental_option("mobileEmulation", {"deviceMetrics": screen})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    opened = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    opened.execute_cdp_cmd("Network.enable", {})
    opened.execute_cdp_cmd(
        "Network.emulateNetworkConditions",
        {"offline": True, "latency": 0, "downloadThroughput": 0, "uploadThroughput": 0},
    )
    yield opened
    opened.quit()


def show(browser: Any, folder: Path) -> None:
    """Open the page from disk and wait until its charts are drawn."""
    from selenium.webdriver.support.ui import WebDriverWait

    browser.get((folder / html.NAME).as_uri())
    idle = "return !!window.Bokeh && Bokeh.documents.length > 0 && Bokeh.documents.every(d => d.is_idle)"
    WebDriverWait(browser, 60).until(lambda b: b.execute_script(idle))


#: the element that has the focus, within shadow roots too
FOCUSED = """let a = document.activeElement;
while (a && a.shadowRoot && a.shadowRoot.activeElement) a = a.shadowRoot.activeElement;
return [a.getAttribute('role'), a.getAttribute('aria-valuetext')]"""

#: the pixels of a map, by its number, in all its layers
DRAWN = """const found = [];
const look = node => {
  if (node.tagName === 'CANVAS') found.push(node.toDataURL());
  for (const child of [...(node.shadowRoot ? node.shadowRoot.children : []), ...node.children]) look(child);
};
look(document.querySelectorAll('#fields .chart')[arguments[0]]);
return found.join()"""


@pytest.mark.slow
@needs_page
def test_opens_offline_and_the_slider_moves_the_picture(browser: Any, folder: Path, tmp_path: Path) -> None:
    """No error, no request, the keyboard reaches the slider, and another time is another picture."""
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.ui import WebDriverWait

    show(browser, folder)
    assert [e for e in browser.get_log("browser") if e["level"] in ("SEVERE", "WARNING")] == []
    events = [json.loads(e["message"])["message"] for e in browser.get_log("performance")]
    sent = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
    assert [url for url in sent if not url.startswith(("file:", "data:", "blob:"))] == []
    for _ in range(60):
        ActionChains(browser).send_keys(Keys.TAB).perform()
        if browser.execute_script(FOCUSED)[0] == "slider":
            break
    assert browser.execute_script(FOCUSED) == ["slider", "0"]

    def drawn() -> list[str]:
        return [browser.execute_script(DRAWN, number) for number in range(4)]

    def moved_from(before: list[str]) -> bool:
        return all(now != then for now, then in zip(drawn(), before, strict=True))

    first = drawn()
    assert drawn() == first  # nothing moves by itself
    ActionChains(browser).send_keys(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT).perform()
    assert browser.execute_script(FOCUSED) == ["slider", "0.5"]
    WebDriverWait(browser, 20).until(lambda _: moved_from(first))
    browser.save_screenshot(str(tmp_path / "moved.png"))
    second = drawn()
    ActionChains(browser).send_keys(Keys.HOME).perform()
    assert browser.execute_script(FOCUSED) == ["slider", "0"]
    WebDriverWait(browser, 20).until(lambda _: moved_from(second))


@pytest.mark.slow
@needs_page
@pytest.mark.parametrize("browser", [390], indirect=True, ids=["phone"])
def test_fits_a_phone(browser: Any, folder: Path, tmp_path: Path) -> None:
    """Nothing sticks out: tables and formulas that are wider scroll by themselves."""
    show(browser, folder)
    browser.save_screenshot(str(tmp_path / "phone.png"))
    wide, seen = browser.execute_script("return [document.documentElement.scrollWidth, innerWidth]")
    assert (wide, seen) == (390, 390)


@pytest.mark.slow
@needs_page
def test_paper_has_pictures_in_place_of_charts(browser: Any, folder: Path, tmp_path: Path) -> None:
    show(browser, folder)
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    shown = "return [...document.querySelectorAll(arguments[0])].filter(e => e.offsetHeight > 0).length"
    assert browser.execute_script(shown, ".live") == 0
    assert browser.execute_script(shown, "img.still") == 1
    assert browser.execute_script(shown, "nav") == 0
    printed = base64.b64decode(browser.execute_cdp_cmd("Page.printToPDF", {})["data"])
    (tmp_path / "report.pdf").write_bytes(printed)
    assert printed.startswith(b"%PDF")
