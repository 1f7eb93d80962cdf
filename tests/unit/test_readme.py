"""What the README shows works as it stands there."""

import os
import re
import subprocess

import yaml
from helpers.project import ROOT
from helpers.readme import README, code_block


def test_files_and_targets_that_the_readme_names_exist():
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"`make ([a-z-]+)`|\$ make ([a-z-]+)", README):
        assert f"\n{''.join(target)}:" in makefile
    for path in re.findall(r"!\[[^]]*\]\(([^)]+)\)", README):
        assert (ROOT / path).stat().st_size < 400_000
    for module in re.findall(r"python -m stages\.(\w+)", README):
        assert (ROOT / "stages" / f"{module}.py").exists()


def test_parameters_that_the_readme_sets_exist():
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    keys = set(re.findall(r"-S '?([\w.]+)=", README))
    assert "models.alexnet.channels" in keys
    for key in keys:
        section = params
        for part in key.split("."):
            assert part in section, key
            section = section[part]


def test_the_command_for_names_that_are_not_utf_8_lists_them_alone(tmp_path):
    folder = tmp_path / "data" / "digits" / "Größe"
    folder.mkdir(parents=True)
    for name in (b"0.png", "Übung 1.png".encode(), b"caf\xe9.png"):
        (folder / os.fsdecode(name)).touch()
    command = code_block("## Your own images", "sh")
    listed = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, check=True)
    assert listed.stdout == "data/digits/Größe/".encode() + b"caf\xe9.png\n"
