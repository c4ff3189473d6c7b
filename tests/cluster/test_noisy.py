"""Labels that may be wrong, by hand and by loop."""

import torch

from dcl.cluster.noisy import NoisyLabels


def known():
    found = NoisyLabels(4, 2)
    found.start(torch.tensor([0, 1, 2, 1]), torch.tensor([True, False, True, False]))
    return found


def test_a_weight_is_the_confidence_scaled_over_all_images():
    labels = known()
    assert not labels.weight(1, torch.tensor([0, 3])).any()  # nobody has been asked yet
    labels.confidence[1] = torch.tensor([0.4, 0.9, 0.6, 0.5])
    torch.testing.assert_close(labels.weight(1, torch.tensor([2, 1, 0])), torch.tensor([0.4, 1, 0]))
    assert not labels.weight(0, torch.tensor([2])).any()  # of the other network


def test_targets_are_those_of_a_loop():
    labels, draw = known(), torch.Generator().manual_seed(0)
    labels.confidence[1] = torch.rand(4, generator=draw)
    own, peer = (torch.randn(3, 3, 5, generator=draw).softmax(2) for _ in "ab")
    i = torch.tensor([2, 3, 0])
    found = labels.targets(i, own, peer, 1)
    every = labels.confidence[1].tolist()
    for b, row in enumerate(i.tolist()):
        w = (every[row] - min(every)) / (max(every) - min(every))
        for k in range(5):
            if labels.clean[row]:
                wanted = (1 - w) * (k == labels.labels[row]) + w * peer[0, b, k]
            else:
                wanted = (own[1, b, k] + own[2, b, k] + peer[1, b, k] + peer[2, b, k]) / 4
            torch.testing.assert_close(found[b, k], torch.as_tensor(wanted))


def test_who_is_sure_of_an_unclean_image_cleans_it_for_good():
    labels = known()
    p = torch.tensor([[0.0, 0.0, 1.0], [0.05, 0.05, 0.9], [0.2, 0.6, 0.2]])
    labels.learn(0, torch.tensor([0, 1, 3]), p, 0.9)
    assert labels.labels.tolist() == [0, 2, 2, 1]  # a clean one keeps its label
    assert labels.clean.tolist() == [True, True, True, False]
    torch.testing.assert_close(labels.confidence[0], torch.tensor([1.0, 0.9, 0, 0.6]))
    assert not labels.confidence[1].any()
    labels.learn(1, torch.tensor([1]), torch.tensor([[1.0, 0.0, 0.0]]), 0.9)
    assert labels.labels[1] == 2 and labels.clean[1]
