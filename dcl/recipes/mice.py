"""MiCE's settings by data set."""

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

# A mixture that is to start within seconds: from k-means. Then the experts must decide, so tau is
# low; a low kappa would let the largest cluster eat the others. Settled on one seed.
digits = Config(
    dim=32,
    temperature=0.3,
    queue_length=512,
    momentum=0.99,
    warmup=6,
    view=DIGIT_VIEW,
    pretext=simclr.digits,
    train=TrainConfig(14, 128, "adam", 3e-3, weight_decay=1e-4, schedule="cosine"),
)

cifar10 = Config()

paper = Config()
