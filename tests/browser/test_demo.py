"""The page of `make demo` as a person meets it: drawing, dropping, and nothing from elsewhere."""

import json
import os
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from contextlib import contextmanager

import pytest
from helpers.browser import MARKS, open_browser
from helpers.demo import FRAMING, write_models
from helpers.project import ROOT
from helpers.servers import free_port
from helpers.waiting import wait_for
from PIL import Image

from lineup.serving.classifier import open_classifier

pytest.importorskip("gradio")
pytestmark = MARKS

ROTATED = 6  # of EXIF's orientations: a camera held upright


class Page:
    """The page in a browser."""

    def __init__(self, browser, address):
        self.browser, self.address = browser, address
        browser.get("about:blank")
        self.requests()  # those of the browser's own first page
        browser.get(address)
        wait_for(self.tabs)

    def find(self, selector):
        return self.browser.find_element("css selector", selector)

    def find_later(self, selector):
        return wait_for(lambda: self.find(selector))

    def tabs(self):
        """Return the tabs that can be seen, by name."""
        found = self.browser.find_elements("css selector", "button[role=tab]")
        return {tab.text: tab for tab in found if tab.is_displayed() and tab.text}

    def draw(self):
        """Draw a seven with the brush."""
        from selenium.webdriver.common.action_chains import ActionChains

        wait_for(lambda: self.find("#canvas canvas").is_displayed())
        stroke = ActionChains(self.browser, duration=50).pause(1)
        stroke.move_to_element_with_offset(self.find("#canvas canvas"), -50, -70).click_and_hold()
        for right, down in [(50, 0), (50, 0), (-25, 50), (-25, 50)]:
            stroke.move_by_offset(right, down)
        stroke.release().perform()

    def drop(self, path):
        send = self.find_later("#file input[type=file]").send_keys
        send(str(path))

    def answers(self):
        """Return per model the classes that are shown with their percentages."""
        texts = [self.find(f"#says-{name}").text for name in ("linear", "mlp")]
        return [dict(re.findall(r"(digit \d)\s+(\d+)%", text)) for text in texts]

    def requests(self):
        """Return the addresses that the browser asked for."""
        logs = self.browser.get_log("performance")
        events = [json.loads(entry["message"])["message"] for entry in logs]
        sent = [event for event in events if event["method"] == "Network.requestWillBeSent"]
        return [event["params"]["request"]["url"] for event in sent]


@contextmanager
def served(folder, framing):
    """Serve the page by the command that a person runs; yield the models' paths and the page."""
    models, port = write_models(folder, framing), free_port()
    address = f"http://127.0.0.1:{port}/"
    command = [sys.executable, "-m", "stages.demo", *map(str, models), "--port", str(port)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    server = subprocess.Popen(command, cwd=folder, env=environment)
    try:
        wait_for(lambda: urllib.request.urlopen(address, timeout=5).status == 200, 120)
        browser = open_browser(folder / "browser")
        try:
            yield models, Page(browser, address)
        finally:
            browser.quit()
    finally:
        server.send_signal(signal.SIGINT)
        server.wait(20)


def said(models, path):
    """Return the classes that predict names for a picture, as the page would write them."""
    found = []
    for model in models:
        classifier = open_classifier(str(model))
        (probabilities,) = classifier.classify([classifier.preprocess(path)])
        best = probabilities.argsort()[::-1][:4]
        found.append({classifier.classes[i]: f"{100 * probabilities[i]:.0f}" for i in best})
    return found


@pytest.fixture
def photo(tmp_path):
    """A JPEG of 640 × 480 pixels that a camera turned."""
    path, image = tmp_path / "photo.jpg", Image.effect_noise((640, 480), 90).convert("RGB")
    image.paste((20, 30, 40), (60, 40, 300, 120))
    exif = Image.Exif()
    exif[274] = ROTATED
    image.save(path, quality=90, exif=exif)
    return path


def test_a_person_draws_or_drops_a_picture_and_sees_what_each_model_says(photo, tmp_path):
    with served(tmp_path, FRAMING) as (models, page):
        assert list(page.tabs()) == ["Draw", "Drop"]
        page.draw()
        wait_for(lambda: all(page.answers()))
        wait_for(lambda: page.find("#seen img").get_attribute("src"))
        page.browser.save_screenshot(str(tmp_path / "drawn.png"))

        page.tabs()["Drop"].click()
        page.drop(photo)
        wait_for(lambda: page.answers() == said(models, photo))
        (tmp_path / "notes.png").write_text("no picture")
        page.find_later("#file button[aria-label='Remove Image']").click()
        page.drop(tmp_path / "notes.png")
        wait_for(lambda: "not an image that we read (PNG" in page.find("body").text)
        assert page.answers() == [{}, {}]
        elsewhere = (page.address, "data:", "blob:")
        assert [url for url in page.requests() if not url.startswith(elsewhere)] == []


def send(address, host, size):
    """Upload `size` bytes as a page that calls itself `host` would; return the answer's status."""
    content = b"--b\r\nContent-Disposition: form-data; name=files; filename=x.png\r\n\r\n"
    content += bytes(size) + b"\r\n--b--\r\n"
    headers = {"Host": host, "Content-Type": "multipart/form-data; boundary=b"}
    request = urllib.request.Request(f"{address}gradio_api/upload", content, headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


def test_the_page_answers_to_its_own_name_alone_and_takes_20_megabytes(tmp_path):
    with served(tmp_path, FRAMING) as (_, page):
        assert send(page.address, "127.0.0.1", size=1_000) == 200
        assert send(page.address, "evil.example.org", size=1_000) == 400
        assert send(page.address, "127.0.0.1", size=21_000_000) == 413


def test_without_a_declared_framing_a_picture_is_dropped_not_drawn(photo, tmp_path):
    with served(tmp_path, None) as (models, page):
        assert list(page.tabs()) == ["Drop"]
        page.drop(photo)
        wait_for(lambda: page.answers() == said(models, photo))
        page.browser.save_screenshot(str(tmp_path / "dropped.png"))
