"""ADC's settings by data set. Without `l1`: with its released weight networks may collapse."""

from dataclasses import replace

from dcl.config import TrainConfig
from dcl.methods.adc import Config
from dcl.views import DIGIT_VIEW, HAND_VIEW, PHOTO_VIEW

smoke = Config(
    width=16,
    dim=16,
    l1=0,
    kmeans_at=0.5,
    view=DIGIT_VIEW,
    train=TrainConfig(2, 64, "adam", 3e-3),
)

# Until k-means places the centroids, some digits have two groups of them, and others none.
digits = Config(
    width=16,
    dim=64,
    l1=0,
    kmeans_at=1 / 3,
    view=DIGIT_VIEW,
    train=TrainConfig(30, 100, "adam", 3e-3, weight_decay=1e-3, schedule="cosine"),
)

photos = Config(
    l1=0,
    kmeans_at=1 / 3,
    view=PHOTO_VIEW,
    train=TrainConfig(30, 100, "adam", 1e-3, weight_decay=1e-3, schedule="cosine"),
)

mnist = Config(
    width=16,
    dim=64,
    l1=0,
    kmeans_at=0.4,
    view=HAND_VIEW,
    train=TrainConfig(5, 100, "adam", 3e-3, weight_decay=1e-3, schedule="cosine"),
)

# five epochs are far too few of 10,000 images
mnist_10k = replace(mnist, kmeans_at=1 / 3, train=replace(mnist.train, epochs=15))

# the released ResNet is of 20 layers
cifar10 = Config(
    encoder="resnet18",
    l1=0,
    kmeans_at=0.25,
    view=PHOTO_VIEW,
    train=TrainConfig(200, 100, "adam", 1e-3, weight_decay=1e-3, schedule="cosine"),
)

paper = Config()  # the released flags
