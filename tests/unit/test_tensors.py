"""Rows of tensors that stay on disk, and files of them."""

import pytest
import torch
from safetensors.torch import save

from lineup.tensors import Rows, chunks, read_tensors, scratch_tensor, write_tensors

IMAGES = torch.randint(256, (50, 3, 8, 8), dtype=torch.uint8)


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))


@pytest.mark.parametrize("index", [[3, 4, 5], [5, 3, 4, 3], []])
def test_rows_are_what_indexing_gives(index):
    index = torch.tensor(index, dtype=torch.long)
    rows, expected = Rows(IMAGES, index), IMAGES[index]
    assert len(rows) == len(expected) and rows.shape == expected.shape
    assert torch.equal(rows[:], expected) and torch.equal(rows[1:3], expected[1:3])
    assert torch.equal(rows.on_disk(), expected)
    assert torch.equal(torch.cat([expected[:0], *rows.split(2)]), expected)
    assert torch.equal(torch.cat([expected[:0], *chunks(rows)]), expected)


def test_a_file_of_rows_has_the_bytes_and_the_mode_of_any_other(tmp_path):
    index = torch.tensor([9, 2, 2, 30])
    labels = torch.arange(4)
    (tmp_path / ".tmpLeft0").write_bytes(b"of a killed process")
    write_tensors(tmp_path / "rows", {"images": Rows(IMAGES, index), "labels": labels})
    write_tensors(tmp_path / "whole", {"images": IMAGES[index], "labels": labels})
    content = (tmp_path / "rows").read_bytes()
    assert content == (tmp_path / "whole").read_bytes()
    assert content == save({"images": IMAGES[index], "labels": labels})
    (tmp_path / "plain").touch()
    modes = {(tmp_path / name).stat().st_mode for name in ("rows", "whole", "plain")}
    assert len(modes) == 1
    assert {path.name for path in tmp_path.iterdir()} == {"rows", "whole", "plain", ".lineup"}
    assert torch.equal(read_tensors(tmp_path / "rows")["images"], IMAGES[index])


def test_a_scratch_tensor_is_no_file_that_stays(tmp_path):
    tensor = scratch_tensor((4, 3))
    tensor[:] = 7
    assert tensor.sum() == 84
    assert not list((tmp_path / ".lineup").iterdir())
