"""Labels that may be wrong: which are believed, by whom, and how that changes in training."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class NoisyLabels(nn.Module):
    """Labels of n images, which of them are clean, and the confidence of each network (networks,n).

    Buffers `labels` int64, `clean` bool, `confidence` float32, equal in all processes.
    Source: Park et al. 2021 (RUC), section 3. Chapter: ruc.
    """

    def __init__(self, n: int, networks: int):
        super().__init__()
        self.labels = nn.Buffer(torch.zeros(n, dtype=torch.int64))
        self.clean = nn.Buffer(torch.zeros(n, dtype=torch.bool))
        self.confidence = nn.Buffer(torch.zeros(networks, n))

    def start(self, labels: Tensor, clean: Tensor) -> None:
        """Begin with labels and which of them are clean, both (n,)."""
        self.labels.copy_(labels)
        self.clean.copy_(clean)

    def weight(self, network: int, i: Tensor) -> Tensor:
        """A network's confidence in images i (B,), scaled to [0, 1] over all; all equal: 0."""
        every = self.confidence[network]
        return (every[i] - every.min()) / (every.max() - every.min()).clamp(min=1e-8)

    def targets(self, i: Tensor, own: Tensor, peer: Tensor, network: int) -> Tensor:
        """What a network is to answer to images i (B,), (B,K), not yet sharpened.

        own, peer (3,B,K): its probabilities, and those of its peer, which is `network`, of the
        images and of two views. Clean: the label, moved to the peer's answer to the image by its
        weight. Unclean: the mean of both networks' answers to the views.
        """
        y, w = F.one_hot(self.labels[i], own.shape[2]), self.weight(network, i)[:, None]
        refined, guess = (1 - w) * y + w * peer[0], (own + peer)[1:].mean(0) / 2
        return torch.where(self.clean[i][:, None], refined, guess)

    def learn(self, network: int, i: Tensor, p: Tensor, threshold: float) -> None:
        """Keep the confidence of a network that answers images i (B,) with probabilities p (B,K).

        An unclean one that it is sure of, from `threshold` on, becomes clean with its label, for
        good.
        """
        sure, label = p.max(1)
        self.confidence[network, i] = sure
        new = (sure >= threshold) & ~self.clean[i]
        self.labels[i] = torch.where(new, label, self.labels[i])
        self.clean[i] = self.clean[i] | new
