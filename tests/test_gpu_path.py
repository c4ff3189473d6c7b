"""The steps of every method on a GPU that is not there: no host read, nothing left on the CPU.

PyTorch's fake tensors have shapes, dtypes and devices but no values, so an epoch of training on
"cuda" can be gone through anywhere. What needs a value has none to look at: a loss read with
`.item()`, a mask as an index, `unique`, a `bincount` would each make a real GPU wait for the host
in every step. So would a copy from the host's memory, which `Watch` looks for.
"""

import importlib
import pkgutil
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)
from torch.cuda.amp import common
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import dcl.recipes
from dcl import train as loop
from dcl.cluster import kmeans, neighbors
from dcl.config import TrainConfig, with_stages
from dcl.methods import scan, simclr, temi
from dcl.objective import Objective
from dcl.optim import make_optimizer
from dcl.recipes import recipe
from dcl.train import batches, extract, train
from dcl.views import SCAN_STRONG, SWAV_VIEW

aten = torch.ops.aten


class Watch(TorchDispatchMode):
    """Refuse copies between host and GPU during steps; give what the host draws a value."""

    steps = False

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
        kinds = {t.device.type for t in tensors}
        if func == aten._local_scalar_dense.default and kinds == {"cpu"}:
            return {torch.bool: True, torch.int64: 0}.get(args[0].dtype, 0.5)
        if func == aten._fused_sgd_.default:  # the one operation without a fake form
            assert kinds == {"cuda"}
            return None
        out = func(*args, **kwargs)
        made = {t.device.type for t in tree_leaves(out) if isinstance(t, torch.Tensor)}
        if self.steps and kinds | made >= {"cpu", "cuda"}:
            copy = func in (aten._to_copy.default, aten.copy_.default)
            waits = not kwargs.get("non_blocking", True in args[2:3])
            # a number of the host's is handed to a kernel as an argument; more is copied
            if waits if copy else any(t.ndim for t in tensors if t.device.type == "cpu"):
                raise AssertionError(f"{func} makes the GPU wait: {kinds} to {made}")
        return out


def like(t):
    return torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device="cuda")


def epoch(monkeypatch, objective, config, channels=3, steps=1, capability=(9, 0)):
    """An epoch on a fake GPU; returns the line of `train` that first read a number."""
    shape = (64 * steps, channels, 32, 32) if channels else (64 * steps, 12)  # or vectors
    trained, served = [], 0

    def remember(groups, config):
        trained.extend(p for g in groups for p in g["params"])
        return make_optimizer(groups, config)

    def backward(loss):  # the real one needs a real GPU's threads: here everybody gets a gradient
        assert loss.device.type == "cuda" and loss.ndim == 0 and loss.requires_grad
        for p in trained:
            p.grad = torch.empty_like(p)

    def watched(*args):
        nonlocal served
        watch.steps = True
        for batch in batches(*args):
            served += 1
            yield batch
        watch.steps = False

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    monkeypatch.setattr(common, "amp_definitely_not_available", lambda: False)
    monkeypatch.setattr(loop, "make_optimizer", remember)
    monkeypatch.setattr(loop, "batches", watched)
    monkeypatch.setattr(torch.Tensor, "backward", backward)
    monkeypatch.setattr(objective, "to", lambda device: objective)
    monkeypatch.setattr(objective, "before_epoch", lambda epoch: None)
    monkeypatch.setattr(objective, "finished", lambda: False)  # read once an epoch, not in a step
    monkeypatch.setattr(objective, "length", lambda n: n)
    monkeypatch.setattr(objective, "order", lambda n: torch.arange(n))
    with FakeTensorMode(), Watch() as watch:
        kind = torch.uint8 if channels else torch.float32
        images = torch.empty(shape, dtype=kind, device="cuda")
        for m in objective.modules():  # what `.to` does to a real module
            for name, p in m._parameters.items():
                if p is not None:
                    m._parameters[name] = nn.Parameter(like(p), requires_grad=p.requires_grad)
            for name, b in m._buffers.items():
                if b is not None:
                    m._buffers[name] = like(b)
        for name in {"images", "z"} & vars(objective).keys():
            setattr(objective, name, images)
        with pytest.raises(DataDependentOutputException) as caught:
            train(objective, images, replace(config, epochs=1, batch_size=64))
        assert served == steps
        watch.steps = True
        assert extract(objective.embed, images).device.type == "cuda"
    lines = [entry for entry in caught.traceback if entry.path.name == "train.py"]
    return str(lines[0].statement).strip()


READ = "mean = {name: float("  # between epochs


def pictures(channels=3):
    return torch.randint(256, (64, channels, 32, 32), dtype=torch.uint8)


SHARP = replace(SCAN_STRONG, size=32)
ON_FEATURES = ("temi",)  # of which no more than a network and a head is left
NAMES = {found.name for found in pkgutil.iter_modules(dcl.recipes.__path__)}
STEMS = sorted(NAMES - {*ON_FEATURES})
MULTI_CROP = (replace(SWAV_VIEW, size=32),) * 2 + (replace(SWAV_VIEW, size=16),) * 3
MORE = {  # what the smoke recipes do not go through
    "simclr": {"photos": {}, "smoke": {"symmetric": False}},
    "rotnet": {"shapes": {}},
    "swav": {"photos": {}, "smoke": {"views": MULTI_CROP}},
    "deepcluster": {"photos": {"width": 8}, "smoke": {"balance": "weight"}},
    "dac": {"paper": {"width": 8}},
    "lsdc": {"digits": {}, "photos": {}, "smoke": {"labeler": "sne", "threshold": 0.01}},
    "scan": {"photos": {"ema": "teacher"}, "smoke": {"balance": False, "strong": SHARP}},
}
CASES = [(stem, "smoke", {}, channels) for stem in STEMS for channels in (3, 1)]
CASES += [(stem, name, change, 3) for stem, of in MORE.items() for name, change in of.items()]
CASES += [("lsdc", "smoke", {"labeler": "l2", "threshold": 1.0}, 3)]


