"""MoCo's pair and queue: what moves, when, and by how much."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from dcl.cluster.contrast import info_nce
from dcl.cluster.moco import MoCo
from dcl.train import seeded


def make(length=9):
    encoder = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(4))
    with seeded(0):
        return MoCo(encoder, nn.Linear(4, 3), 3, length, 4, momentum=0.75)


@pytest.fixture
def x():
    with seeded(1):
        return torch.rand(4, 1, 2, 2)


def test_the_key_network_starts_equal_and_has_no_gradient(x):
    moco = make()
    torch.testing.assert_close(moco.embed(x), moco.embed_key(x))
    moco.contrast(moco.embed(x), moco.embed_key(x), 0.2).backward()
    assert all(p.grad is None and not p.requires_grad for p in moco.key.parameters())
    assert all(p.grad is not None for p in moco.query().parameters())
    assert len(list(moco.query().parameters())) == len(list(moco.key.parameters()))


def test_the_key_network_follows_by_a_share_and_keeps_its_own_statistics(x):
    moco = make()
    with torch.no_grad():
        moco.head.bias.add_(8.0)
        moco.encoder[1].running_mean.fill_(7.0)
    before = moco.key[1].bias.clone()
    moco.contrast(moco.embed(x), moco.embed_key(x + 1), 0.2)
    moco.after_step()
    torch.testing.assert_close(moco.key[1].bias, before + 2)
    seen = 0.1 * (x + 1).flatten(1).mean(0)  # a tenth of what the key network saw
    torch.testing.assert_close(moco.key[0][1].running_mean, seen)


def test_keys_become_negatives_of_the_next_step_only(x):
    moco = make()
    start, z, keys = moco.queue.rows[0].clone(), moco.embed(x), moco.embed_key(x.flip(3))
    torch.testing.assert_close(start.norm(dim=1), torch.ones(8))  # two whole batches of directions
    loss = moco.contrast(z, keys, 0.2)
    torch.testing.assert_close(loss, info_nce(z, keys, start, 0.2))
    assert torch.equal(moco.queue.rows[0], start)
    moco.after_step()
    assert torch.equal(moco.queue.rows[0], torch.cat([keys, start[:4]]))


def test_several_experts_have_a_queue_each_and_one_embedding(x):
    head = nn.Sequential(nn.Linear(4, 6), nn.Unflatten(1, (2, 3)))
    with seeded(0):
        moco = MoCo(nn.Sequential(nn.Flatten(), nn.BatchNorm1d(4)), head, 3, 9, 4, 0.75, experts=2)
    z, keys, start = moco.embed(x), moco.embed_key(x), moco.queue.rows.clone()
    assert start.shape == (2, 8, 3) and not torch.equal(*start)
    torch.testing.assert_close(keys.norm(dim=2), torch.ones(4, 2))
    torch.testing.assert_close(z, keys.flatten(1) / 2**0.5)  # equal networks
    moco.latest = keys.transpose(0, 1)
    moco.after_step()
    for k in range(2):
        assert torch.equal(moco.queue.rows[k], torch.cat([keys[:, k], start[k, :4]]))


def test_embeddings_have_length_one_in_float32_under_autocast(x):
    moco = make()
    with torch.autocast("cpu", torch.bfloat16):
        for z in (moco.embed(x), moco.embed_key(x)):
            assert z.dtype == torch.float32
            torch.testing.assert_close(z, F.normalize(z, dim=1))


def test_a_queue_shorter_than_a_batch_is_refused():
    with pytest.raises(ValueError, match="queue_length must be at least 4, a batch; got 3"):
        make(3)
