"""Ladder networks: M side by side are M on their own, and the decoder by hand."""

import pytest
import torch
from torch import nn

from dcl.nets.ladder import Ladders, combinator
from dcl.train import seeded


def make(models=3, noise=0.0, d=5, dims=(4, 6), k=2, inputs=None):
    with seeded(1):
        net = Ladders(inputs or nn.Flatten(), d, dims, k, models, noise).double()
        for p in [*net.shift, *net.mix]:
            p.data += 0.3 * torch.randn_like(p)
    return net


def batch(n=9, d=5):
    with seeded(2):
        return torch.randn(n, d, dtype=torch.float64)


def alone(net, m):
    """Network m of `make()` by itself."""
    one = make(1)
    for mine, theirs in zip(one.parameters(), net.parameters(), strict=True):
        axis = 1 if mine.ndim == 3 and mine.shape[0] == 10 else 0
        mine.data = theirs.data.narrow(axis, m, 1).clone()
    return one


def norm(z):
    return (z - z.mean(0)) / (z.var(0, unbiased=False) + 1e-10).sqrt()


def by_hand(net, m, x):
    """Clean activations and what is decoded of them, of network m, with matrices of its own."""
    up, down = [w[m] for w in net.up], [w[m] for w in net.down]
    z1 = norm(x @ up[0])
    z2 = norm((z1 + net.shift[0][m]).relu() @ up[1])
    z = [x, z1, z2, (z2 + net.shift[1][m]).relu() @ up[2]]
    u, found = z[3], []
    for level in (3, 2, 1, 0):
        a, u = net.mix[level][:, m], norm(u)
        mean = a[0] * torch.sigmoid(a[1] * u + a[2]) + a[3] * u + a[4]
        share = a[5] * torch.sigmoid(a[6] * u + a[7]) + a[8] * u + a[9]
        found.insert(0, (z[level] - mean) * share + mean)
        u = found[0] @ down[level - 1] if level else None
    return z, found


def test_every_network_is_the_one_by_hand():
    net, x = make(), batch()
    clean = net.encode(x)
    assert [tuple(z.shape) for z in clean] == [(9, 3, 5), (9, 3, 4), (9, 3, 6), (9, 3, 2)]
    found = net.decode(clean)
    for m in range(3):
        z, estimates = by_hand(net, m, x)
        for level in range(4):
            torch.testing.assert_close(clean[level][:, m], z[level])
            torch.testing.assert_close(found[level][:, m], estimates[level])


def test_networks_share_nothing_but_the_input():
    """Each gets the gradient that it would get alone, and none from the others."""
    net, x = make(), batch()
    target = [torch.randn_like(z) for z in net.encode(x)]
    error = net.error(net.encode(x, noisy=True), target, (3.0, 0.5, 0.1, 2.0))
    assert error.shape == (3,)
    error[1].backward()
    one = alone(net, 1)
    own = one.error(one.encode(x), [t[:, 1:2] for t in target], (3.0, 0.5, 0.1, 2.0))
    own.sum().backward()
    torch.testing.assert_close(error[1], own[0])
    for theirs, mine in zip(net.parameters(), one.parameters(), strict=True):
        axis = 1 if mine.ndim == 3 and mine.shape[0] == 10 else 0
        torch.testing.assert_close(theirs.grad.narrow(axis, 1, 1), mine.grad)
        for m in (0, 2):
            assert not theirs.grad.narrow(axis, m, 1).any()


def test_the_error_is_a_mean_for_each_layer_then_a_weighted_sum():
    net, x = make(), batch()
    clean, noisy = net.encode(x), net.encode(x[torch.arange(8, -1, -1)])
    weights, total = (3.0, 0.5, 0.1, 2.0), torch.zeros(3, dtype=torch.float64)
    for w, a, b in zip(weights, net.decode(noisy), clean, strict=True):
        for m in range(3):
            rows = [((a[i, m] - b[i, m]) ** 2).sum() / a.shape[2] for i in range(9)]
            total[m] += w * sum(rows) / 9
    torch.testing.assert_close(net.error(noisy, clean, weights), total)


def test_noise_is_added_to_all_layers_but_the_logits_and_each_network_has_its_own():
    net, x = make(noise=0.5, models=2, dims=(400, 300), d=500), batch(64, 500)
    with seeded(0):
        noisy = net.encode(x, noisy=True)
    clean = net.encode(x)
    first = noisy[0] - clean[0]
    assert first.std().item() == pytest.approx(0.5, rel=0.02)
    assert abs((first[:, 0] * first[:, 1]).mean()) < 0.01
    before = norm(torch.einsum("bma,mac->bmc", noisy[0], net.up[0]))
    assert (noisy[1] - before).std().item() == pytest.approx(0.5, rel=0.02)
    h = (noisy[2] + net.shift[1]).relu()  # the noise goes on to the next layer, the shift after it
    torch.testing.assert_close(noisy[3], torch.einsum("bma,mac->bmc", h, net.up[2]))
    assert torch.equal(net.encode(x)[1], clean[1])


def test_a_new_decoder_begins_with_a_share_that_depends_on_what_is_above():
    net = Ladders(nn.Flatten(), 5, (4,), 3, 2, 0.1)
    a = net.mix[0]
    assert a[[1, 6]].eq(1).all() and a.count_nonzero() == 2 * 2 * 5
    z, u = torch.randn(7, 2, 5), torch.randn(7, 2, 5)
    assert not combinator(z, u, a).any()  # m and v are 0: nothing of the noisy value passes yet
    a = torch.zeros(10, 2, 5)
    a[4], a[9] = 2.0, 1.0  # m = 2, v = 1
    torch.testing.assert_close(combinator(z, u, a), z)
    a[9] = 0.0
    torch.testing.assert_close(combinator(z, u, a), torch.full_like(z, 2.0))


def test_features_are_the_last_hidden_layer_of_all_and_an_image_has_its_own_in_evaluation():
    net, x = make(), batch()
    for _ in range(3):
        net.encode(x)
        net.encode(x, noisy=True)
    net.eval()
    features = net(x)
    assert features.shape == (9, net.out_dim) == (9, 18)
    torch.testing.assert_close(features, (net.encode(x)[2] + net.shift[1]).relu().flatten(1))
    torch.testing.assert_close(net(x[3:4]), features[3:4])


def test_the_statistics_of_clean_and_noisy_passes_are_kept_apart():
    net, x = make(), batch()
    at = {False: net.clean[0], True: net.noisy[0]}
    for noisy, mine in at.items():
        before = {n: norm.running_mean.clone() for n, norm in at.items()}
        net.encode(x, noisy)
        assert not torch.equal(mine.running_mean, before[noisy])
        assert torch.equal(at[not noisy].running_mean, before[not noisy])


def test_inputs_are_left_as_they_are():
    class Frozen(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(5).double()

        def forward(self, x):
            return self.norm(x)

    net = make(inputs=Frozen())
    net.train()
    assert net.training and not net.inputs.training and not net.inputs.norm.training
    net.encode(batch())[-1].sum().backward()
    assert all(p.grad is None and not p.requires_grad for p in net.inputs.parameters())
    assert not net.inputs.norm.running_mean.any()
