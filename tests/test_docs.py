"""The pages of the docs: their code runs, their command lines parse, their links resolve, the site builds."""

from __future__ import annotations

import argparse
import importlib
import inspect
import os
import re
import shlex
import subprocess
import sys
from html.parser import HTMLParser
from importlib.util import find_spec
from pathlib import Path

import pytest
from test_readme import blocks

from kolmo.errors import InputError
from kolmo.experiments import EXPERIMENTS
from kolmo.parser import build

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").glob("*.md"))
#: pages whose code takes several seconds
SLOW = {"control", "explore"}
#: all pages that a person reads, the notebooks' too
READ = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), *sorted((ROOT / "docs").rglob("*.ipynb"))]


def _page(path: Path) -> pytest.param:  # type: ignore[valid-type]
    return pytest.param(path, id=path.stem, marks=[pytest.mark.slow] if path.stem in SLOW else [])


@pytest.mark.parametrize("path", [_page(p) for p in PAGES if blocks(p)])
def test_code_of_a_page_runs(
    path: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All python blocks of a page, in order and in one namespace; they print something.

    A page that needs an extra is skipped without it.
    """
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": path.stem}
    for number, block in enumerate(blocks(path)):
        try:
            exec(compile(block, f"{path.name}, block {number + 1}", "exec"), names)
        except InputError as error:
            if "pip install 'kolmo[" not in str(error):
                raise
            pytest.skip(str(error))
    assert capsys.readouterr().out.strip()


def typed(text: str) -> list[list[str]]:
    """The command lines of a page's blocks, in words, without `kolmo`, comments and redirections."""
    lines = re.findall(r"^ {4}(?:\.venv/bin/)?kolmo ((?:[a-z]|--)[^#|>;\n]*)", text, re.MULTILINE)
    return [shlex.split(line.replace("...", "")) for line in lines]


def mentioned(text: str) -> list[list[str]]:
    """The words of `kolmo ...` within a page's prose, where a line may break."""
    return [shlex.split(line.replace("...", ""))[1:] for line in re.findall(r"`(kolmo\s+[a-z][^`]*)`", text)]


WITH_COMMANDS = [path for path in READ if "kolmo " in path.read_text(encoding="utf-8")]


@pytest.mark.parametrize("path", WITH_COMMANDS, ids=lambda p: str(p.relative_to(ROOT)))
def test_command_lines_exist(path: Path) -> None:
    """Every command, option and experiment that a page names; what is to be typed parses as a whole."""
    text = path.read_text(encoding="utf-8")
    for words in typed(text):
        check(words)
        build().parse_args(words)
    for words in mentioned(text):
        check(words)


def check(words: list[str]) -> None:
    """Raise InputError where a command, one of its options, or an experiment does not exist."""
    commands = next(a for a in build()._actions if isinstance(a, argparse._SubParsersAction)).choices
    if words[0].startswith("-"):
        return
    if words[0] not in commands:
        raise InputError(f"kolmo {words[0]}: no such command")
    for word in words[1:]:
        option = word.partition("=")[0]
        if word.startswith("--") and option not in commands[words[0]]._option_string_actions:
            raise InputError(f"kolmo {words[0]} {option}: no such option")
    if words[0] == "experiment" and re.match("[a-z]", "".join(words[1:2])) and words[1] not in EXPERIMENTS:
        raise InputError(f"kolmo experiment {words[1]}: no such experiment")


def test_wrong_command_lines_are_noticed() -> None:
    text = "Try\n\n    kolmo evaluate CASE_DIR --tolerence 1e-3   # misspelt\n\nor `kolmo verify\n--loud`.\n"
    assert typed(text) == [["evaluate", "CASE_DIR", "--tolerence", "1e-3"]]
    assert mentioned(text) == [["verify", "--loud"]]
    for words in (*typed(text), *mentioned(text), ["evalute"], ["experiment", "weakorder"]):
        with pytest.raises(InputError, match="no such"):
            check(words)


@pytest.mark.parametrize("path", READ, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_between_files_resolve(path: Path) -> None:
    """Every relative link of a page, a notebook or README leads to a file of the repository."""
    links = re.findall(r"\]\(([^)\s#]+)(?:#[^)]*)?\)", path.read_text(encoding="utf-8"))
    for link in links:
        if not re.match(r"[a-z]+:", link) and re.search(r"[./]", link):
            assert (path.parent / link).exists(), link


def test_targets_of_make_exist() -> None:
    known = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for path in READ:
        text = path.read_text(encoding="utf-8")
        named = set(re.findall(r"^ {4}make ([a-z-]+)|`make ([a-z-]+)", text, re.MULTILINE))
        assert {a or b for a, b in named} <= known, path.name


class _Resources(HTMLParser):
    """What a page makes a browser fetch, and the anchors that it has."""

    def __init__(self) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.anchors: set[str] = set()
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.anchors |= {given[name] for name in ("id", "name") if name in given}
        if tag == "a":
            self.links.append(given.get("href", ""))
            return
        self.fetched += [given[name] for name in ("src", "srcset", "data", "poster") if name in given]
        if tag == "link":
            self.fetched.append(given.get("href", ""))


def _read(path: Path) -> _Resources:
    found = _Resources()
    found.feed(path.read_text(encoding="utf-8"))
    return found


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site as `make docs` builds it, warnings as errors, with no network to ask."""
    for module in ("mkdocs", "material", "mkdocstrings", "latex2mathml"):
        if find_spec(module) is None:
            pytest.skip(f"{module} is not installed: pip install 'kolmo[docs]'")
    folder = tmp_path_factory.mktemp("site")
    offline = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | offline, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.mark.slow
def test_the_site_is_complete_and_fetches_nothing(site: Path) -> None:
    """Links and anchors within the site resolve; nothing is fetched from elsewhere; formulas are MathML."""
    pages = {path: _read(path) for path in site.rglob("*.html")}
    assert len(pages) > 25
    for path, page in pages.items():
        assert not [r for r in page.fetched if re.match(r"(https?:)?//", r)], path
        for link in page.links:
            target, _, anchor = link.partition("#")
            if re.match(r"[a-z]+:", target) or path.name == "404.html":
                continue
            there = (path.parent / target).resolve() if target else path
            assert there.exists(), f"{path.name}: {link}"
            if anchor and there in pages:
                assert anchor in pages[there].anchors, f"{path.name}: {link}"
    for sheet in site.rglob("*.css"):
        text = sheet.read_text(encoding="utf-8")
        assert not re.search(r"(url\(|@import)\s*['\"]?(https?:)?//", text), sheet
    theory = (site / "theory.html").read_text(encoding="utf-8")
    assert theory.count("<math") > 50 and "arithmatex" not in theory and "$" not in theory


@pytest.mark.slow
@pytest.mark.parametrize("layer", ["noise", "pde", "control", "experiments", "architectures", "images"])
def test_the_reference_has_every_public_name(site: Path, layer: str) -> None:
    """The classes and functions that a package exports are on its page."""
    anchors = _read(site / "api" / f"{layer}.html").anchors
    package = importlib.import_module(f"kolmo.{layer}")
    public = [name for name in package.__all__ if inspect.isroutine(getattr(package, name))]
    public += [name for name in package.__all__ if inspect.isclass(getattr(package, name))]
    # a function named like its module is shown by its full path
    missing = [n for n in public if not {f"{package.__name__}.{n}", f"{package.__name__}.{n}.{n}"} & anchors]
    assert public and not missing
