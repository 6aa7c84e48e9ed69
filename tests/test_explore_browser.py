"""`kolmo explore` in a real browser: Chromium without a window, driven by Selenium."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

#: seconds until something shows on a busy machine, and what a moved slider and a small solve may take
PATIENCE, RESPONSE, SOLVE = 180, 0.2, 3.0

#: all elements that a selector matches, in shadow roots too; what is done with them follows
EVERYWHERE = """
function all(root, selector, out) {
  for (const e of root.querySelectorAll('*')) {
    if (e.matches(selector)) out.push(e);
    if (e.shadowRoot) all(e.shadowRoot, selector, out);
  }
  return out;
}
const found = all(document, arguments[0], []);
"""
#: milliseconds from a slider's new value to the new data of a plot, through the server
ROUND_TRIP = """
const [kind, value, source, done] = arguments;
const models = [...Bokeh.documents[0]._all_models.values()];
const slider = models.find(m => m.type.endsWith(kind)), data = models.find(m => m.name == source);
const start = performance.now();
const heard = () => {
  data.properties.data.change.disconnect(heard);
  done(performance.now() - start);
};
data.properties.data.change.connect(heard);
slider.value = value;
"""


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """The command itself in a process of its own, ended by Ctrl-C."""
    pytest.importorskip("panel", reason="kolmo explore needs panel: pip install 'kolmo[explore]'")
    process = subprocess.Popen(
        [sys.executable, "-m", "kolmo.cli", "explore", "--no-browser"],
        stdout=subprocess.PIPE,
        text=True,
        # shells let what they run in the background ignore Ctrl-C, and it would inherit that
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout is not None
    first = process.stdout.readline()
    assert first.startswith("kolmo: the page is at http://127.0.0.1:")
    yield first.split()[5]
    process.send_signal(signal.SIGINT)
    rest, _ = process.communicate(timeout=30)
    assert process.returncode == 0 and rest == "kolmo: the page is closed\n"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    webdriver = pytest.importorskip(
        "selenium.webdriver", reason="needs selenium: pip install 'kolmo[browser]'"
    )
    found = {name: shutil.which(name) for name in ("chromium", "chromedriver")}
    if None in found.values():
        pytest.skip("needs Debian's chromium and chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = found["chromium"]
    quiet = ["--headless=new", "--disable-dev-shm-usage", "--window-size=1400,1300", "--hide-scrollbars"]
    # no name but the loopback's is found: what the page needs from elsewhere would be missing
    for option in [*quiet, "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"]:
        options.add_argument(option)
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        options.add_argument("--no-sandbox")  # root has none in Chromium
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = webdriver.ChromeService(found["chromedriver"])
    driver = webdriver.Chrome(options=options, service=service)
    driver.set_script_timeout(PATIENCE)
    yield driver
    driver.quit()


@pytest.fixture
def page(browser: Any, address: str) -> Any:
    """A fresh page whose first solve has come to its end."""
    browser.get(address)
    wait(lambda: "Solved in" in message(browser))
    return browser


def wait(condition: Callable[[], Any], seconds: float = PATIENCE) -> Any:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = condition()
        if found:
            return found
        time.sleep(0.05)
    pytest.fail("nothing came of it in time")


def elements(browser: Any, selector: str) -> list[Any]:
    return list(browser.execute_script(EVERYWHERE + "return found", selector))


def message(browser: Any) -> str:
    # in one script: the page replaces the element while it trains
    return str(
        browser.execute_script(EVERYWHERE + "return found.map(e => e.textContent).join()", "[role=status]")
    )


def picture(browser: Any, name: str) -> bytes:
    """What is drawn in one of the six plots."""
    names = ("value", "density", "paths", "penalty", "rate", "training")
    return bytes(elements(browser, ".bk-Figure")[names.index(name)].screenshot_as_png)


def button(browser: Any, words: str) -> Any:
    (found,) = [e for e in elements(browser, "button") if e.get_attribute("textContent") == words]
    return found


def write(browser: Any, words: str, value: str) -> None:
    """A number into the field that these words stand above, as a visitor would type it."""
    from selenium.webdriver import Keys

    label = "const label = found.find(e => e.textContent.startsWith(arguments[1]));"
    script = EVERYWHERE + label + "return label.getRootNode().querySelector('input')"
    field = browser.execute_script(script, "label", words)
    field.send_keys(Keys.END, Keys.BACKSPACE * 10, value, Keys.ENTER)


def crowding() -> float:
    """How many programs share a core of this machine: times are longer by as much."""
    return max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


def errors(browser: Any) -> list[str]:
    return [entry["message"] for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]


def test_the_page_works_and_is_quiet(page: Any, tmp_path: Path) -> None:
    assert len(elements(page, ".bk-Figure")) == 6
    assert errors(page) == []
    loaded = page.execute_script("return performance.getEntriesByType('resource').map(r => r.name)")
    assert loaded and all(name.startswith(page.current_url) for name in loaded)
    screenshot = tmp_path / "explore.png"
    assert page.save_screenshot(str(screenshot)) and screenshot.stat().st_size > 50_000
    print(f"screenshot: {screenshot}")


def test_time_and_rate_change_what_is_drawn(page: Any) -> None:
    from selenium.webdriver import Keys

    names = ("value", "density", "paths", "penalty")
    before = {name: picture(page, name) for name in names}
    (slider,) = elements(page, "input[type=range]")
    slider.send_keys(Keys.ARROW_LEFT)
    wait(lambda: all(picture(page, name) != before[name] for name in names))
    before = {name: picture(page, name) for name in (*names, "rate")}
    (handle,) = elements(page, ".noUi-handle")
    handle.send_keys(Keys.ARROW_RIGHT)
    wait(lambda: all(picture(page, name) != before[name] for name in before))
    before = {name: picture(page, name) for name in ("value", "density")}
    button(page, "u\u2080").click()  # of the other label
    wait(lambda: picture(page, "value") != before["value"])
    assert picture(page, "density") == before["density"]
    assert errors(page) == []


def test_a_click_follows_another_point(page: Any) -> None:
    from selenium.webdriver import ActionChains

    before = picture(page, "paths")
    figure = elements(page, ".bk-Figure")[2]
    ActionChains(page).move_to_element_with_offset(figure, -60, -60).click().perform()
    wait(lambda: picture(page, "paths") != before)
    assert errors(page) == []


def test_sliders_answer_in_time(page: Any) -> None:
    # every rate has been looked at when the last point of the curve is there
    count = (
        "return [...Bokeh.documents[0]._all_models.values()].find(m => m.name == 'rates').data.rate.length"
    )
    wait(lambda: page.execute_script(count) == 15)
    for kind, source, values in (("Player", "value", range(10)), ("Slider", "penalty", range(10))):
        taken = sorted(page.execute_async_script(ROUND_TRIP, kind, value, source) / 1000 for value in values)
        print(f"{kind}: median {taken[5]:.3f} s, slowest {taken[-1]:.3f} s")
        assert taken[5] < RESPONSE * crowding()


def test_the_solve_button_ends_in_a_result(page: Any) -> None:
    before, start = picture(page, "training"), time.monotonic()
    button(page, "Train and solve").click()
    wait(lambda: "Training" in message(page))
    wait(lambda: "Solved in" in message(page))
    taken = time.monotonic() - start
    print(f"small default solved in {taken:.2f} s, from the click to the result: {message(page)}")
    assert taken < SOLVE * crowding()
    assert picture(page, "training") == before  # the same settings, the same training
    write(page, "depth", "6")
    button(page, "Train and solve").click()
    wait(lambda: "6 layers" in message(page))
    assert picture(page, "training") != before
    assert errors(page) == []


def test_a_training_can_be_stopped(page: Any) -> None:
    write(page, "steps of L-BFGS", "200")
    write(page, "depth", "40")
    button(page, "Train and solve").click()
    wait(lambda: "Training: step" in message(page))
    button(page, "Stop").click()
    wait(lambda: "Stopped. What is shown is the last result." in message(page))
    assert button(page, "Train and solve").is_enabled()


def test_bad_input_gets_a_message_and_the_page_goes_on(page: Any) -> None:
    from selenium.webdriver import Keys
    from selenium.webdriver.support.ui import Select

    write(page, "depth", "1000")
    button(page, "Train and solve").click()
    wait(lambda: "depth: 1000 is not an integer from 4 to 40" in message(page))
    write(page, "depth", "4")
    Select(elements(page, "select")[0]).select_by_visible_text("xor")
    write(page, "rate", "0.7")
    button(page, "Train and solve").click()
    wait(lambda: "; take smaller weights" in message(page))  # refused: the reason and the remedy
    before = picture(page, "value")
    (slider,) = elements(page, "input[type=range]")
    slider.send_keys(Keys.HOME)
    wait(lambda: picture(page, "value") != before)  # the last result is still there to be looked at
    assert errors(page) == []


def test_two_tabs_work_at_once(page: Any, address: str) -> None:
    first = page.current_window_handle
    drawn = picture(page, "training")
    page.switch_to.new_window("tab")
    page.get(address)
    wait(lambda: "Solved in" in message(page))
    write(page, "depth", "5")
    button(page, "Train and solve").click()
    page.switch_to.window(first)
    button(page, "Train and solve").click()
    wait(lambda: "Training" in message(page))
    wait(lambda: "10 layers" in message(page))
    assert picture(page, "training") == drawn  # nothing of the other tab's
    second = next(handle for handle in page.window_handles if handle != first)
    page.switch_to.window(second)
    wait(lambda: "5 layers" in message(page))
    assert errors(page) == []
    page.close()
    page.switch_to.window(first)
