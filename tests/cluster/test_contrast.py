"""The contrastive losses by hand, against a slow oracle, and their gradients."""

import math

import pytest
import torch
from torch.nn import functional as F

from dcl.cluster.contrast import class_contrast, info_nce, key_logits, nt_xent, spreading, supcon
from dcl.train import seeded


@pytest.fixture
def pair():
    with seeded(0):
        return torch.randn(5, 7), torch.randn(5, 7)


def test_loss_by_hand():
    # anchor (1,0), partner (0,1), others (-1,0) twice: cosines 0, -1, -1 at T = 1
    z1 = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    z2 = torch.tensor([[0.0, 1.0], [-1.0, 0.0]])
    first = math.log(1 + 2 * math.exp(-1))
    second = math.log(math.e + math.exp(-1) + 1) - 1  # (-1,0): partner 1, cosines -1 and 0
    third = math.log(3)  # (0,1): all cosines 0
    assert nt_xent(z1, z2, 1.0, symmetric=False).item() == pytest.approx((first + second) / 2)
    whole = (first + 2 * second + third) / 4
    assert nt_xent(z1, z2, 1.0).item() == pytest.approx(whole)


@pytest.mark.parametrize("temperature", [0.1, 2.0])
def test_loss_is_the_cross_entropy_of_cosines(pair, temperature):
    z1, z2 = pair
    z = torch.cat([z1, z2])
    cosines = F.cosine_similarity(z[:, None], z[None], dim=2).fill_diagonal_(-torch.inf)
    partner = torch.tensor([5, 6, 7, 8, 9, 0, 1, 2, 3, 4])
    expected = F.cross_entropy(cosines / temperature, partner, reduction="none")
    torch.testing.assert_close(nt_xent(*pair, temperature), expected.mean())
    one = nt_xent(*pair, temperature, symmetric=False)
    torch.testing.assert_close(one, expected[:5].mean())


def test_the_symmetric_loss_is_the_mean_of_both_directions(pair):
    z1, z2 = pair
    there, back = (nt_xent(a, b, symmetric=False) for a, b in ((z1, z2), (z2, z1)))
    torch.testing.assert_close(nt_xent(z1, z2), (there + back) / 2)
    assert abs(there - back) > 0.01  # so the released one-directional loss is another number


def test_gradient_in_float64(pair):
    z1, z2 = (z.double().requires_grad_() for z in pair)
    assert torch.autograd.gradcheck(lambda a, b: nt_xent(a, b, 0.5), (z1, z2))
    assert torch.autograd.gradcheck(lambda a, b: nt_xent(a, b, 0.5, False), (z1, z2))


# -- supervised contrast -------------------------------------------------------------------------


def slow_supcon(z, labels, temperature):
    """The formula, term by term."""
    z = [row / row.norm() for row in z]
    losses = []
    for i in range(len(z)):
        others = [a for a in range(len(z)) if a != i]
        alike = [p for p in others if labels[p] == labels[i]]
        total = sum(torch.exp(z[i] @ z[a] / temperature) for a in others)
        if alike:
            each = [torch.log(torch.exp(z[i] @ z[p] / temperature) / total) for p in alike]
            losses.append(-sum(each) / len(each))
    return sum(losses) / len(losses)


LABELS = {
    "four of each": [0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1, 2],
    "uneven": [3, 3, 3, 3, 3, 7, 7],
    "one alone": [0, 0, 1, 2, 2, 0],
    "all alike": [5, 5, 5, 5, 5],
}


@pytest.mark.parametrize("labels", LABELS.values(), ids=LABELS)
@pytest.mark.parametrize("temperature", [0.07, 1.5])
@pytest.mark.parametrize("constant", [False, True])
def test_supcon_is_the_slow_loop_in_value_and_gradient(labels, temperature, constant):
    with seeded(1):
        one = torch.randn(len(labels), 3, dtype=torch.float64)
    one = (one[:1].expand_as(one) if constant else one).clone().requires_grad_()
    two, labels = one.detach().clone().requires_grad_(), torch.tensor(labels)
    fast, slow = supcon(one, labels, temperature), slow_supcon(two, labels, temperature)
    torch.testing.assert_close(fast, slow)
    if constant:
        assert fast.item() == pytest.approx(math.log(len(labels) - 1))
    fast.backward()
    slow.backward()
    torch.testing.assert_close(one.grad, two.grad)


