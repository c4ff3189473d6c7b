"""LARC, LARS and the schedules against numbers worked out by hand."""

import math

import pytest
import torch

from dcl.config import TrainConfig
from dcl.optim import LARC, LARS, ema, learning_rate, make_optimizer


def step(w, gradients, **settings):
    """A parameter after one step for each gradient."""
    p = torch.nn.Parameter(torch.tensor(w))
    optimizer = LARC([p], **settings)
    for g in gradients:
        p.grad = torch.tensor(g)
        optimizer.step()
    return p.detach(), optimizer


@pytest.mark.parametrize(
    ("gradient", "decay", "expected"),
    [
        # |p| = 5, |g| = 2: a = .001 * 5 / 2 = .0025; step = lr * a * g = 10 * .0025 * (0, 2)
        ([0.0, 2.0], 0.0, [3.0, 3.95]),
        ([0.0, 2e3], 0.0, [3.0, 3.95]),  # a share of the weight, whatever the gradient
        # a = .001 * 5 / (2 + .1 * 5) = .002; g + wd p = (.3, 2.4); step = 10 * .002 * that
        ([0.0, 2.0], 0.1, [3 - 0.006, 4 - 0.048]),
    ],
)
def test_larc_by_hand(gradient, decay, expected):
    p, optimizer = step([3.0, 4.0], [gradient], lr=10.0, weight_decay=decay)
    torch.testing.assert_close(p, torch.tensor(expected))
    assert optimizer.param_groups[0]["weight_decay"] == decay  # put back after the step


def test_larc_on_all_tensors_at_once_equals_one_after_the_other():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        weights, gradients = ([torch.randn(s) for s in ((3,), (2, 5), (4,), (6,))] for _ in "wg")
    weights[1], gradients[2], gradients[3] = torch.zeros(2, 5), torch.zeros(4), None

    def stepped(chosen):
        parameters = [torch.nn.Parameter(weights[k].clone()) for k in chosen]
        for p, k in zip(parameters, chosen):
            p.grad = gradients[k]
        LARC(parameters, lr=7.0, weight_decay=0.1).step()
        return parameters

    for together, k in zip(stepped(range(4)), range(4)):
        torch.testing.assert_close(together, stepped([k])[0])


def test_larc_momentum_gathers_scaled_gradients():
    # one dimension: a * g = trust * |p| * sign(g), so the size of g does not matter
    p, _ = step([1.0], [[5.0], [0.01]], lr=100.0, momentum=0.9)
    first = 1 - 100 * 0.001  # .9; the buffer holds .001
    second = first - 100 * (0.9 * 0.001 + 0.001 * first)
    torch.testing.assert_close(p, torch.tensor([second]))


def test_a_zero_weight_takes_the_raw_step_and_a_zero_gradient_none():
    p, _ = step([0.0, 0.0], [[1.0, -2.0]], lr=0.1, weight_decay=0.5)
    torch.testing.assert_close(p, torch.tensor([-0.1, 0.2]))
    p, _ = step([1.0, 2.0], [[0.0, 0.0]], lr=0.1, weight_decay=0.5)
    torch.testing.assert_close(p, torch.tensor([1.0, 2.0]))


def test_a_parameter_without_gradient_stands_still_whatever_momentum_and_decay_say():
    p = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
    optimizer = LARC([p], lr=1.0, momentum=0.9, weight_decay=0.1)
    optimizer.step()
    assert torch.equal(p.detach(), torch.tensor([1.0, 2.0]))
    assert not optimizer.state


def lars_by_loop(w, gradients, lr, wd, momentum=0.9, trust=0.001):
    """The released LARS, a tensor at a time, in its order of operations."""
    weights, memory = [p.clone() for p in w], [torch.zeros_like(p) for p in w]
    for step in gradients:
        for p, m, g in zip(weights, memory, step):
            if g is None:
                continue
            g = g.clone()
            if p.ndim > 1:
                g += wd * p
                if p.norm() > 0 and g.norm() > 0:
                    g *= trust * p.norm() / g.norm()
            m.mul_(momentum).add_(g)
            p.sub_(lr * m)
    return weights


