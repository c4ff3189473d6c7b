import math

import pytest
import torch
import torch.nn.functional as F

from dcl.cluster.sinkhorn import sinkhorn
from dcl.train import seeded
from processes import in_processes


def pseudo_code(scores, epsilon=0.05, iterations=3):
    # the paper's appendix, as written there, in float64
    q = torch.exp(scores.double() / epsilon).T  # (K,B)
    q /= q.sum()
    k, b = q.shape
    r, c = torch.ones(k).double() / k, torch.ones(b).double() / b
    for _ in range(iterations):
        u = q.sum(1)
        q *= (r / u)[:, None]
        q *= (c / q.sum(0))[None]
    return (q / q.sum(0, keepdim=True)).T


def cosines(b, k, d=128, seed=0):
    with seeded(seed):
        return F.normalize(torch.randn(b, d), dim=1) @ F.normalize(torch.randn(k, d), dim=1).T


@pytest.mark.parametrize("b,k", [(256, 30), (64, 300), (5, 2)])
@pytest.mark.parametrize("iterations", [1, 3, 10])
def test_equals_the_papers_pseudo_code(b, k, iterations):
    s = cosines(b, k)
    q = sinkhorn(s, iterations=iterations)
    assert torch.allclose(q.double(), pseudo_code(s, iterations=iterations), atol=1e-6)
    assert q.dtype == torch.float32 and not q.requires_grad
    assert torch.allclose(q.sum(1), torch.ones(b), atol=1e-6)


def test_by_hand():
    # two images, two prototypes, one iteration, epsilon 1: exp(s) = [[4, 1], [2, 1]]
    s = torch.tensor([[4.0, 1.0], [2.0, 1.0]]).log()
    # columns to sum 1: [[4/6, 1/2], [2/6, 1/2]]; rows to sum 1: [[4/7, 3/7], [2/5, 3/5]]
    expected = torch.tensor([[4 / 7, 3 / 7], [2 / 5, 3 / 5]])
    assert torch.allclose(sinkhorn(s, epsilon=1.0, iterations=1), expected)
    assert torch.allclose(sinkhorn(s, epsilon=1.0, iterations=0), F.softmax(s, 1))


def test_many_iterations_solve_the_transport_problem():
    # the optimum is the only matrix diag(a) exp(s/eps) diag(b) with both marginals right
    s = cosines(40, 8)
    q = sinkhorn(s, iterations=2000).double()
    assert torch.allclose(q.sum(0), torch.full((8,), 5.0).double(), atol=1e-5)
    assert torch.allclose(q.sum(1), torch.ones(40).double(), atol=1e-6)
    rest = q.log() - s.double() / 0.05
    rest = rest - rest.mean(1, keepdim=True) - rest.mean(0, keepdim=True) + rest.mean()
    assert rest.abs().max() < 1e-4


def test_a_constant_does_not_matter():
    s = cosines(64, 10)
    assert torch.allclose(sinkhorn(s + 1000), sinkhorn(s), atol=2e-3)  # float32 input rounds
    assert torch.allclose(sinkhorn(s.double() + 1000), sinkhorn(s), atol=1e-6)
    s = s.double()
    assert torch.allclose(sinkhorn(s + torch.linspace(-9, 9, 10)), sinkhorn(s), atol=1e-6)


@pytest.mark.parametrize("size", [1e-30, 10.0, 1e3, 1e6, 1e30, 3e38])
def test_any_finite_score(size):
    with seeded(0):
        s = (2 * torch.rand(32, 6) - 1) * size
        s[0] = -size  # a row far below all others: a global maximum would make it 0/0
        s[1] = size
    q = sinkhorn(s)
    assert q.isfinite().all() and (q >= 0).all()
    assert torch.allclose(q.sum(1), torch.ones(32), atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_half_precision_and_autocast(dtype):
    s = cosines(64, 10).to(dtype).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        q = sinkhorn(s)
    assert q.dtype == torch.float32 and not q.requires_grad
    assert torch.allclose(q.double(), pseudo_code(s.detach()), atol=1e-6)


def two(rank, parts):
    return sinkhorn(parts[rank])


def test_two_processes_equal_one(tmp_path):
    parts = [cosines(48, 12), cosines(20, 12, seed=1)]  # of different size
    parts[1] = parts[1] + 3.0
    got = in_processes(two, (parts,), tmp_path)
    assert torch.allclose(torch.cat(got), sinkhorn(torch.cat(parts)), atol=1e-6)
    assert not torch.allclose(got[0], sinkhorn(parts[0]), atol=1e-2)


def test_bad_input():
    s = cosines(8, 4)
    with pytest.raises(ValueError, match="epsilon"):
        sinkhorn(s, epsilon=0)
    with pytest.raises(ValueError, match="iterations"):
        sinkhorn(s, iterations=-1)
    for shape in ((8,), (0, 4), (8, 0)):
        with pytest.raises(ValueError, match="prototypes"):
            sinkhorn(torch.zeros(shape))
    assert math.isnan(float(sinkhorn(torch.full((2, 2), torch.nan))[0, 0]))  # never hidden
