"""One HTML page of everything that evaluate found: no server, no other files, no links to the outside."""

import sys
from pathlib import Path
from typing import Any

if not __package__:  # run as a script: its own root comes first
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from lineup.cli import run
from lineup.errors import UserError

REPORT = Path("report.html")
EVALUATION = Path("evaluation")
CAPTIONS = {  # pictures of an architecture, in this order
    "confusion": "Confusion on the test set: what is right in grey, mistakes in orange",
    "mistakes": "The mistakes it was surest of",
    "per_class": "Accuracy of each class with its interval, and how many images it has",
    "calibration": "Reliability: is it right as often as it is sure?",
    "predictions": "Outputs against targets",
    "filters": "What the first layer looks for",
    "activations": "What each layer makes of the first test example",
}
PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Lineup: {{ dataset.name }}</title>
<style>
  :root { color-scheme: light; }
  body { font: 16px/1.5 system-ui, sans-serif; color: #222; background: #f3f4f6; margin: 0; }
  main { max-width: 60rem; margin: 0 auto; padding: 1rem; }
  section { background: #fff; border-radius: .6rem; padding: 1rem 1.25rem; margin: 0 0 1rem; }
  h1 { margin: .5rem 0 0; } h2 { margin: 0 0 .75rem; } p { margin: 0 0 1rem; }
  nav { display: flex; flex-wrap: wrap; gap: .25rem 1rem; margin: 0 0 1rem; }
  a { color: #0072b2; }
  figure { margin: 1.25rem 0 0; } figcaption { color: #555; margin-bottom: .25rem; }
  img { max-width: 100%; height: auto; display: block; }
  .scroll { overflow-x: auto; }
  table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
  th, td { padding: .3rem .75rem; text-align: right; border-bottom: 1px solid #e3e5e8; white-space: nowrap; }
  th:first-child, td:first-child { text-align: left; padding-left: 0; }
  th { color: #555; font-weight: 600; }
  dl { display: grid; grid-template-columns: repeat(auto-fill, minmax(9.5rem, 1fr)); gap: .5rem 1rem; margin: 0; }
  dt { color: #555; font-size: .85rem; } dd { margin: 0; font-weight: 600; font-variant-numeric: tabular-nums; }
  summary { cursor: pointer; color: #555; margin-top: 1rem; }
  pre { overflow-x: auto; background: #f3f4f6; padding: .75rem; border-radius: .4rem; font-size: .85rem; }
</style>
{% macro picture(image, caption) %}
<figure><figcaption>{{ caption }}</figcaption><img alt="{{ caption }}" src="{{ image }}"></figure>
{% endmacro %}
{% macro table(rows) %}
<div class="scroll"><table>
  <thead><tr>{% for cell in rows[0] %}<th>{{ cell }}</th>{% endfor %}</tr></thead>
  <tbody>{% for row in rows[1:] %}<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>{% endfor %}</tbody>
</table></div>
{% endmacro %}
<main>
  <h1>{{ dataset.name }}</h1>
  <p>{{ dataset.classes | length }} {{ "classes" if dataset.task == "classification" else "targets" }},
     inputs of {{ dataset.shape | join(" × ") }}</p>
  <nav>{% for one in architectures %}<a href="#{{ one.name }}">{{ one.name }}</a>{% endfor %}</nav>
  <section>
    <h2>Leaderboard</h2>
    {{ table(leaderboard) }}
    {{ picture(pictures.leaderboard, "Test and validation score; sorted by validation score") }}
    {{ picture(pictures.curves, "Learning curves") }}
  </section>
  {% if comparisons %}
  <section>
    <h2>Is the difference real?</h2>
    <p>Exact McNemar test of each pair on the same test images: p is how likely a difference at least this large
       would be if both were equally good.</p>
    {{ table(comparisons) }}
    {% if pictures.disagreements %}{{ picture(pictures.disagreements, "Where they disagree most") }}{% endif %}
  </section>
  {% endif %}
  {% for one in architectures %}
  <section id="{{ one.name }}">
    <h2>{{ one.name }}</h2>
    <dl>{% for key, value in one.scores.items() %}<div><dt>{{ key }}</dt><dd>{{ value }}</dd></div>{% endfor %}</dl>
    {% for caption, image in one.pictures.items() %}{{ picture(image, caption) }}{% endfor %}
    <details><summary>How it was trained</summary><pre>{{ one.recipe }}</pre></details>
  </section>
  {% endfor %}
  {% if pictures.samples %}
  <section><h2>Data</h2>{{ picture(pictures.samples, "Training examples") }}</section>
  {% endif %}
</main>
</html>
"""


def main() -> None:
    """Write report.html from evaluation/: leaderboard, curves, comparisons, and a section per architecture."""
    from jinja2 import Environment, StrictUndefined

    from lineup.data import dataset as datasets
    from lineup.files import write_text

    if not (EVALUATION / "leaderboard.md").exists():
        raise UserError(f"{EVALUATION}/ holds no leaderboard yet; run: dvc repro evaluate")
    leaderboard = read_leaderboard(EVALUATION / "leaderboard.md")
    plots = EVALUATION / "plots"
    page = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True).from_string(
        PAGE
    )
    text = page.render(
        dataset=datasets.describe(),
        leaderboard=leaderboard,
        comparisons=read_comparisons(EVALUATION / "comparisons.csv"),
        architectures=[describe_architecture(row[0], plots / row[0]) for row in leaderboard[1:]],
        pictures={
            "leaderboard": embed(EVALUATION / "leaderboard.png"),
            "curves": embed(EVALUATION / "learning_curves.png"),
            "disagreements": embed(plots / "disagreements.png"),
            "samples": embed(datasets.SPLIT / "samples.png"),
        },
    )
    write_text(REPORT, text)
    print(f"{REPORT.resolve()}  ({len(text) / 1e6:.1f} MB; open it in any browser, or send it)")


def read_leaderboard(path: Path) -> list[list[str]]:
    """Return the cells of a Markdown table: its head, then its rows."""
    lines = path.read_text(encoding="utf-8").splitlines()
    rows = [line for line in lines if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("| ").split("|")] for line in [rows[0], *rows[2:]]]


def read_comparisons(path: Path) -> list[list[str]]:
    """Return the tests of all pairs as table cells; nothing where there was nothing to compare."""
    import csv

    from lineup.evaluation.plots import readable_p

    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        tests = list(csv.DictReader(file))
    head = ["pair", "only the first is right", "only the second", "p"]
    rows = [
        [f"{t['a']} – {t['b']}", t["only_a"], t["only_b"], readable_p(float(t["p_two_sided"]))]
        for t in tests
    ]
    return [head, *rows] if rows else []


def describe_architecture(name: str, folder: Path) -> dict[str, Any]:
    """Return what the page shows of one architecture: scores, pictures by caption, recipe."""
    import json

    from lineup.files import read_json

    model = read_json(Path("models") / name / "model.json")
    recipe = {
        key: model[key] for key in ("hyperparameters", "recipe", "seed", "epoch") if key in model
    }
    scores = read_json(EVALUATION / name / "metrics.json")
    pictures = {caption: embed(folder / f"{key}.png") for key, caption in CAPTIONS.items()}
    return {
        "name": name,
        "scores": {
            key: f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
            for key, value in scores.items()
        },
        "pictures": {caption: image for caption, image in pictures.items() if image},
        "recipe": json.dumps(recipe, indent=2, ensure_ascii=False),
    }


def embed(path: Path) -> str:
    """Return a PNG file as a data URI; an empty text where there is no such file."""
    from base64 import b64encode

    return f"data:image/png;base64,{b64encode(path.read_bytes()).decode()}" if path.exists() else ""


if __name__ == "__main__":
    run(main)