def test_supcon_by_hand():
    # cosines of the first row: 0, -1, 0; its own kind are rows 1 and 3
    z = torch.tensor([[1.0, 0.0], [0.0, 2.0], [-3.0, 0.0], [0.0, -1.0]])
    labels = torch.tensor([0, 0, 1, 0])
    first = math.log(2 + math.exp(-1))  # both of its kind have cosine 0
    second = third = math.log(2 + math.exp(-1)) + 0.5  # cosines 0 and -1 to its own kind
    assert supcon(z, labels, 1.0).item() == pytest.approx((first + second + third) / 3)


@pytest.mark.parametrize("temperature", [0.1, 2.0])
def test_with_two_views_of_each_image_supcon_is_nt_xent(pair, temperature):
    one = [z.double().requires_grad_() for z in pair]
    two = [z.double().requires_grad_() for z in pair]
    a = supcon(torch.cat(one), torch.arange(5).repeat(2), temperature)
    b = nt_xent(*two, temperature)
    torch.testing.assert_close(a, b)
    a.backward()
    b.backward()
    for mine, theirs in zip(one, two):
        torch.testing.assert_close(mine.grad, theirs.grad)


def test_supcon_without_any_pair_is_zero_and_pulls_nothing(pair):
    z = pair[0].requires_grad_()
    loss = supcon(z, torch.arange(5))
    loss.backward()
    assert loss.item() == 0 and not z.grad.any()


def test_gradient_of_supcon_in_float64(pair):
    z = torch.cat(pair).double().requires_grad_()
    labels = torch.tensor([0, 1, 1, 2, 0, 0, 3, 2, 2, 2])
    assert torch.autograd.gradcheck(lambda a: supcon(a, labels, 0.5), (z,))


# -- InfoNCE -----------------------------------------------------------------------------------


@pytest.mark.parametrize("b, r, constant", [(5, 3, False), (2, 9, False), (3, 4, True)])
def test_info_nce_is_the_formula_in_value_and_gradient(b, r, constant):
    with seeded(b):
        z, keys, queue = (F.normalize(torch.randn(n, 6).double(), dim=1) for n in (b, b, r))
    z = (z[:1].repeat(b, 1) if constant else z).requires_grad_()

    def loop(z):
        total = 0
        for f, key in zip(z, keys):
            own, others = (
                ((f * key).sum() / 0.3).exp(),
                [((f * q).sum() / 0.3).exp() for q in queue],
            )
            total = total - (own / (own + sum(others))).log()
        return total / b

    torch.testing.assert_close(info_nce(z, keys, queue, 0.3), loop(z))
    fast, slow = info_nce(z, keys, queue, 0.3), loop(z)
    torch.testing.assert_close(*(torch.autograd.grad(one, z)[0] for one in (fast, slow)))
    assert torch.autograd.gradcheck(lambda f: info_nce(f, keys, queue, 0.3), z)


def test_key_logits_of_several_experts_are_those_of_each():
    with seeded(0):
        z, keys, queue = torch.randn(3, 5, 4), torch.randn(3, 5, 4), torch.randn(3, 7, 4)
    found = key_logits(z, keys, queue, 0.3)
    assert found.shape == (3, 5, 8)
    for k in range(3):
        for b in range(5):
            scores = [(z[k, b] * u).sum() / 0.3 for u in (keys[k, b], *queue[k])]
            torch.testing.assert_close(found[k, b], torch.stack(scores))


def test_info_nce_of_equal_cosines_is_the_log_of_their_number():
    z = torch.ones(3, 1)
    assert info_nce(z, z, torch.ones(7, 1)).item() == pytest.approx(math.log(8))
    assert info_nce(z, z, torch.ones(0, 1)).item() == 0


def test_class_contrast_by_hand():
    x = torch.tensor([[0.9, 0.1], [0.6, 0.4]], dtype=torch.float64)
    y = torch.tensor([[0.5, 0.5], [0.2, 0.8]], dtype=torch.float64)
    cosine = [
        [sum(x[:, k] * y[:, j]) / (x[:, k].norm() * y[:, j].norm()) for j in (0, 1)] for k in (0, 1)
    ]
    each = [math.log(sum(math.exp(c) for c in row)) - row[k] for k, row in enumerate(cosine)]
    assert class_contrast(x.log(), y.log()).item() == pytest.approx(float(sum(each)) / 2)
    assert class_contrast(y.log(), x.log()).item() != pytest.approx(float(sum(each)) / 2)


