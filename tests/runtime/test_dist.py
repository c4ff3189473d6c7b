import torch

from dcl.runtime import dist
from processes import in_processes


def test_alone():
    x = torch.randn(3, requires_grad=True)
    assert dist.rank() == 0 and dist.world_size() == 1
    assert dist.all_sum(x) is x
    assert dist.own_rows(x).tolist() == [0, 1, 2]
    assert torch.equal(dist.all_max(x), x) and not dist.all_max(x).requires_grad


def loss_of(w, x, total):
    # each process's loss reads the sum over processes, and weighs it with its own data
    return (total.square() * x.sum(0)).sum() + w.sum()


def work(rank, w, parts):
    w = w.clone().requires_grad_()
    mine = (w * parts[rank]).sum(0)
    total = dist.all_sum(mine)
    loss_of(w, parts[rank], total).backward()
    turned = torch.arange(6.0).view(2, 3).T + rank  # not contiguous
    return {
        "who": (dist.rank(), dist.world_size()),
        "total": total.detach(),
        "grad": w.grad,
        "mine": mine.detach(),
        "max": dist.all_max(torch.tensor([rank, -rank])),
        "turned": dist.all_sum(turned),
    }


def test_two_processes_equal_one_in_value_and_gradient(tmp_path):
    torch.manual_seed(0)
    w, parts = torch.randn(4), [torch.randn(5, 4), torch.randn(7, 4)]
    got = in_processes(work, (w, parts), tmp_path)

    one = w.clone().requires_grad_()
    total = sum((one * p).sum(0) for p in parts)
    sum(loss_of(one, p, total) for p in parts).backward()
    assert [g["who"] for g in got] == [(0, 2), (1, 2)]
    for g in got:
        assert torch.allclose(g["total"], total)
        assert g["max"].tolist() == [1, 0]
        assert torch.equal(g["turned"], 2 * torch.arange(6.0).view(2, 3).T + 1)
    assert not torch.allclose(got[0]["mine"], got[0]["total"])  # the argument is left alone
    # DDP averages gradients over processes: together they are the gradient of the summed loss
    assert torch.allclose(got[0]["grad"] + got[1]["grad"], one.grad, atol=1e-4)
