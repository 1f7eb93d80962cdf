"""dvc.yaml names exactly the modules that shape a stage's outputs: found by walking the imports."""

import ast
from pathlib import Path

import pytest
import yaml
from helpers.project import ROOT

REPORTING = {
    "terminal",
    "figures",
    "reporting",
    "tracking",
    "journal",
    "lineage",
}  # a change in them changes no result
STAGES = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]


def imported_modules(path: Path) -> set[Path]:
    """Return the files of this project that a file imports at run time; not what only type checkers see."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            node.body = []
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("stages"):
            folder = ROOT / node.module.replace(".", "/")
            candidates = [folder / f"{alias.name}.py" for alias in node.names]
            candidates += [folder / alias.name / "__init__.py" for alias in node.names]
            candidates += [folder.with_suffix(".py"), folder / "__init__.py"]
            found |= {path for path in candidates if path.is_file() and path.stat().st_size}
    return found


def shaping_modules(path: Path, seen: set[Path] | None = None) -> set[Path]:
    """Return the file and every module it imports, directly or not; reporting modules stay out."""
    seen = set() if seen is None else seen
    if path not in seen and not REPORTING & {path.stem, path.parent.name}:
        seen.add(path)
        for module in imported_modules(path):
            shaping_modules(module, seen)
    return seen


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_depends_on_exactly_the_modules_that_shape_its_outputs(stage):
    definition = STAGES[stage].get("do", STAGES[stage])
    listed = {name for name in definition["deps"] if name.startswith("stages/")}
    modules = {
        str(path.relative_to(ROOT)) for path in shaping_modules(ROOT / "stages" / f"{stage}.py")
    }
    chosen_by_name = {name for name in listed if "architectures" in name}
    if any("architectures" in name for name in modules):
        assert chosen_by_name, "a stage that builds architectures depends on their files"
        modules = {name for name in modules if "architectures" not in name}
    assert listed - chosen_by_name == modules


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_and_its_script_share_their_name(stage):
    definition = STAGES[stage].get("do", STAGES[stage])
    assert definition["cmd"].split()[:3] == ["python", "-m", f"stages.{stage}"]


def test_library_modules_import_no_stage():
    stages = {path for path in (ROOT / "stages").glob("*.py")}
    for path in (ROOT / "stages" / "lib").rglob("*.py"):
        assert not imported_modules(path) & stages, path


def test_mlflow_is_imported_by_tracking_alone():
    for path in (ROOT / "stages").rglob("*.py"):
        if "tracking" not in path.relative_to(ROOT).parts:
            assert (
                "import mlflow" not in path.read_text() and "from mlflow" not in path.read_text()
            ), path