@pytest.mark.parametrize("k, least", [(10, 1.461), (2, 0.313)])
def test_class_contrast_runs_from_certain_to_uniform(k, least):
    certain = torch.where(torch.eye(k).bool(), 0.0, -200.0).repeat(3, 1)
    assert class_contrast(certain, certain).item() == pytest.approx(least, abs=5e-4)
    uniform = torch.full((7, k), -math.log(k))
    assert class_contrast(uniform, uniform).item() == pytest.approx(math.log(k))


# -- spreading ---------------------------------------------------------------------------------


def slow_spreading(z1, z2, temperature):
    """The formula, term by term; what is looked for gets no gradient."""
    z = [*z1, *z2]
    total = 0.0
    for i in range(len(z)):
        partner = (i + len(z1)) % len(z)
        e = {j: torch.exp(z[i] @ z[j].detach() / temperature) for j in range(len(z)) if j != i}
        p = {j: value / sum(e.values()) for j, value in e.items()}
        total = total - torch.log(p[partner])
        for j in p:
            if j != partner:
                total = total - torch.log(1 - p[j])
    return total / len(z)


@pytest.mark.parametrize("temperature", [0.1, 1.0])
@pytest.mark.parametrize("rows, dim", [(2, 3), (5, 2), (7, 4)])  # odd; more rows than dimensions
def test_spreading_and_its_gradient_are_those_of_the_loop(rows, dim, temperature):
    with seeded(rows):
        pair = torch.randn(2, rows, dim, dtype=torch.float64)
    pair = F.normalize(pair, dim=2).requires_grad_()
    fast, slow = spreading(*pair, temperature), slow_spreading(*pair, temperature)
    torch.testing.assert_close(fast, slow, atol=2e-5, rtol=1e-6)
    (ours,), (wanted,) = (torch.autograd.grad(loss, pair) for loss in (fast, slow))
    torch.testing.assert_close(ours, wanted, atol=2e-5, rtol=1e-6)


def test_spreading_by_hand():
    # two images on the axes, their views equal: products 1 and 0
    z = torch.eye(2)
    e = math.exp(1 / 0.5)
    found = -math.log(e / (e + 2)) - 2 * math.log(1 - 1 / (e + 2))
    assert spreading(z, z, 0.5).item() == pytest.approx(found)
    alike = F.normalize(torch.ones(4, 3), dim=1)
    assert spreading(alike, alike).item() == pytest.approx(math.log(7) - 6 * math.log(6 / 7))


def test_spreading_looks_for_what_it_does_not_move():
    """Of two views only the one that looks gets a gradient: the loss is not that of `nt_xent`."""
    with seeded(0):
        z = F.normalize(torch.randn(2, 4, 3, dtype=torch.float64), dim=2)
    first = z[0].clone().requires_grad_()
    (moved,) = torch.autograd.grad(spreading(first, z[1], 0.5), first)
    step = 1e-6
    for k in range(3):  # the first row looks; as what is looked for it stands still
        shifted = z.clone()
        shifted[0, 0, k] += step
        rows = torch.cat([*z])
        looking = torch.cat([*shifted]) @ rows.T / 0.5
        own = torch.eye(8, dtype=torch.bool)
        p = looking.masked_fill(own, -torch.inf).softmax(1)
        partner = torch.arange(8).roll(4)
        hit = p[range(8), partner]
        loss = -(hit.log() + (1 - p).log().sum(1) - (1 - hit).log()).mean()
        change = (loss - spreading(*z, 0.5)) / step
        assert moved[0, k].item() == pytest.approx(change.item(), abs=1e-4)


@pytest.mark.parametrize("temperature", [1.0, 0.1, 0.001])
def test_spreading_is_finite_even_if_another_image_is_nearer_by_far(temperature):
    z1, z2 = torch.eye(3), -torch.eye(3)
    z1[1] = z1[0]
    pair = torch.stack([z1, z2]).requires_grad_()
    loss = spreading(*pair, temperature)
    (gradient,) = torch.autograd.grad(loss, pair)
    assert loss.isfinite() and gradient.isfinite().all()
