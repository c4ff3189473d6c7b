"""LSD-C's settings by data set."""

from dcl.config import TrainConfig, with_epochs
from dcl.methods.lsdc import Config
from dcl.recipes import rotnet, simclr
from dcl.views import CROP_FLIP, DIGIT_VIEW, View

smoke = Config(
    labeler="knn",
    k=6,
    threshold=0.7,
    ramp=10,
    view=DIGIT_VIEW,
    clean_view=View(),
    frozen=(),
    pretext=simclr.smoke,
    train=TrainConfig(3, 32, "adam", 5e-3),
)

# On top of SimCLR's embedding the head needs a learning rate of its own: thirty times that of the
# features, which should hardly move. "0" is the encoder; only SimCLR's projection head is trained.
digits = Config(
    threshold=0.7,
    ramp=10,
    view=DIGIT_VIEW,
    clean_view=View(),
    frozen=("0",),
    head_rate=30,
    start="kmeans",
    pretext=simclr.digits,
    train=TrainConfig(12, 128, "adam", 3e-4, schedule="cosine"),
)

shapes = Config(
    n_clusters=6,
    threshold=0.7,
    ramp=10,
    view=simclr.shapes.view,
    clean_view=View(),
    frozen=("0",),
    head_rate=30,
    pretext=simclr.shapes,
    train=TrainConfig(12, 128, "adam", 3e-4, schedule="cosine"),
)

photos = Config(
    threshold=0.5,
    ramp=10,
    view=CROP_FLIP,
    clean_view=View(),
    frozen=("0",),
    head_rate=30,
    pretext=simclr.photos,
    train=TrainConfig(12, 128, "adam", 3e-4, schedule="cosine"),
)

# enough images to train the last layers of the encoder, too
mnist = Config(
    threshold=0.6,
    ramp=3,
    view=simclr.mnist.view,
    clean_view=View(),
    frozen=("0.1.0", "0.1.1", "0.1.4", "0.1.5"),
    head_rate=30,
    pretext=simclr.mnist,
    train=TrainConfig(4, 128, "adam", 3e-4, schedule="cosine"),
)

cifar10 = Config(pretext=rotnet.cifar10, train=with_epochs(Config.train, 60))

paper = Config()