def lars_case():
    """Matrices, a kernel, vectors, a zero matrix, and one without a gradient; three steps."""
    shapes = ((2, 5), (3,), (2, 1, 3, 3), (4,), (3, 2), (2, 2))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        weights = [torch.randn(s) for s in shapes]
        gradients = [[torch.randn(s) for s in shapes] for _ in range(3)]
    weights[4] = torch.zeros(3, 2)
    gradients[0][0], gradients[1][2] = torch.zeros(2, 5), 1e4 * gradients[1][2]
    for step in gradients:
        step[5] = None
    return weights, gradients


@pytest.mark.parametrize("wd", [0.0, 0.1])
def test_lars_is_the_slow_loop_also_after_a_resume(wd):
    weights, gradients = lars_case()
    config = TrainConfig(optimizer="lars", lr=7.0, weight_decay=wd)
    parameters = [torch.nn.Parameter(w.clone()) for w in weights]
    optimizer = make_optimizer([{"params": parameters}], config)
    assert type(optimizer) is LARS
    for n, step in enumerate(gradients):
        if n == 2:  # as `train` resumes: fresh objects, then the saved state
            saved = optimizer.state_dict()
            parameters = [torch.nn.Parameter(p.detach().clone()) for p in parameters]
            optimizer = make_optimizer([{"params": parameters}], config)
            optimizer.load_state_dict(saved)
        for p, g in zip(parameters, step):
            p.grad = None if g is None else g.clone()
        optimizer.step()
    for p, wanted in zip(parameters, lars_by_loop(weights, gradients, 7.0, wd)):
        torch.testing.assert_close(p.detach(), wanted)
    assert torch.equal(parameters[5].detach(), weights[5])


def test_lars_alone_on_vectors_is_sgd_without_decay():
    p = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
    optimizer = LARS([p], lr=0.1, weight_decay=0.5)
    p.grad = torch.tensor([3.0, -1.0])
    optimizer.step()
    torch.testing.assert_close(p.detach(), torch.tensor([0.7, 2.1]))
    assert optimizer.param_groups[0]["weight_decay"] == 0.5


def test_make_optimizer_and_its_groups():
    p, q = (torch.nn.Parameter(torch.ones(2)) for _ in range(2))
    groups = [{"params": [p]}, {"params": [q], "momentum": 0.0}]
    kinds = {"sgd": torch.optim.SGD, "larc": LARC, "lars": LARS}
    for name, kind in (kinds | {"adam": torch.optim.Adam, "rmsprop": torch.optim.RMSprop}).items():
        config = TrainConfig(optimizer=name, lr=0.3, weight_decay=0.01)
        optimizer = make_optimizer([dict(g) for g in groups], config)
        assert type(optimizer) is kind
        assert [g["lr"] for g in optimizer.param_groups] == [0.3, 0.3]
        assert [g["weight_decay"] for g in optimizer.param_groups] == [0.01, 0.01]
        if name in kinds:
            assert [g["momentum"] for g in optimizer.param_groups] == [0.9, 0.0]


def test_rmsprop_by_hand():
    p = torch.nn.Parameter(torch.tensor([1.0, 1.0]))
    config = TrainConfig(optimizer="rmsprop", lr=0.1, momentum=0.5)  # which is not for rmsprop
    optimizer = make_optimizer([{"params": [p]}], config)
    p.grad = torch.tensor([4.0, -0.01])
    optimizer.step()  # the mean square is .1 g^2, so the step is lr / sqrt(.1), whatever g
    first = 0.1 / math.sqrt(0.1)
    torch.testing.assert_close(p.detach(), torch.tensor([1 - first, 1 + first]))
    p.grad = torch.tensor([2.0, 0.0])
    optimizer.step()  # .9 * .1 * 16 + .1 * 4
    second = 0.1 * 2 / math.sqrt(0.9 * 1.6 + 0.4)
    torch.testing.assert_close(p.detach(), torch.tensor([1 - first - second, 1 + first]))


