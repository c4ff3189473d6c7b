"""SwAV's settings by data set."""

from dataclasses import replace

from dcl.config import TrainConfig
from dcl.methods.swav import Config
from dcl.views import DIGIT_VIEW, HAND_VIEW, PHOTO_VIEW, SWAV_VIEW, View

_SHAPE = View(rotate=180, zoom=(0.8, 1.25), flip=0.5, jitter=(0.4, 0.4, 0.4, 0.5), gray=0.5)

smoke = Config(  # every part of the method: small crops, a queue, prototypes that unfreeze
    n_clusters=10,
    n_prototypes=30,
    encoder="small_cnn",
    width=8,
    stem="small",
    hidden=128,
    dim=64,
    views=(DIGIT_VIEW, DIGIT_VIEW, replace(DIGIT_VIEW, size=12)),
    freeze_steps=2,
    queue_length=128,
    queue_start=0,
    train=TrainConfig(2, 128, "larc", lr=12, weight_decay=1e-6, schedule="cosine"),
)

# LARC scales a step by |weights| / |gradient| / 1,000, so a learning rate of 12 is ordinary. The
# prototypes are frozen for an epoch, as in the paper.
digits = Config(
    n_clusters=10,
    n_prototypes=30,
    encoder="small_cnn",
    width=24,
    stem="small",
    hidden=128,
    dim=64,
    views=(DIGIT_VIEW, DIGIT_VIEW),
    freeze_steps=14,
    train=TrainConfig(20, 128, "larc", lr=12, weight_decay=1e-6, schedule="cosine"),
)

shapes = Config(
    n_clusters=6,
    n_prototypes=30,
    encoder="small_cnn",
    stem="small",
    hidden=128,
    dim=64,
    views=(_SHAPE, _SHAPE),
    freeze_steps=14,
    train=TrainConfig(14, 128, "larc", lr=12, weight_decay=1e-6, schedule="cosine"),
)

photos = Config(
    n_clusters=10,
    n_prototypes=60,
    encoder="small_cnn",
    stem="small",
    hidden=128,
    dim=64,
    views=(PHOTO_VIEW, PHOTO_VIEW),
    freeze_steps=14,
    train=TrainConfig(40, 128, "larc", lr=3, weight_decay=1e-6, schedule="cosine"),
)

mnist = Config(
    n_clusters=10,
    n_prototypes=30,
    encoder="small_cnn",
    width=16,
    stem="small",
    hidden=128,
    dim=64,
    views=(HAND_VIEW, HAND_VIEW),
    freeze_steps=94,
    train=TrainConfig(4, 128, "larc", lr=12, weight_decay=1e-6, schedule="cosine"),
)

cifar10 = Config(
    n_clusters=10,
    n_prototypes=300,
    encoder="resnet18",
    stem="small",
    views=(replace(SWAV_VIEW, size=32, scale=(0.2, 1)),) * 2,
    freeze_steps=195,
    train=TrainConfig(
        200, 256, "larc", lr=0.6, weight_decay=1e-6, schedule="cosine", final_lr=0.0006
    ),
)

paper = Config()
