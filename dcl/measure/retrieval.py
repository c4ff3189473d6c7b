"""Who else is this? Mean average precision and CMC of a ranking, as in re-identification.

Each query ranks a gallery by cosine. Right answers are other pictures of the same person; pictures
of that person by the query's own camera are taken out of the ranking first. Chapter: rlcc.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from dcl.measure.metrics import Ids


class Retrieval(NamedTuple):
    """How good a ranking is: mAP in [0,1], and cmc (ranks,): answered within the first r + 1."""

    map: float
    cmc: Tensor
    queries: int  # that have a right answer in the gallery; the others do not count


@torch.no_grad()
def retrieval(z: Any, person: Ids, camera: Ids, query: Any, ranks: int = 10) -> Retrieval:
    """Rank all rows that are no queries for each that is one.

    z (N,D) float, person and camera (N,) int, query (N,) bool. The average precision of a query is
    the mean of the precision at each right answer. Equal cosines keep the order of the rows.
    Raises ValueError: shapes, NaN, or no query with a right answer from another camera.
    Source: Zheng et al. 2015 (Market-1501), section 4.2.
    """
    z, query = torch.as_tensor(z).float().cpu(), torch.as_tensor(query).bool().cpu()
    person, camera = (torch.as_tensor(ids).cpu() for ids in (person, camera))
    lengths = {len(ids) for ids in (z, person, camera, query)}
    if z.ndim != 2 or len(lengths) > 1:
        raise ValueError(f"z must be (N,D), the others (N,); got {tuple(z.shape)}, {lengths}")
    if not z.isfinite().all():
        raise ValueError("z must be finite; got NaN or infinity")
    z = F.normalize(z, dim=1)
    order = (z[query] @ z[~query].T).argsort(dim=1, descending=True, stable=True)  # (Q,G)
    same = (person[query][:, None] == person[~query]).gather(1, order)
    near = (camera[query][:, None] == camera[~query]).gather(1, order)
    counted, right = ~(same & near), same & ~near
    found = right.cumsum(1)
    precision = found / counted.cumsum(1).clamp(min=1)
    asked = found[:, -1] > 0
    if not asked.any():
        raise ValueError("query must hold a picture of a person whom another camera saw, too")
    average = (precision * right).sum(1)[asked] / found[asked, -1]
    place = counted.cumsum(1)[asked] - 1  # rank of each answer, from 0, without those taken out
    first = place.masked_fill(~right[asked], len(z)).amin(1)
    cmc = (first[:, None] <= torch.arange(ranks)).float().mean(0)
    return Retrieval(float(average.mean()), cmc, int(asked.sum()))
