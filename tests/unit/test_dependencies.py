"""Who imports whom: dvc.yaml names what shapes a stage's outputs, and every room keeps to itself."""

import ast
from pathlib import Path

import pytest
import yaml
from helpers.project import ROOT

from lineup.params import NOT_IN_RUN_CACHE, Data

STAGES = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
SCRIPTS = sorted((ROOT / "stages").glob("*.py"))
LIBRARY = sorted((ROOT / "lineup").rglob("*.py"))
REPORTING = set(  # a change in them changes no result
    [
        "cli",
        "errors",
        "process",
        "console",
        "interruption",
        "tensorboard",
        "activations",
        "report",
        "tracking",
        "cluster",
    ]
)
TEMPLATES = {
    "export": {"lineup/templates/example.py.jinja", "lineup/templates/model_card.md.jinja"}
}
MAX_INNER_IMPORTS = 50


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imports_of(node: ast.AST) -> list[ast.Import | ast.ImportFrom]:
    """Return the imports in a piece of code at run time; not what only type checkers see."""
    if isinstance(node, ast.Import | ast.ImportFrom):
        return [node]
    if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
        return []
    return [found for child in ast.iter_child_nodes(node) for found in imports_of(child)]


def imported_names(path: Path) -> set[str]:
    """Return the dotted names that a file imports, whether of modules or of what is in them."""
    names = set()
    for statement in imports_of(ast.parse(path.read_text())):
        parent = getattr(statement, "module", None)
        prefix = f"{parent}." if parent else ""
        names |= {prefix + alias.name for alias in statement.names}
    return names


def imported_modules(path: Path) -> set[Path]:
    """Return the files of this project that a file imports."""
    found = set()
    for name in imported_names(path):
        inside = ROOT / name.replace(".", "/")
        around = inside.parent
        candidates = [inside.with_suffix(".py"), inside / "__init__.py"]
        candidates += [around.with_suffix(".py"), around / "__init__.py"]
        found |= {path for path in candidates if path.is_file() and path.stat().st_size}
    return found - {ROOT / "lineup" / "__init__.py"}  # says how users load a model


def shaping_modules(path: Path, seen: set[Path] | None = None) -> set[Path]:
    """Return the file and every module it imports, directly or not; reporting modules stay out."""
    seen = set() if seen is None else seen
    reports = REPORTING & {path.stem, path.parent.name} or "plot" in path.stem
    if path not in seen and not reports:
        seen.add(path)
        for module in imported_modules(path):
            shaping_modules(module, seen)
    return seen


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_depends_on_exactly_the_modules_that_shape_its_outputs(stage):
    definition = STAGES[stage].get("do", STAGES[stage])
    listed = {name for name in definition["deps"] if name.startswith(("stages/", "lineup/"))}
    modules = {name_of(path) for path in shaping_modules(ROOT / "stages" / f"{stage}.py")}
    by_name = {name for name in listed if name.startswith("lineup/architectures")}
    if any(name.startswith("lineup/architectures") for name in modules):
        assert by_name, "a stage that builds architectures depends on their files"
        modules = {name for name in modules if not name.startswith("lineup/architectures")}
    assert listed - by_name == modules | TEMPLATES.get(stage, set())


def keys(content):
    """Return all keys of a section, and of those in it."""
    if not isinstance(content, dict):
        return set()
    return set(content).union(*map(keys, content.values()))


@pytest.mark.parametrize("stage", STAGES)
def test_no_section_that_a_stage_depends_on_has_a_key_that_dvcs_cache_of_runs_overlooks(stage):
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    for name in STAGES[stage].get("do", STAGES[stage])["params"]:
        section = params
        for part in name.replace("${item}", "cnn").split("."):
            section = section[part]
        assert not keys(section) & NOT_IN_RUN_CACHE, name


def test_fetch_depends_on_every_key_of_data():
    listed = {name for name in STAGES["fetch"]["params"] if name.startswith("data.")}
    assert listed == {f"data.{name}" for name in Data.model_fields}


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_and_its_script_share_their_name(stage):
    definition = STAGES[stage].get("do", STAGES[stage])
    assert definition["cmd"].split()[:3] == ["python", "-m", f"stages.{stage}"]


def test_scripts_import_no_script_and_the_library_imports_none_either():
    for path in SCRIPTS + LIBRARY:
        assert not imported_modules(path) & set(SCRIPTS), path


def test_data_knows_no_room_that_uses_it():
    own = ROOT / "lineup" / "data"
    for path in own.glob("*.py"):
        others = {module.parent for module in imported_modules(path)} - {own, ROOT / "lineup"}
        assert not others, path


def test_only_the_tracking_room_knows_mlflow():
    for path in SCRIPTS + LIBRARY:
        roots = {name.split(".")[0] for name in imported_names(path)}
        assert "mlflow" not in roots or path.parent.name == "tracking", path


def test_an_import_inside_a_function_is_in_a_scripts_main_or_says_why():
    count = 0
    for path in SCRIPTS + LIBRARY:
        lines = path.read_text().splitlines()
        tree = ast.parse("\n".join(lines))
        for function in (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)):
            inner = imports_of(function)
            count += len(inner)
            is_main = path in SCRIPTS and function.name == "main"
            first = min((statement.lineno for statement in inner), default=0)
            reason = "".join(lines[first - 2 : first])  # on its line, or the one above
            assert not inner or is_main or "#" in reason, f"{path}:{first}"
    assert count <= MAX_INNER_IMPORTS


def test_no_line_is_longer_than_100_columns():
    for path in SCRIPTS + LIBRARY:
        for number, line in enumerate(path.read_text().splitlines(), 1):
            assert len(line) <= 100, f"{path}:{number}"


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_ends_with_its_dvc(stage):
    assert "    end_with_parent()\n" in (ROOT / "stages" / f"{stage}.py").read_text()
