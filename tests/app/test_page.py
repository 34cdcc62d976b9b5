"""The page in a browser: real clicks in headless Chromium, on a server that the command starts."""

import csv
import os
import re
import shutil
import socket
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.support.models import CLASS_NAMES, NEW_NAMES
from tests.support.peft_behaviours import save_row


pytestmark = pytest.mark.nightly

ROOT = Path(__file__).parents[2]
SPACE = ROOT / "examples" / "space"

#: Notes down every address outside of this machine that a Python process asks for.
WATCH = """
import os, socket
HERE = ("127.0.0.1", "::1", "localhost", "0.0.0.0", "", None)
def note(host):
    if host not in HERE:
        with open(os.environ["ASKED_FOR"], "a") as file:
            file.write(f"{host}\\n")
def watched(function, host_of):
    def call(*arguments, **options):
        note(host_of(arguments))
        return function(*arguments, **options)
    return call
def host_of_connect(arguments):
    return arguments[1][0] if arguments[0].family in (socket.AF_INET, socket.AF_INET6) else None
socket.socket.connect = watched(socket.socket.connect, host_of_connect)
socket.getaddrinfo = watched(socket.getaddrinfo, lambda arguments: arguments[0])
"""


@pytest.fixture(scope="module")
def browser():
    """A headless Chromium."""
    pytest.importorskip("gradio", reason="Gradio is not installed: pip install '.[app]'")
    driver = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed: pip install playwright")
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("there is no Chromium on this machine")
    with driver.sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield launched
        launched.close()


@pytest.fixture(scope="module")
def expect(browser):
    """Playwright's assertions, which wait."""
    from playwright.sync_api import expect

    expect.set_options(timeout=60_000)
    return expect


@contextmanager
def serving(folder: Path, *arguments, **environment):
    """Start the page on a free port; gives its address. Nothing may be asked for outside of this machine."""
    folder.mkdir(exist_ok=True)
    (folder / "sitecustomize.py").write_text(WATCH)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    asked = folder / "asked_for.txt"
    said = folder / "said.txt"
    places = {"PYTHONPATH": os.pathsep.join((str(folder), str(ROOT))), "ASKED_FOR": str(asked)}
    places |= {"GRADIO_SERVER_PORT": str(port), "GRADIO_TEMP_DIR": str(folder / "gradio")}
    server = subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        cwd=folder,
        env={**os.environ, **places, **environment},
        stdout=subprocess.DEVNULL,
        stderr=said.open("w"),
    )
    try:
        yield f"http://127.0.0.1:{port}", server
    finally:
        server.terminate()
        server.wait()
    assert not asked.exists(), asked.read_text()
    assert "Traceback" not in said.read_text(), said.read_text()
    assert not (folder / ".gradio").exists()


@contextmanager
def opened(browser, address, server, **options):
    """Open the page, and check that it fetched nothing from elsewhere and ran without errors."""
    page = browser.new_page(**options)
    asked, errors = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: errors.append(str(error)))
    for _ in range(120):
        assert server.poll() is None
        try:
            page.goto(address)
            break
        except Exception:
            page.wait_for_timeout(1000)
    page.locator("#vp-answers").wait_for(timeout=60_000)
    yield page
    page.close()
    assert asked and not [url for url in asked if not re.match(r"(http://127\.0\.0\.1:|data:|blob:)", url)]
    assert not errors


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    path = tmp_path_factory.mktemp("images") / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(path)
    return path


def give(page, path):
    """Click on the image's place and choose a file."""
    if page.get_by_label("Remove Image").count():
        page.get_by_label("Remove Image").click()
    with page.expect_file_chooser() as chooser:
        page.locator("#vp-image").get_by_text("Click to Upload").click()
    chooser.value.set_files(path)


