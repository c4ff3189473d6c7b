import os

import pytest
import torch

from dcl.app.source import Source
from photos import photos_in


def test_a_folder_and_a_set_are_read_alike(tmp_path, monkeypatch):
    folder = photos_in(tmp_path)
    few = Source(str(folder), size=16, limit=30).load()
    assert few.images.shape == (30, 3, 16, 16) and len(few.files) == 30
    monkeypatch.setenv("HOME", str(tmp_path.parent))
    again = Source(f"~/{tmp_path.name}", size=16).load().subset(30)
    assert again.files == few.files and torch.equal(again.images, few.images)
    assert len(Source("digits", limit=10**6).load()) == len(Source("digits").load()) == 1797


def test_what_cannot_be_read_is_named():
    with pytest.raises(ValueError, match=r"data must be an existing folder.*got 'digit'") as e:
        Source("digit").load()
    assert repr(os.getcwd()) in str(e.value)
    with pytest.raises(ValueError, match="limit must be at least 0; got -1"):
        Source("digits", limit=-1).load()
