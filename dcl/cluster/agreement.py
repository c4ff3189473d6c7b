"""Several labelings vote on every pair of images: the groups that they agree on.

The graph has an edge where many agree and another kind where hardly any do. Images with the same
label in every labeling are interchangeable, so what is compared are signatures, not images.
"""

import torch
from torch import Tensor

from dcl.cluster.ensemble import align, incidence, signatures

ROWS = 1024  # signatures that are compared with all others at a time


def agreeing_groups(labelings: Tensor, sure: Tensor, k: int, low: int, high: int) -> Tensor:
    """The largest group of images that labelings agree on, then the next, up to k: (N,) int64.

    0 to k - 1 in the order in which they are found; -1: in none. labelings (M,N) int64, sure (N,)
    bool. A *strong positive* edge leads from each sure image to all, itself among them, with which
    more than `high` labelings put it together; a *strong negative* one joins two that at most
    `low` put together. The image with most positive edges (the first of several) and the ends of
    these are a group. All images that lack a strong negative edge to some member leave the graph,
    and with the first group those that are not sure. Fewer groups than k: the graph was empty.
    Source: Gupta et al. 2020 and its released code. Chapter: kingdra.
    """
    kinds, inverse, count = signatures(torch.cat([labelings, sure[None].long()]))  # (M+1,S)
    here = torch.arange(len(inverse), device=inverse.device)
    first = here.new_full(count.shape, len(here)).scatter_reduce(0, inverse, here, "amin")
    order = first.argsort()  # by the first image of each: so ties go to the first image
    number = torch.empty_like(order).scatter_(0, order, here[: len(order)])[inverse]
    kinds, count = kinds[:, order], count[order].double()
    votes, alive = incidence(kinds[:-1]), kinds[-1] > 0  # (S,C) (S,)
    everybody = here[: len(order)]

    def together(rows: Tensor, more_than: int) -> Tensor:
        return votes[rows] @ votes.T > more_than  # (rows,S)

    def weight(rows: Tensor) -> Tensor:  # of the images among `rows` at the end of its edges: (S,)
        parts = [count[r] @ together(r, high).double() for r in rows.split(ROWS)]
        return torch.stack(parts).sum(0) if parts else torch.zeros_like(count)

    degree, listed = weight(everybody), torch.ones_like(alive)
    found = torch.full_like(order, -1)
    for group in range(k):
        if not alive.any():
            break
        seed = torch.where(alive, degree, -1).argmax()[None]
        members = everybody[together(seed, high)[0] & listed]
        found[members] = group
        left = alive.clone()
        for rows in members.split(ROWS):
            left &= ~together(rows, low).any(0)
        degree -= weight(everybody[listed & ~left])
        alive = listed = left
    return found[number]


def shared_numbering(labelings: Tensor, k: int) -> Tensor:
    """Which cluster of the last of labelings (M,N) each cluster of each is most like: (M,k) int64.

    One to one (Hungarian); clusters without images take the numbers that are left.
    """
    every = torch.arange(k, device=labelings.device)  # one more image of each, that counts nothing
    whole = torch.cat([labelings, every.repeat(len(labelings), 1)], 1)
    counts = (torch.arange(whole.shape[1], device=every.device) < labelings.shape[1]).double()
    return torch.stack([align(row, whole[-1], k, counts)[-k:] for row in whole])
