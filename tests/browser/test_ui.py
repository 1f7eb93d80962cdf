"""What a person finds in the real `mlflow ui` after a real repro, seen through a real browser."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import suppress

import pytest

BROWSER, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
FLAGS = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1600,1000",
]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (BROWSER and DRIVER), reason="needs a browser: apt-get install chromium chromium-driver"
    ),
]


class Page:
    """The MLflow UI in a browser, on a project's store."""

    def __init__(self, browser, address):
        self.browser, self.address = browser, address

    def open(self, path):
        self.browser.get("about:blank")
        self.browser.get(f"{self.address}/#/{path}")

    def text(self):
        with suppress(Exception):
            return self.browser.find_element("tag name", "body").text
        return ""

    def wait_for(self, *words, seconds=120):
        """Wait until the page shows every one of `words`."""
        deadline = time.monotonic() + seconds
        while missing := [word for word in words if word not in self.text()]:
            assert time.monotonic() < deadline, f"{missing} not in:\n{self.text()}"
            time.sleep(0.5)
        return self.text()

    def wait_until(self, condition, seconds=120):
        deadline = time.monotonic() + seconds
        while True:
            with suppress(Exception):
                if found := condition():
                    return found
            assert time.monotonic() < deadline, self.text()
            time.sleep(0.5)


@pytest.fixture(scope="module")
def project(project_factory):
    project = project_factory("ui")
    project.run("dvc", "repro")
    return project


@pytest.fixture(scope="module")
def page(project, tmp_path_factory):
    from selenium import webdriver

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "mlflow",
        "ui",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--workers",
        "1",
    ]
    with (project.folder / "ui.log").open("wb") as log:
        server = subprocess.Popen(
            command,
            cwd=project.folder,
            env=project.environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    browser = None
    try:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            with suppress(OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
                break
            time.sleep(0.3)
        options = webdriver.ChromeOptions()
        options.binary_location = BROWSER
        for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('browser')}"):
            options.add_argument(flag)
        browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
        yield Page(browser, f"http://127.0.0.1:{port}")
    finally:
        if browser:
            browser.quit()
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(30)


@pytest.fixture(scope="module")
def experiment(project):
    return project.client().get_experiment_by_name("digits").experiment_id


@pytest.fixture(scope="module")
def version(project):
    return project.client().get_model_version_by_alias("digits", "champion")


def test_a_person_finds_the_experiment(page):
    page.open("experiments")
    page.wait_for("digits")


def test_a_person_finds_the_runs_with_dataset_and_model(page, experiment):
    page.open(f"experiments/{experiment}/runs")
    page.wait_for("linear", "mlp", "digits-training", "Dataset", "Models", "train.py")


def test_a_person_finds_learning_curves(page, experiment, version):
    page.open(f"experiments/{experiment}/runs/{version.run_id}/model-metrics")
    page.wait_for("learning_rate", "step_accuracy")
    page.wait_until(
        lambda: page.browser.find_elements(
            "css selector", ".js-plotly-plot .scatterlayer path.js-line"
        )
    )


def test_a_person_finds_params_tags_and_datasets_of_a_run(page, experiment, version):
    page.open(f"experiments/{experiment}/runs/{version.run_id}")
    page.wait_for("recipe.learning_rate", "git_commit", "digits-training", "Finished")


def test_a_person_finds_pictures(page, experiment, version):
    page.open(f"experiments/{experiment}/runs/{version.run_id}/artifacts")
    page.wait_for("plots")

    def click(name):
        return lambda: [
            item.click() or True
            for item in page.browser.find_elements("xpath", f"//*[text()='{name}']")
        ]

    page.wait_until(click("plots"))
    page.wait_until(click("confusion.png"))

    def picture():
        images = page.browser.find_elements("tag name", "img")
        return [image for image in images if int(image.get_property("naturalWidth")) > 300]

    page.wait_until(picture)


def test_a_person_finds_the_registered_model_its_versions_and_aliases(page):
    page.open("models")
    page.wait_for("digits")
    page.open("models/digits")
    page.wait_for("Version 1", "Version 2", "champion", "linear", "mlp")


def test_a_person_finds_what_a_version_is_and_where_it_comes_from(page, version):
    page.open(f"models/digits/versions/{version.version}")
    text = page.wait_for(
        "trained on digits", "test_accuracy", "there was no champion", "git checkout", "champion"
    )
    assert re.search(r"val_accuracy\s+0\.\d", text)
