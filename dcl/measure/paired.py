"""Is a difference more than luck? Two methods, run with the same seeds."""

import statistics
from collections.abc import Sequence

from scipy.stats import t as student


def paired(a: Sequence[float], b: Sequence[float]) -> tuple[float, float]:
    """Mean of a - b, run by run, and half of its 95 % interval, which is infinite for one pair.

    a, b: scores of runs with the same seeds, in the same order; of the longer one the first are
    taken. The interval is Student's, for the mean of the differences. ValueError without a pair.
    Chapter: compare.
    """
    gaps = [x - y for x, y in zip(a, b)]
    if not gaps:
        raise ValueError(f"a and b must hold at least one score each; got {len(a)} and {len(b)}")
    mean, n = statistics.fmean(gaps), len(gaps)
    if n == 1:
        return mean, float("inf")
    return mean, float(student.ppf(0.975, n - 1)) * statistics.stdev(gaps) / n**0.5
