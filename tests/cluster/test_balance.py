"""The entropy of a mean prediction by hand; sampling and weights are tested with DeepCluster."""

import math

import pytest
import torch

from dcl.cluster.balance import mean_entropy


def test_entropy_is_that_of_the_mean_not_the_mean_of_entropies():
    certain = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    assert mean_entropy(certain.log().clamp(min=-500)).item() == pytest.approx(math.log(2))
    p = torch.tensor([[0.9, 0.1], [0.5, 0.5]])
    by_hand = -(0.7 * math.log(0.7) + 0.3 * math.log(0.3))
    assert mean_entropy(p.log()).item() == pytest.approx(by_hand)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_cluster_without_mass_has_a_finite_gradient(dtype):
    for far in (-50.0, -200.0, -2000.0):
        logits = torch.tensor([[0.3, 0.0, far]] * 4, dtype=dtype, requires_grad=True)
        entropy = mean_entropy(logits.log_softmax(1))
        (gradient,) = torch.autograd.grad(entropy, logits)
        assert entropy.isfinite() and gradient.isfinite().all()
        assert gradient[:, 2].abs().max() < 1e-18
    logits = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda y: mean_entropy(y.log_softmax(1)), logits)
