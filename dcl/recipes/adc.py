"""ADC's settings by data set. Without `l1`: a sum, it is stronger than the association."""

from dcl.config import TrainConfig
from dcl.methods.adc import Config
from dcl.views import DIGIT_VIEW, HAND_VIEW, PHOTO_VIEW, View

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

shapes = Config(
    n_clusters=6,
    width=16,
    dim=64,
    l1=0,
    kmeans_at=0.4,
    view=View(rotate=20, translate=0.12, zoom=(0.75, 1.25), flip=0.5, fill="border", negative=0.5),
    train=TrainConfig(20, 100, "adam", 3e-3, weight_decay=1e-3, schedule="cosine"),
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

mnist_10k = mnist

# the released ResNet is of 20 layers
cifar10 = Config(
    encoder="resnet18",
    l1=0,
    kmeans_at=0.25,
    view=PHOTO_VIEW,
    train=TrainConfig(200, 100, "adam", 1e-3, weight_decay=1e-3, schedule="cosine"),
)

paper = Config()  # what was released; it collapses
