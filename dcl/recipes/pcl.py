"""PCL's settings by data set."""

from dataclasses import replace

from dcl.config import TrainConfig
from dcl.methods.pcl import Config
from dcl.views import DIGIT_VIEW, HAND_VIEW, PHOTO_VIEW

smoke = Config(  # every part of the method: an epoch of warm-up, two clusterings, a cut queue
    n_clusters=10,
    n_prototypes=(10, 20),
    encoder="small_cnn",
    width=8,
    stem="small",
    hidden=64,
    head_norm=True,
    dim=32,
    view=DIGIT_VIEW,
    queue_length=300,
    momentum=0.9,
    warmup=1,
    train=TrainConfig(2, 128, "adam", 3e-3, weight_decay=1e-4, schedule="cosine"),
)

# An epoch has only 14 steps: so the key network follows ten times as fast as the paper's, the queue
# is half of the set, and the first clustering waits until the features are worth it.
digits = Config(
    n_clusters=10,
    n_prototypes=(20, 40, 80),
    encoder="small_cnn",
    width=16,
    stem="small",
    hidden=128,
    head_norm=True,
    dim=64,
    view=DIGIT_VIEW,
    queue_length=1024,
    momentum=0.99,
    warmup=8,
    train=TrainConfig(20, 128, "adam", 3e-3, weight_decay=1e-4, schedule="cosine"),
)

photos = replace(
    digits,
    n_prototypes=(30, 60, 120),
    width=None,
    view=PHOTO_VIEW,
    queue_length=4096,
    warmup=10,
    train=replace(digits.train, epochs=40),
)

mnist = replace(
    digits,
    n_prototypes=(30, 60, 120),
    view=HAND_VIEW,
    queue_length=4096,
    warmup=1,
    train=replace(digits.train, epochs=4),
)

mnist_10k = replace(mnist, warmup=12, train=replace(mnist.train, epochs=30))

cifar10 = Config(
    n_clusters=10,
    n_prototypes=(250, 500, 1000),  # the author: between 100 and 1,000 for 50,000 images
    encoder="resnet18",
    stem="small",
    hidden=512,
    view=replace(PHOTO_VIEW, blur=0.0),
    queue_length=4096,
    momentum=0.99,
    temperature=0.1,
    train=TrainConfig(200, 256, lr=0.06, weight_decay=5e-4, schedule="cosine"),
)

paper = Config()
