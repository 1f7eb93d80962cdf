"""Damaged files of every kind that people write: each is read, or refused in words; none ends in a traceback.

python -m pytest tests/unit/test_fuzz.py --hypothesis-profile long      # 10,000 of each kind
"""

import io
import time

import pytest
import yaml
from helpers.project import ROOT
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from lineup.data.dataset_yaml import read_dataset_yaml
from lineup.data.image_io import UnreadablePictureError, inspect_picture, is_picture, read_picture
from lineup.errors import UserError
from lineup.params import load_params

PARAMS = (ROOT / "params.yaml").read_bytes()
DATASETS = [path.read_bytes() for path in sorted(ROOT.glob("data/*/dataset.yaml"))]
HANG_SECONDS = 10
SHARED = settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], deadline=None
)


def pictures():
    """Return small pictures in every format, as bytes."""
    grey = Image.linear_gradient("L").resize((16, 12))
    colour = Image.merge("RGB", [grey, grey.rotate(180), grey])
    found = []
    for form, image in [
        ("PNG", colour),
        ("PNG", grey.convert("P")),
        ("PNG", grey.convert("I").convert("I;16")),
        ("JPEG", colour),
        ("GIF", grey),
        ("BMP", colour),
        ("TIFF", colour),
        ("WEBP", colour),
        ("PPM", colour),
    ]:
        file = io.BytesIO()
        image.save(file, form)
        found.append(file.getvalue())
    return found


@st.composite
def damaged(draw, originals):
    """One of the originals with some bytes replaced, removed, doubled, or added."""
    content = draw(st.sampled_from(originals))
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(content)))
        end = draw(st.integers(start, min(len(content), start + 40)))
        between = draw(st.one_of(st.binary(max_size=8), st.just(content[start:end] * 2)))
        content = content[:start] + between + content[end:]
    return content[: draw(st.one_of(st.just(len(content)), st.integers(0, len(content))))]


values = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.integers(-3, 3),
        st.just(10**40),
        st.floats(),
        st.text(max_size=8),
        st.sampled_from(["auto", "cnn", "1e400", "0x10", "1:30", "010", "../..", "models:/a@b"]),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=6), inner, max_size=3)
    ),
    max_leaves=5,
)


@st.composite
def changed(draw, original):
    """The YAML text of `original`, with values of some keys replaced, or keys removed."""
    content = yaml.safe_load(original)
    for _ in range(draw(st.integers(1, 3))):
        section = content
        while True:
            key = draw(st.sampled_from(sorted(section)))
            inner = section[key]
            if not isinstance(inner, dict) or not inner or draw(st.booleans()):
                break
            section = inner
        if draw(st.integers(0, 5)) and section:
            section[key] = draw(values)
        elif len(section) > 1:
            del section[key]
    return yaml.safe_dump(content, allow_unicode=True).encode(errors="surrogatepass")


def read(path, content, reader, refusal):
    """Write the content, read it within seconds; what is refused says why in plain words."""
    path.write_bytes(content)
    start = time.monotonic()
    try:
        reader(path)
    except refusal as error:
        assert str(error) and "Traceback" not in str(error)
    assert time.monotonic() - start < HANG_SECONDS


@SHARED
@given(content=st.one_of(changed(PARAMS), damaged([PARAMS])))
def test_params_yaml(tmp_path, content):
    read(tmp_path / "params.yaml", content, load_params, UserError)


@SHARED
@given(content=st.one_of(st.sampled_from(DATASETS).flatmap(changed), damaged(DATASETS)))
def test_dataset_yaml(tmp_path, content):
    read(tmp_path / "dataset.yaml", content, read_dataset_yaml, UserError)


def read_whole(path):
    """Do all that fetch and predict do with a picture file."""
    is_picture(path)
    facts = inspect_picture(path)
    for channels in (1, 3):
        read_picture(path, channels, facts.largest)
    read_picture(path, 3, facts.largest, enough=8)


@SHARED
@pytest.mark.filterwarnings("ignore")  # Pillow's, of damaged files
@given(content=damaged(pictures()))
def test_pictures(tmp_path, content):
    read(tmp_path / "picture", content, read_whole, UnreadablePictureError)
