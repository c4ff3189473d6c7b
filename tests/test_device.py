import pytest

from dcl.device import pick_device


def test_a_device_that_is_not_there():
    assert pick_device("cpu").type == "cpu"
    for name in ("warp", "cuda:97"):
        with pytest.raises(ValueError, match=f"device must be .*{name}"):
            pick_device(name)
