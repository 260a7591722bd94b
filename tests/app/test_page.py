"""The page in a real browser, and what keeps it on this machine."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

import dmtl
from dmtl.cli import main

# Any look beyond this machine ends the process.
SERVER = """
import os, sys
def watch(event, args):
    if event == "socket.connect":
        place = args[1][0] if isinstance(args[1], tuple) else "127.0.0.1"
    elif event == "socket.getaddrinfo":
        place = args[0]
    else:
        return
    if place not in ("127.0.0.1", "::1", "localhost", None):
        print("asked for", place, file=sys.stderr, flush=True)
        os._exit(3)
sys.addaudithook(watch)
from dmtl.cli import main
sys.exit(main(["app", *sys.argv[1:]]))
"""


def test_without_gradio(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    assert main(["app"]) == 2
    assert "pip install 'dmtl[app]'" in capsys.readouterr().err


@pytest.fixture
def browser():
    webdriver = pytest.importorskip("selenium.webdriver")
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("needs chromium and chromedriver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for word in (
        "headless=new",
        "no-sandbox",
        "disable-gpu",
        "disable-dev-shm-usage",
        "window-size=1500,1000",
    ):
        options.add_argument(f"--{word}")
    options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
    browser = webdriver.Chrome(options, webdriver.ChromeService(driver))
    yield browser
    browser.quit()


@pytest.fixture
def server(model, tmp_path):
    """The address of a page of `model`; it ends by SIGTERM and leaves no file behind."""
    pytest.importorskip("gradio")
    model.save_pretrained(tmp_path / "model")
    (tmp_path / "tmp").mkdir()
    path = os.pathsep.join([str(Path(dmtl.__file__).parents[1]), *sys.path])
    environment = os.environ | {"PYTHONPATH": path, "TMPDIR": str(tmp_path / "tmp")}
    command = [sys.executable, "-c", SERVER, str(tmp_path / "model")]
    with open(tmp_path / "errors", "w") as errors:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment)
    try:
        line = process.stdout.readline()
        assert line.startswith("open http://127.0.0.1:"), (tmp_path / "errors").read_text()
        yield line.split()[1]
        assert process.poll() is None, (tmp_path / "errors").read_text()
    finally:
        process.terminate()
        status = process.wait()
        process.stdout.close()
    assert status == 0 and not any((tmp_path / "tmp").glob("dmtl-app-*"))


@pytest.mark.slow
def test_the_page(browser, server, photo, tmp_path):
    """Upload, move the slider, see other pixels, click one, download; a huge and a broken file."""
    from selenium.webdriver.common.keys import Keys

    def wait(condition):
        end = time.monotonic() + 120
        while not (found := condition()):
            assert time.monotonic() < end, browser.find_element("tag name", "body").text
            time.sleep(0.1)
        return found

    def find(selector: str):
        return wait(lambda: browser.find_elements("css selector", selector))[0]

    def shown() -> str:
        return find("#map-depth img").get_attribute("src")

    def upload(path: Path) -> None:
        for button in browser.find_elements("css selector", "#photo-file button[aria-label=Clear]"):
            button.click()
        find("#photo-file input[type=file]").send_keys(str(path))

    browser.get(server)
    upload(photo)
    last = wait(shown)
    wait(lambda: find("#caption").text == "step 2, final")
    find("#stage input[type=range]").send_keys(Keys.ARROW_LEFT)
    wait(lambda: find("#caption").text == "step 1" and shown() != last)
    assert pixels(browser, "#map-depth img") == (100, 70)

    find("#map-depth img").click()  # its middle
    wait(lambda: "x 50, y 35" in find("#values").text.replace("x 49", "x 50").replace("y 34", "y 35"))
    assert "degrees" not in find("#values").text
    samples = find("#samples input[type=number]")
    samples.send_keys(Keys.CONTROL, "a")
    samples.send_keys("3", Keys.TAB)
    wait(lambda: find("#caption").text == "mean of 3 samples" and "degrees" in find("#values").text)
    plain = shown()
    find("#overlay input[type=range]").send_keys(Keys.END)
    wait(lambda: shown() != plain)

    find("#save").click()
    link = find("#zip a").get_attribute("href")
    assert link.startswith(server) and link.endswith("/street-maps.zip")
    size = browser.execute_async_script(
        "fetch(arguments[0]).then(r => r.arrayBuffer()).then(b => arguments[1](b.byteLength))", link
    )
    assert size > 1000

    Image.new("RGB", (6000, 4000), "teal").save(tmp_path / "huge.jpg")
    upload(tmp_path / "huge.jpg")
    wait(lambda: pixels(browser, "#map-depth img") == (858, 572))
    (tmp_path / "broken.jpg").write_text("no image")
    upload(tmp_path / "broken.jpg")
    wait(lambda: "broken.jpg: not an image" in find("body").text)
    upload(photo)
    wait(lambda: pixels(browser, "#map-depth img") == (100, 70))

    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = {m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"}
    assert len(asked) > 10 and all(url.startswith((server, "data:", "blob:")) for url in asked)


def pixels(browser, selector: str) -> tuple[int, int]:
    """Width and height of a picture's file; (None, None) if it is not there."""
    script = "const i = document.querySelector(arguments[0]) || {}; return [i.naturalWidth, i.naturalHeight]"
    return tuple(browser.execute_script(script, selector))
