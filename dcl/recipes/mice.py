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

cifar10 = Config()

paper = Config()
