"""Paired differences against a hand calculation."""

import pytest

from dcl.measure.paired import paired


def test_a_paired_difference_by_hand():
    mean, half = paired([0.6, 0.8, 1.0], [0.5, 0.6, 0.7, 9.0])  # gaps .1, .2, .3
    assert mean == pytest.approx(0.2)
    assert half == pytest.approx(4.3027 * 0.1 / 3**0.5, abs=1e-4)  # t of two degrees of freedom


def test_one_pair_says_nothing_and_none_is_refused():
    assert paired([0.6], [0.5]) == (pytest.approx(0.1), float("inf"))
    with pytest.raises(ValueError, match="got 0 and 2"):
        paired([], [0.1, 0.2])