def test_warmup_and_cosine_by_hand():
    config = TrainConfig(
        epochs=4, lr=4.8, schedule="cosine", final_lr=0.8, warmup_epochs=1, warmup_lr=0.8
    )
    lr = learning_rate(config, steps_per_epoch=4)
    # warm-up: .8 + 4 * step / 4; then .8 + 4 * (1 + cos(pi t / 12)) / 2
    assert [round(lr(s), 4) for s in range(4)] == [0.8, 1.8, 2.8, 3.8]
    assert lr(4) == pytest.approx(4.8)
    assert lr(8) == pytest.approx(0.8 + 2 * (1 + math.cos(math.pi / 3)))  # 3.8
    assert lr(10) == pytest.approx(2.8)  # half-way
    assert lr(12) == pytest.approx(0.8 + 2 * (1 - 0.5))  # 1.8
    assert lr(15) == pytest.approx(0.8 + 2 * (1 + math.cos(11 * math.pi / 12)))
    assert lr(16) == pytest.approx(0.8)


def test_constant_and_steps():
    assert learning_rate(TrainConfig(lr=0.1), 5)(123) == 0.1
    config = TrainConfig(epochs=9, lr=1.0, schedule="step", milestones=(3, 6), gamma=0.1)
    lr = learning_rate(config, steps_per_epoch=10)
    assert [lr(29), lr(30), lr(59), lr(60)] == pytest.approx([1, 0.1, 0.1, 0.01])


def test_a_run_shorter_than_its_warmup_only_warms_up():
    lr = learning_rate(TrainConfig(epochs=1, lr=1.0, schedule="cosine", warmup_epochs=2), 10)
    assert [lr(0), lr(5), lr(9)] == pytest.approx([0, 0.25, 0.45])


@pytest.mark.parametrize(
    "wrong",
    [{"epochs": -1}, {"batch_size": 1}, {"lr": -0.1}, {"lr": math.nan}, {"weight_decay": -1e-3}],
)
def test_numbers_out_of_range_are_refused(wrong):
    (name,) = wrong
    with pytest.raises(ValueError, match=f"{name} must be at least"):
        TrainConfig(**wrong)


@pytest.mark.parametrize("name", ["optimizer", "schedule", "precision"])
def test_unknown_names_are_refused(name):
    with pytest.raises(ValueError, match=f"{name} must be one of .*; got 'other'"):
        TrainConfig(**{name: "other"})


def test_ema_moves_by_a_share_and_copies_buffers():
    target, source = torch.nn.BatchNorm1d(2), torch.nn.BatchNorm1d(2)
    with torch.no_grad():
        source.weight.fill_(3.0)
        source.running_mean.fill_(7.0)
    ema(target, source, 0.9)
    torch.testing.assert_close(target.weight, torch.full((2,), 1.2))
    torch.testing.assert_close(target.running_mean, torch.full((2,), 7.0))
    ema(target, torch.nn.BatchNorm1d(2), 0.5, buffers=False)
    torch.testing.assert_close(target.weight, torch.full((2,), 1.1))
    torch.testing.assert_close(target.running_mean, torch.full((2,), 7.0))


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_a_large_network_has_one_kernel_for_its_step_and_it_is_the_same_step(name):
    config = TrainConfig(epochs=1, optimizer=name, lr=0.01, momentum=0.9, weight_decay=1e-3)
    begin = torch.linspace(-1, 1, 1001 * 300).view(1001, 300)
    large, small = (torch.nn.Parameter(begin[:rows].clone()) for rows in (1001, 1000))
    fused, loop = (make_optimizer([{"params": [w]}], config) for w in (large, small))
    assert fused.defaults["fused"] and not loop.defaults["fused"]
    for step in range(5):
        large.grad, small.grad = (torch.sin(3 * w.detach() + step) for w in (large, small))
        fused.step()
        loop.step()
    torch.testing.assert_close(large[:1000], small, rtol=1e-5, atol=1e-6)
    assert (large - begin).abs().max() > 0.01