def test_adapters_side_by_side(browser, expect, picture, clip_path, tokenizer_path, tmp_path):
    runs = [save_row(tmp_path / row, row, clip_path, tokenizer_path) for row in ("coop", "classifier-r")]
    adapters = [text for run in runs for text in ("--adapter", run)]
    with (
        serving(tmp_path / "server", "-m", "peft_vprompt", "app", *adapters) as served,
        opened(browser, *served) as page,
    ):
        answers, names = page.locator("#vp-answers"), page.locator("#vp-names textarea")
        labels = answers.locator(".vp-card").nth(1).locator(".vp-label")
        expect(answers).to_contain_text("Drop an image")
        assert names.input_value().splitlines() == CLASS_NAMES

        give(page, picture)
        expect(answers.locator(".vp-card h3")).to_have_text(["zero-shot", "coop", "classifier-r"], timeout=60_000)
        expect(answers.locator(".vp-heat")).to_have_count(3)
        expect(labels).to_have_count(min(5, len(CLASS_NAMES)))

        names.fill("\n".join(NEW_NAMES))
        expect(answers.locator(".vp-card .vp-problem")).to_contain_text("means nothing for other names")
        assert set(labels.all_inner_texts()) == set(NEW_NAMES)

        page.locator("#vp-models").get_by_label("classifier-r", exact=True).click()
        expect(answers.locator(".vp-card")).to_have_count(2)
        page.locator("#vp-top-k input[type=number]").fill("2")
        page.keyboard.press("Tab")
        expect(labels).to_have_count(2)
        page.locator("#vp-attention").get_by_label("Attention").click()
        expect(answers.locator(".vp-heat")).to_have_count(0)

        with page.expect_download() as download:
            answers.locator(".vp-download").click()
        with open(download.value.path(), newline="") as file:
            rows = list(csv.DictReader(file))
        assert download.value.suggested_filename == "predictions.csv"
        assert [(row["file"], row["model"]) for row in rows] == [("photo.png", "zero-shot"), ("photo.png", "coop")]
        assert rows[1]["label"] == labels.first.inner_text()

        strange = ["<img src=x onerror=alert(1)>", "${1+1}", "{{value}}"]
        page.locator("#vp-top-k input[type=number]").fill("3")
        names.fill("\n".join(strange))
        expect(labels.first).to_have_text(re.compile(r"onerror|1\+1|value"))
        assert set(labels.all_inner_texts()) == set(strange)
        names.fill(" ")
        expect(answers).to_contain_text("Write at least two class names")
        names.fill("\n".join(f"cat {number}" for number in range(1000)))
        expect(labels).to_have_count(3, timeout=120_000)
        names.fill("\n".join(f"class {number}" for number in range(3000)))
        expect(answers).to_contain_text("up to 2,000 class names")

        broken = tmp_path / "broken.png"
        broken.write_bytes(b"no image")
        names.fill("fox\nwolf")
        give(page, broken)
        expect(answers).to_contain_text("Cannot read the image")
        assert str(tmp_path) not in answers.inner_text()
        give(page, picture)
        expect(answers.locator(".vp-card")).to_have_count(2)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_space_on_the_embedded_model(browser, theme, tmp_path):
    with (
        serving(tmp_path / "server", SPACE / "app.py") as (address, server),
        opened(browser, f"{address}/?__theme={theme}", server, viewport={"width": 1280, "height": 900}) as page,
    ):
        page.locator("#vp-examples button").first.click()
        page.locator(".vp-card .vp-bars li").nth(4).wait_for(timeout=60_000)
        ink, paper = (
            [int(each) for each in re.findall(r"\d+", page.evaluate(f"getComputedStyle({element}).{what}"))[:3]]
            for element, what in (
                ("document.querySelector('.vp-label')", "color"),
                ("document.querySelector('.vp-card')", "backgroundColor"),
            )
        )
        assert (sum(paper) > sum(ink) + 300) == (theme == "light") and abs(sum(paper) - sum(ink)) > 300
        if folder := os.environ.get("SCREENSHOTS"):
            page.screenshot(path=f"{folder}/{theme}.png")
