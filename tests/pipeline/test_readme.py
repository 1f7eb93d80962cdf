"""What the README tells a person to do works as it stands there."""

import pytest
from helpers.readme import code_block


@pytest.mark.slow
def test_the_walk_through_with_images_of_your_own(project_factory):
    project = project_factory("readme", images=0)
    project.run("bash", "-euc", code_block("## Your own images", "bash"))
    assert set(project.client().get_registered_model("digits").aliases) == {
        "linear",
        "mlp",
        "champion",
    }


@pytest.mark.slow
def test_an_architecture_of_your_own_is_one_file_and_one_section(project_factory):
    project = project_factory("tiny")
    path = project.folder / "lineup" / "architectures" / "tiny.py"
    path.write_text(code_block("## An architecture of your own", "python"))
    project.set(architectures=["tiny"], model="tiny", models__tiny={"hidden": 64})
    project.run("dvc", "repro")
    assert set(project.client().get_registered_model("digits").aliases) == {"tiny", "champion"}
