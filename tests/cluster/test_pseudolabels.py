"""Pseudo-labels against loops: ties, empty clusters, nobody confident, K larger than the batch."""

import pytest
import torch
from torch.nn import functional as F

from dcl.cluster.pseudolabels import confident, even, fixmatch_loss, prototype_labels, reliable
from dcl.train import seeded


def drawn(rows, k, d=3):
    with seeded(rows + 10 * k):
        p = torch.randn(rows, k, dtype=torch.float64).softmax(1)
        return F.normalize(torch.randn(rows, d, dtype=torch.float64), dim=1), p


# -- FixMatch ----------------------------------------------------------------------------------


def fixmatch_by_loop(weak, strong, threshold):
    total, mask = torch.zeros((), dtype=weak.dtype), []
    for w, s in zip(weak.tolist(), strong, strict=True):
        e = [torch.tensor(v).double().exp().item() for v in w]
        label = max(range(len(w)), key=lambda k: w[k])  # the first of equal ones
        mask.append(e[label] / sum(e) > threshold)
        if mask[-1]:
            total = total - torch.log(s[label].exp() / s.exp().sum()) / len(weak)
    return total, mask


@pytest.mark.parametrize("threshold", [0.0, 0.5, 0.8, 0.9999])  # the last: nobody
@pytest.mark.parametrize("rows, k", [(7, 3), (3, 8), (1, 2)])
def test_fixmatch_is_the_loop(rows, k, threshold):
    with seeded(rows):
        weak, strong = 3 * torch.randn(2, rows, k, dtype=torch.float64)
    weak[0] = weak[0, 0]  # a tie
    weak.requires_grad_(), strong.requires_grad_()
    loss, mask = fixmatch_loss(weak, strong, threshold)
    wanted, sure = fixmatch_by_loop(weak.detach(), strong, threshold)
    assert mask.tolist() == sure
    torch.testing.assert_close(loss, wanted)
    (ours,) = torch.autograd.grad(loss, strong, retain_graph=True)
    if wanted.requires_grad:
        torch.testing.assert_close(ours, torch.autograd.grad(wanted, strong)[0])
    else:
        assert loss == 0 and not ours.any()
    loss.backward()
    assert weak.grad is None


def test_confidence_is_strictly_above_the_threshold():
    label, mask = confident(torch.tensor([[0.0, 0.0], [0.0, 4.0]]), 0.5)
    assert label.tolist() == [0, 1] and mask.tolist() == [False, True]


# -- prototypes --------------------------------------------------------------------------------


def labelled_by_loop(z, p, share):
    m, k = p.shape
    each = max(1, m // k)
    found = [[False] * k for _ in range(m)]
    for c in range(k):
        surest = sorted(range(m), key=lambda i: -p[i, c].item())[: max(1, int(share * each))]
        mean = sum(z[i] for i in surest) / len(surest)
        scores = z @ mean
        for i in sorted(range(m), key=lambda i: -scores[i].item())[:each]:
            found[i][c] = True
    return found


@pytest.mark.parametrize("share", [0.5, 0.01, 1.0])
@pytest.mark.parametrize("rows, k", [(20, 3), (9, 4), (3, 5), (12, 12)])  # K larger than M
def test_labels_by_prototype_are_the_loop(rows, k, share):
    z, p = drawn(rows, k)
    assert prototype_labels(z, p, share).tolist() == labelled_by_loop(z, p, share)


def test_every_cluster_gets_its_share_even_an_empty_one_and_equal_values_go_by_row():
    z, p = drawn(20, 4)
    p[:, 2] = 0.0  # nobody is in it
    found = prototype_labels(z, p, 0.5)
    assert found.sum(0).tolist() == [5, 5, 5, 5]
    assert found.tolist() == labelled_by_loop(z, p, 0.5)
    flat = prototype_labels(torch.ones(10, 2), torch.ones(10, 3), 0.5)
    assert flat.nonzero().tolist() == [[i, c] for i in range(3) for c in range(3)]


def test_labels_by_hand():
    # the prototype of cluster 0 is image 0 alone; image 2, of low p, is next to it
    z = torch.tensor([[1.0, 0], [0, 1], [0.9, 0.1], [0.1, 0.9]])
    p = torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.1, 0.6], [0.5, 0.1]])
    assert prototype_labels(z, p, 0.5).tolist() == [[1, 0], [0, 1], [1, 0], [0, 1]]


# -- reliable ----------------------------------------------------------------------------------


def reliable_by_loop(z, p, k, agree, sure):
    own = p.argmax(1).tolist()
    found = []
    for i in range(len(z)):
        near = sorted(range(len(z)), key=lambda j: -(z[i] @ z[j]).item())[:k]
        same = sum(own[j] == own[i] for j in near)
        good = same >= agree * k and p[i].max().item() > sure
        found.append(own[i] if good else -1)
    return found


@pytest.mark.parametrize("agree, sure", [(0.5, 0.3), (0.6, 0.5), (1.0, 0.0), (0.5, 0.9999)])
@pytest.mark.parametrize("rows, n, k", [(30, 5, 3), (12, 12, 2), (6, 1, 9)])
def test_reliable_is_the_loop(rows, n, k, agree, sure):
    z, p = drawn(rows, k)
    found = reliable(z, p, n, agree, sure).tolist()
    assert found == reliable_by_loop(z, p, n, agree, sure)
    if sure > 0.99:
        assert found == [-1] * rows


def test_an_image_is_its_own_neighbour_and_confidence_is_strict():
    z = F.normalize(torch.tensor([[1.0, 0], [0.99, 0.1], [0, 1]]), dim=1)
    p = torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.5, 0.5]])
    assert reliable(z, p, 1, 1.0, 0.5).tolist() == [0, 1, -1]
    assert reliable(z, p, 2, 0.5, 0.5).tolist() == [0, 1, -1]  # half: itself
    assert reliable(z, p, 2, 0.51, 0.5).tolist() == [-1, -1, -1]


# -- the cut -----------------------------------------------------------------------------------


def test_of_every_class_as_many_stay_as_the_smallest_has():
    labels = torch.tensor([0, 0, 0, 0, 2, 2, -1, 2, 3, 3, 3, -1, 0])  # none of class 1
    with seeded(0):
        kept = even(labels)
    assert [(kept == c).sum().item() for c in range(4)] == [3, 0, 3, 3]
    assert (labels[kept >= 0] == kept[kept >= 0]).all() and labels[0] == 0
    with seeded(0):
        seen = {tuple(even(labels).tolist()) for _ in range(40)}
    assert len(seen) > 3  # at random
    assert even(torch.full((4,), -1)).tolist() == [-1] * 4
