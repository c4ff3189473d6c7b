"""k-means with faiss's rule for empty clusters, spherical k-means, and PCA-whitening."""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from dcl.runtime.dist import all_gather_rows, all_sum, shard

BUDGET = 2**22  # entries of a block held in memory on a CPU, 16 MB; on a GPU 16 times that
SPLIT = 1 / 1024  # relative perturbation of a split centroid (faiss)


class KMeansResult(NamedTuple):
    """What `kmeans` found."""

    labels: Tensor  # (N,) int64
    centroids: Tensor  # (K,D) float32
    inertia: float  # sum over points of |x - c|^2; spherical: of 1 - x.c with x of length 1


def kmeans(
    x: Tensor,
    n_clusters: int,
    *,
    n_init: int = 1,
    iterations: int = 100,
    spherical: bool = False,
    init: str | Tensor = "k-means++",
) -> KMeansResult:
    """Cluster the rows of x; the best of `n_init` starts, each run until assignments are stable.

    x (N,D) float, finite; computed in float32 on x's device, never holding N x K distances.
    `init`: "k-means++" (greedy, as in scikit-learn), "random" (K different rows) or centroids
    (K,D). `spherical`: rows and centroids are unit vectors, compared by their dot product.
    An empty cluster takes half of another one (see `split_empty`); clusters can still be empty
    at the end when x has fewer than K distinct rows. Randomness: torch's default generator.
    Raises ValueError: K outside 2..N, NaN, shapes, unknown init.
    DeepCluster (Caron et al. 2018), Eq. 2; chapters metrics and deepcluster.
    """
    check_points(x)
    if not 2 <= n_clusters <= len(x):
        raise ValueError(
            f"n_clusters must be between 2 and the number of points, {len(x)}; got {n_clusters}"
        )
    if n_init < 1 or iterations < 1:
        raise ValueError(f"n_init and iterations must be 1 or more; got {n_init}, {iterations}")
    if isinstance(init, Tensor):
        if tuple(init.shape) != (n_clusters, x.shape[1]):
            raise ValueError(f"init must be ({n_clusters}, {x.shape[1]}); got {tuple(init.shape)}")
    elif init not in ("k-means++", "random"):
        raise ValueError(f"init must be k-means++, random or centroids; got {init!r}")
    with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        x = x.detach().float()
        x = F.normalize(x, dim=1) if spherical else x
        # Distances are differences of large numbers when the data are far from the origin, so the
        # mean is subtracted. (The angles of spherical k-means allow no such shift.)
        origin = x.new_zeros(x.shape[1]) if spherical else x.mean(0)
        best: KMeansResult | None = None
        for _ in range(n_init):
            run = lloyd(x - origin, origin, n_clusters, iterations, spherical, init)
            best = run if best is None or run.inertia < best.inertia else best
        assert best is not None
        return best


def lloyd(
    x: Tensor, origin: Tensor, k: int, iterations: int, spherical: bool, init: str | Tensor
) -> KMeansResult:
    """One start of `kmeans`: assign and average in turn until the assignments are stable.

    x (N,D) float32 is relative to origin (D,), the returned centroids are not. Several processes
    share the rows. Source: Lloyd 1982. Chapter: metrics.
    """
    if isinstance(init, Tensor):
        c = init.to(x) - origin
    elif init == "random":
        c = x[torch.randperm(len(x))[:k].to(x.device)]
    else:
        c = _plus_plus(x, k)
    c = F.normalize(c, dim=1) if spherical else c
    x = shard(x)
    labels, low = _assign(x, c, spherical)
    for _ in range(iterations):
        sizes = all_sum(torch.bincount(labels, minlength=k))
        c = _means(x, labels, sizes)
        c = split_empty(c + origin, sizes) - origin
        c = F.normalize(c, dim=1) if spherical else c
        before = labels
        labels, low = _assign(x, c, spherical)
        if not all_sum((labels != before).sum()):
            break
    distance = low if spherical else (2 * low + _squares(x)).clamp(min=0)
    return KMeansResult(
        all_gather_rows(labels), c + origin, float(all_sum(distance.double().sum()))
    )


