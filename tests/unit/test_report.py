import re
from pathlib import Path

import pytest
from helpers.evaluations import write_regression

from lineup import files
from lineup.errors import UserError
from stages import evaluate, report


def test_the_page_shows_every_picture_and_needs_nothing_from_outside(evaluated, capsys):
    report.main()
    page = Path("report.html").read_text()
    pictures = [path for path in Path("evaluation").rglob("*.png")]
    assert (
        len(re.findall(r'<img [^>]*src="data:image/png;base64,iVBOR', page)) == len(pictures) == 15
    )
    assert not re.search(r'(src|href)="(?!data:|#)|url\(|@import|<script|<link', page)
    assert "most frequent: always says &#39;" in page
    assert "width=device-width" in page and "simplenet" not in page
    assert str(Path("report.html").resolve()) in capsys.readouterr().out


def test_names_are_text_and_never_markup(evaluated):
    name = "<script>alert(1)</script>"
    _change(Path("data/raw/dataset.json"), name=name)
    for path in Path("evaluation").glob("*/model.json"):
        _change(path, dataset=name)
    report.main()
    page = Path("report.html").read_text()
    assert "<script" not in page and "&lt;script&gt;alert(1)" in page


def _change(path, **facts):
    files.write_json(path, files.read_json(path) | facts)


def test_an_evaluation_of_other_data_is_not_reported_under_the_present_name(evaluated):
    _change(Path("data/raw/dataset.json"), name="fashion-mnist")
    with pytest.raises(UserError, match=r"evaluation/? is of other data than data/raw.*dvc repro"):
        report.main()


def test_the_page_of_a_regression_speaks_of_targets_only(here):
    write_regression()
    evaluate.main()
    report.main()
    page = re.sub(
        r'"data:[^"]*"|<style>.*?</style>|class="scroll"',
        "",
        Path("report.html").read_text(),
        flags=re.DOTALL,
    )
    assert "2 targets" in page and "Outputs against targets" in page
    assert not re.search("accura|confus|class|mistake|mcnemar", page, re.IGNORECASE)


def test_without_an_evaluation_it_says_what_to_run(here):
    with pytest.raises(UserError, match="dvc repro evaluate"):
        report.main()