@pytest.mark.parametrize("stem,name,change,channels", CASES)
def test_nothing_in_a_step_waits_for_the_host(monkeypatch, stem, name, change, channels):
    config = with_stages(replace(recipe(stem, name), **change), lambda s: replace(s, batch_size=64))
    objective = importlib.import_module(f"dcl.methods.{stem}").model(pictures(channels), config)
    stage = getattr(config, {"scan": "selflabel", "spice": "fixmatch"}.get(stem, "train"))
    if getattr(config, "queue_length", 0):
        objective.queue.filled = config.queue_length  # full: codes are those of it and the batch
        assert objective.queue.full
    assert epoch(monkeypatch, objective, stage, channels).startswith(READ)


@pytest.mark.parametrize("change", [{}, {"scan_view": SHARP}])
def test_nor_in_a_step_of_scan(monkeypatch, change):
    config = replace(recipe("scan", "smoke"), **change)
    images = pictures()
    encoder = simclr.model(images, config.pretext).encoder
    objective = scan.Scan(encoder, images, torch.zeros(64, 20, dtype=torch.int64), config)
    assert epoch(monkeypatch, objective, config.scan).startswith(READ)


def test_nor_in_a_step_of_temi(monkeypatch):
    config = replace(recipe("temi", "smoke"), n_neighbors=5)
    z, neighbors = torch.randn(64, 12), torch.zeros(64, 5, dtype=torch.int64)
    objective = temi.Temi(z, neighbors, config)
    assert epoch(monkeypatch, objective, config.train, channels=0).startswith(READ)


class Small(Objective):
    """A linear layer; `lose` is the sabotage."""

    def __init__(self, lose):
        super().__init__()
        self.encoder, self.lose = nn.Linear(3, 4), lose
        self.register_buffer("table", torch.zeros(64))
        self.left = torch.zeros(64)  # no buffer: `.to` leaves it behind

    def forward(self, x, i):
        y = self.encoder(x.mean((2, 3))).float()
        return {"loss": self.lose(self, y, i)}

    def embed(self, x):
        return x


SABOTAGE = {
    "a number": lambda self, y, i: y.mean() / y.mean().item(),
    "a truth value": lambda self, y, i: y.mean() if y.mean() > 0 else y.sum(),
    "a mask": lambda self, y, i: y[y > 0].mean(),
    "nonzero": lambda self, y, i: y.mean() + len(self.table.nonzero()),
    "unique": lambda self, y, i: y.mean() + self.table.unique().sum(),
    "bincount": lambda self, y, i: y.mean() + i.bincount().sum(),
    "the shape from a tensor": lambda self, y, i: y.mean() + i.repeat_interleave(i).sum(),
    "to the host": lambda self, y, i: y.mean() + i.cpu().sum().to(y.device),
    "from the host": lambda self, y, i: y.mean() + torch.arange(3).to(y.device).sum(),
    "a list": lambda self, y, i: y.mean() + torch.tensor([1.0, 2.0], device=y.device).sum(),
    "rows of the host's": lambda self, y, i: y[torch.arange(3)].mean(),
    "no buffer": lambda self, y, i: (y[:, 0] + self.left).mean(),
    "made on the host": lambda self, y, i: (y[:, 0] + torch.ones(64)).mean(),
}


@pytest.mark.parametrize("name", SABOTAGE)
def test_a_step_that_waits_is_noticed(monkeypatch, name):
    config = TrainConfig()
    plain = Small(lambda self, y, i: y.mean() + self.table[i].sum())
    assert epoch(monkeypatch, plain, config, steps=2).startswith(READ)
    try:
        first = epoch(monkeypatch, Small(SABOTAGE[name]), config)
    except (AssertionError, DynamicOutputShapeException, RuntimeError) as error:
        text = str(error)
        assert any(word in text for word in ("makes the GPU wait", "device", "aten.")), text
    else:
        assert first.startswith("losses = objective(x, i)")


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "rmsprop", "larc", "lars"])
def test_float16_reads_whether_a_step_overflowed_on_the_gpu_where_it_can(monkeypatch, optimizer):
    plain = Small(lambda self, y, i: y.mean())
    config = TrainConfig(optimizer=optimizer, momentum=0.9, weight_decay=1e-4)
    first = epoch(monkeypatch, plain, config, capability=(7, 5))
    # LARC changes gradients before the step, so it must know first whether there is one, and
    # torch's RMSprop has no fused form that could be told on the GPU
    waits = optimizer in ("larc", "lars", "rmsprop")
    assert first.startswith("scaler.step(optimizer)" if waits else READ)


def test_k_means_and_neighbours_leave_the_gpu_alone():
    """Between epochs, but k-means++ has K - 1 steps and the search thousands of blocks."""
    with FakeTensorMode(), Watch() as watch:
        x = torch.empty(1000, 8, device="cuda")
        assert kmeans._plus_plus(x, 20).shape == (20, 8)  # one copy: all that was drawn
        watch.steps = True
        labels, _ = kmeans._assign(x, x[:20], False)
        assert labels.device.type == "cuda"
        sizes = torch.empty(20, dtype=torch.int64, device="cuda")
        assert kmeans._means(x, labels, sizes).shape == (20, 8)
        for metric in neighbors.METRICS:
            score, index = neighbors._search(x, x, 20, metric)
            assert score.shape == index.shape == (1000, 20) and index.device.type == "cuda"
