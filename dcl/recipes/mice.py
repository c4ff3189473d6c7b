"""MiCE's settings by data set."""

from dataclasses import replace

from dcl.config import TrainConfig
from dcl.methods.mice import Config
from dcl.recipes import simclr
from dcl.views import DIGIT_VIEW

smoke = Config(  # every part of the method: an epoch with given clusters, a cut queue
    dim=16,
    temperature=0.5,
    gate_temperature=0.5,
    queue_length=300,
    momentum=0.9,
    warmup=1,
    view=DIGIT_VIEW,
    pretext=simclr.smoke,
    train=TrainConfig(2, 128, "adam", 3e-3, weight_decay=1e-4, schedule="cosine"),
)

# A mixture that is to start within seconds: from k-means, for as long as gate and experts need to
# learn its clusters. Sharper than the paper's temperatures of 1, so that 200 steps decide; the key
# network is as slow as the paper's: a faster one loses clusters.
digits = Config(
    dim=32,
    temperature=0.3,
    gate_temperature=0.5,
    queue_length=512,
    warmup=8,
    view=DIGIT_VIEW,
    pretext=simclr.digits,
    train=TrainConfig(14, 128, "adam", 3e-3, weight_decay=1e-4, schedule="cosine"),
)

photos = replace(
    digits,
    view=simclr.photos.view,
    pretext=simclr.photos,
    train=replace(digits.train, lr=1e-3),
)

mnist = replace(
    digits,
    view=simclr.mnist.view,
    pretext=simclr.mnist,
    warmup=1,
    train=replace(digits.train, epochs=2),
)

# k-means for all but the last epoch: left alone for longer, clusters merge
mnist_10k = replace(mnist, pretext=simclr.mnist_10k, warmup=6, train=replace(mnist.train, epochs=7))

cifar10 = Config()

paper = Config()
