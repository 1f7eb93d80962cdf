import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from helpers.models import deployable
from helpers.waiting import wait_for
from PIL import Image, ImageDraw

from lineup.architectures import build
from lineup.errors import UserError
from lineup.serving.classifier import open_classifier
from lineup.serving.deployable import write_onnx
from stages import demo

demo_page = pytest.importorskip("lineup.serving.demo_page")

ROOT = Path(__file__).parents[2]
MNIST_LIKE = {
    "size": [28, 28],
    "channels": 1,
    "largest": 255,
    "framing": {"background": "dark", "content": 20},
}
CHROMIUM = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)
FLAGS = (
    "--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --window-size=1200,900"
)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Two ONNX files of untrained networks for pictures framed like MNIST's."""
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    for name, hyperparameters in {"linear": {}, "mlp": {"hidden": [8]}}.items():
        network = build(name, [1, 28, 28], 10, hyperparameters)
        model = deployable(network, architecture=name, preprocessing=MNIST_LIKE)
        write_onnx(model, folder / f"{name}.onnx")
    return [folder / "linear.onnx", folder / "mlp.onnx"]


@pytest.fixture
def picture():
    """Return a stroke of black ink on white."""
    image = Image.new("RGB", (200, 200), "white")
    ImageDraw.Draw(image).line([(60, 40), (140, 40), (100, 160)], "black", 20)
    return image


def test_every_model_answers_with_the_probability_of_every_class(models, picture):
    seen, *answers = demo_page.look(picture, [open_classifier(str(model)) for model in models])
    assert seen.size == (demo_page.MAGNIFIED, demo_page.MAGNIFIED)
    assert (
        seen.getpixel((0, 0)) == 0 and seen.getextrema()[1] > 200
    )  # inverted, as the models know it
    assert len(answers) == 2
    for answer in answers:
        assert len(answer) == 10
        assert sum(answer.values()) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    "blank", [None, Image.new("RGB", (9, 9), "white"), Image.new("RGBA", (9, 9), (0, 0, 0, 0))]
)
def test_an_empty_canvas_has_no_answer(models, blank):
    assert demo_page.look(blank, [open_classifier(str(models[0]))]) == [None, None]


@pytest.fixture
def page(models, tmp_path):
    """Return the address of the page, served by the command that a person runs."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "stages.demo", *map(str, models), "--port", str(port)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    server = subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True
    )
    try:
        wait_for(
            lambda: socket.create_connection(("127.0.0.1", port), timeout=1).close() is None, 120
        )
        yield f"http://127.0.0.1:{port}/"
    finally:
        server.send_signal(signal.SIGINT)
        server.wait(20)


@pytest.fixture
def browser():
    """Return headless Chromium that notes what it requests."""
    webdriver = pytest.importorskip("selenium.webdriver")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in FLAGS.split():
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
    driver = webdriver.Chrome(
        options=options, service=webdriver.ChromeService(shutil.which("chromedriver"))
    )
    yield driver
    driver.quit()


@pytest.mark.slow
@pytest.mark.skipif(
    not (CHROMIUM and shutil.which("chromedriver")), reason="needs Chromium and its driver"
)
def test_a_person_draws_or_drops_a_picture_and_sees_what_each_model_says(
    page, browser, picture, tmp_path
):
    pytest.importorskip("gradio")
    from selenium.webdriver.common.action_chains import ActionChains

    def find(selector):
        return browser.find_element("css selector", selector)

    def answers():
        texts = [find(f"#says-{name}").text.split() for name in ("linear", "mlp")]
        return (
            texts
            if all("digit" in text and any("%" in word for word in text) for text in texts)
            else None
        )

    browser.get(page)
    wait_for(lambda: find("#canvas canvas").is_displayed())
    wait_for(lambda: find("#canvas button[aria-label=Brush]").click() is None)
    time.sleep(1)
    stroke = ActionChains(browser, duration=50)
    stroke.move_to_element_with_offset(find("#canvas canvas"), -50, -70).click_and_hold()
    for right, down in [(50, 0), (50, 0), (-25, 50), (-25, 50)]:
        stroke.move_by_offset(right, down)
    stroke.release().perform()
    drawn = wait_for(answers)
    assert wait_for(lambda: find("#seen img").get_attribute("src"))
    browser.save_screenshot(str(tmp_path / "demo.png"))

    picture.resize((28, 28)).save(
        tmp_path / "picture.png"
    )  # taken as it is: another answer than to the stroke
    next(
        tab
        for tab in browser.find_elements("css selector", "button[role=tab]")
        if tab.text == "Drop"
    ).click()
    find("#file input[type=file]").send_keys(str(tmp_path / "picture.png"))
    wait_for(lambda: answers() not in (None, drawn))

    logs = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    urls = [
        log["params"]["request"]["url"]
        for log in logs
        if log["method"] == "Network.requestWillBeSent"
    ]
    assert [url for url in urls if not url.startswith((page, "data:", "blob:"))] == []


def test_models_for_pictures_of_different_sizes_are_refused(models, tmp_path):
    small = deployable(build("linear", [1, 8, 8], 2, {}), classes=["a", "b"], shape=[1, 8, 8])
    write_onnx(small, tmp_path / "small.onnx")
    with pytest.raises(UserError, match="pictures of different sizes"):
        demo.main([str(models[0]), str(tmp_path / "small.onnx")])
