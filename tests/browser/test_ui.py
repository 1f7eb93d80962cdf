"""What a person finds in the real `mlflow ui` after a real repro, seen through a real browser."""

import re
import signal
from contextlib import suppress

import pytest
from helpers.browser import MARKS, open_browser
from helpers.project import ROOT
from helpers.readme import README
from helpers.servers import Server
from helpers.waiting import wait_for

pytestmark = MARKS


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

    def wait_for(self, *words):
        """Wait until the page shows every one of `words`; return its text."""

        def text():
            found = self.text()
            missing = [word for word in words if word not in found]
            assert not missing, f"{missing} not in:\n{found}"
            return found

        return wait_for(text, 120)

    def find(self, kind, what):
        return self.browser.find_elements(kind, what)

    def click(self, name):
        """Click on a text as soon as it can be clicked."""
        by_text = f"//*[text()='{name}']"
        wait_for(lambda: [item.click() or True for item in self.find("xpath", by_text)], 120)


@pytest.fixture(scope="module")
def page(finished, tmp_path_factory):
    folder = tmp_path_factory.mktemp("ui")
    server = Server(folder, "ui", "--workers", "1", cwd=finished.folder)
    try:
        server.start(finished.environment)
        browser = open_browser(folder / "browser")
        try:
            yield Page(browser, server.address)
        finally:
            browser.quit()
    finally:
        server.stop(signal.SIGTERM)


@pytest.fixture(scope="module")
def experiment(finished):
    return finished.client().get_experiment_by_name("digits").experiment_id


@pytest.fixture(scope="module")
def version(finished):
    return finished.client().get_model_version_by_alias("digits", "champion")


def test_the_address_that_make_ui_prints_opens_the_runs_of_the_first_dataset(page):
    address = re.search(r"http://127\.0\.0\.1:5000/#/(\S+)'", (ROOT / "Makefile").read_text())[1]
    assert f"/#/{address}" in README
    page.open(address)
    page.wait_for("digits", "linear", "mlp", "train.py")


def test_a_person_who_clicks_on_model_training_finds_the_experiment_and_its_runs(page):
    page.open("")
    page.wait_for("Prompts")  # of the GenAI mode
    for name in ("Model training", "Experiments", "digits"):
        page.click(name)
    page.wait_for("linear", "mlp", "train.py")


def test_a_person_finds_the_runs_with_dataset_and_model(page, experiment):
    page.open(f"experiments/{experiment}/runs")
    page.wait_for("linear", "mlp", "digits-training", "Dataset", "Models", "train.py")


def test_a_person_finds_learning_curves(page, experiment, version):
    page.open(f"experiments/{experiment}/runs/{version.run_id}/model-metrics")
    page.wait_for("learning_rate", "step_accuracy")
    line = ".js-plotly-plot .scatterlayer path.js-line"
    wait_for(lambda: page.find("css selector", line), 120)


def test_a_person_finds_params_tags_and_datasets_of_a_run(page, experiment, version):
    page.open(f"experiments/{experiment}/runs/{version.run_id}")
    page.wait_for("train.learning_rate", "git_commit", "digits-training", "Finished")


def test_a_person_finds_pictures(page, experiment, version):
    page.open(f"experiments/{experiment}/runs/{version.run_id}/artifacts")
    page.click("plots")
    page.click("confusion.png")

    def is_drawn():
        images = page.find("tag name", "img")
        return any(int(image.get_property("naturalWidth")) > 300 for image in images)

    wait_for(is_drawn, 120)


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