def _blocks(x: Tensor, width: int = 0) -> tuple[Tensor, ...]:
    # blocks of rows, so that rows x width, by default the block itself, stays within the budget
    return x.split(max(1, BUDGET * (16 if x.is_cuda else 1) // (width or x.shape[1])))


def _squares(x: Tensor) -> Tensor:
    return torch.cat([(block * block).sum(1) for block in _blocks(x)])  # (N,)


def _assign(x: Tensor, c: Tensor, spherical: bool) -> tuple[Tensor, Tensor]:
    # nearest centroid (N,), and |c|^2/2 - x.c, or 1 - x.c, of it (N,), block by block
    half = 0.5 * (c * c).sum(1) if not spherical else c.new_ones(len(c))
    found = [torch.addmm(half, block, c.T, alpha=-1).min(1) for block in _blocks(x, len(c))]
    return torch.cat([index for _, index in found]), torch.cat([low for low, _ in found])


def _means(x: Tensor, labels: Tensor, sizes: Tensor) -> Tensor:
    # In float64 the order of a GPU's atomic additions does not reach the float32 result, so a seed
    # gives the same clusters there too.
    kind = torch.float64 if x.is_cuda else x.dtype
    total = torch.zeros(len(sizes), x.shape[1], dtype=kind, device=x.device)
    start = 0
    for block in _blocks(x):
        total.index_add_(0, labels[start : start + len(block)], block.to(kind))
        start += len(block)
    return (all_sum(total) / sizes.clamp(min=1).unsqueeze(1)).to(x.dtype)


def _plus_plus(x: Tensor, k: int) -> Tensor:
    # Greedy k-means++ (Arthur & Vassilvitskii 2007): draw some rows with probability
    # proportional to the squared distance to the nearest centroid so far, keep the best of them.
    # All random numbers are drawn beforehand on the CPU: the same start on every device, and a
    # GPU that never waits for the host.
    trials = 2 + int(math.log(k))
    first = int(torch.randint(len(x), ()))
    draws = torch.rand(k - 1, trials, dtype=torch.float64).to(x.device)
    square = _squares(x)  # (N,)
    closest = (square + square[first] - 2 * (x @ x[first])).clamp(min=0)
    chosen = [torch.full((1,), first, device=x.device)]
    for draw in draws:
        reach = closest.double().cumsum(0)
        at = torch.searchsorted(reach, draw * reach[-1], right=True).clamp(max=len(x) - 1)  # (T,)
        new = (square + square[at, None] - 2 * (x[at] @ x.T)).clamp(min=0)  # (T,N)
        new = torch.minimum(new, closest)
        pick = new.sum(1).argmin(0, keepdim=True)  # (1,)
        chosen.append(at[pick])
        closest = new[pick][0]
    return x[torch.cat(chosen)]


def split_empty(centroids: Tensor, sizes: Tensor) -> Tensor:
    """Give each empty cluster half of a large one; returns new centroids (K,D).

    centroids (K,D) float, sizes (K,) int. The donor is drawn with probability proportional to
    size - 1; its centroid c is copied, and the two become c(1 + e) and c(1 - e), with e = 1/1024
    of alternating sign over dimensions. The next assignment divides the points between them.
    faiss's rule; DeepCluster (Caron et al. 2018), section 3.3; chapter deepcluster.
    """
    empty = (sizes == 0).nonzero().flatten().tolist()
    if not empty:
        return centroids
    c = centroids.clone()
    weight = (sizes.cpu().double() - 1).clamp(min=0)
    e = c.new_full((c.shape[1],), SPLIT)
    e[1::2] *= -1
    for k in empty:
        total = float(weight.sum())
        donor = int(torch.multinomial(weight, 1)) if total > 0 else int(sizes.argmax())
        c[k] = c[donor] * (1 + e)
        c[donor] = c[donor] * (1 - e)
        size = weight[donor] + 1
        weight[k] = max(float(size // 2) - 1, 0.0)
        weight[donor] = max(float(size - size // 2) - 1, 0.0)
    return c


def renumbered(labels: Tensor) -> Tensor:
    """Cluster numbers (N,) int64 without gaps: from 0, in the same order, none of them empty."""
    return labels.unique(return_inverse=True)[1]


def check_points(x: Tensor) -> None:
    """Raise ValueError unless x is float (N,D) and finite."""
    if x.ndim != 2 or 0 in x.shape or not x.is_floating_point():
        raise ValueError(
            f"x must be float of shape (points, dimensions); got {x.dtype} of {tuple(x.shape)}"
        )
    check_finite(x, "x")


def check_finite(x: Tensor, name: str) -> None:
    """Raise ValueError unless x, of any shape and float dtype, is finite; the error says `name`."""
    # a sum is finite only if all its terms are, and takes a twentieth of the time
    if not (x.sum().isfinite() or x.isfinite().all()):
        raise ValueError(f"{name} must be finite; got NaN or infinity")


def whiten(x: Tensor, dim: int = 256) -> Tensor:
    """PCA-whitened rows of length 1: (N,D) -> (N,d) float32, with d <= dim.

    Centred, projected on the d largest principal directions, each scaled to variance 1, then each
    row to length 1. d is smaller than `dim` if the data vary in fewer directions (at most
    min(N - 1, D)).
    Raises ValueError: shapes, NaN, dim < 1, all rows equal.
    DeepCluster (Caron et al. 2018), section 3.3, as in faiss; chapter deepcluster.
    """
    centre, directions = whitening(x, dim)
    blocks = (((block.double() - centre) @ directions).float() for block in _blocks(x.detach()))
    return torch.cat([F.normalize(block, dim=1) for block in blocks])


def whitening(x: Tensor, dim: int = 256) -> tuple[Tensor, Tensor]:
    """The transform of `whiten`, to apply to held-out rows: mean (D,), directions (D,d) float64.

    ``(x - mean) @ directions`` has variance 1/N in every direction, as in faiss; `whiten` then
    scales rows to length 1, so it makes no difference. Raises as `whiten`.
    """
    check_points(x)
    if dim < 1:
        raise ValueError(f"dim must be 1 or more; got {dim}")
    with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        x = x.detach()
        scale = torch.stack(x.aminmax()).double().abs().amax().clamp(min=1e-300)
        zero = torch.zeros((), dtype=torch.float64, device=x.device)
        centre = sum((block.double().sum(0) for block in _blocks(x)), zero) / len(x)
        wide = len(x) < x.shape[1]  # N x N is the smaller matrix then, and one block holds all
        parts = ((block.double() - centre) / scale for block in ([x] if wide else _blocks(x)))
        gram = sum((part @ part.T if wide else part.T @ part for part in parts), zero)
        value, vector = torch.linalg.eigh(gram)  # ascending
        value, vector = value.flip(0)[:dim], vector.flip(1)[:, :dim]
        # Below float32's resolution a direction is rounding noise, which scaling to variance 1
        # would amplify to the level of the data.
        keep = value > max(float(value[0]) * 1e-10, len(x) * 1e-14)
        if not keep.any():
            raise ValueError("x must vary; got rows that are all equal")
        value, vector = value[keep], vector[:, keep]
        if wide:
            vector = ((x.double() - centre) / scale).T @ vector
        directions = vector / (value if wide else value.sqrt())
        return centre, directions / scale
