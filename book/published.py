"""What others report, for the tables: a line for each method and set that its paper is known for.

A score stands here only if we read it: in the release of the paper, its log or README, or in the
repository that the line names. Papers that we have not at hand have none.
"""

from typing import NamedTuple


class Published(NamedTuple):
    """What others report of a method on a data set."""

    method: str
    data: str  # as recorded results call it; or a set that no chapter loads
    scores: dict[str, str]  # as printed there, the main one first; {}: not read
    source: str = ""
    profile: str = ""  # to run it: paper has the schedule published for these images, gpu another
    chapter: str = ""  # the one that runs it, if it is not named after the method

    def __str__(self) -> str:
        told = ", ".join(f"{metric} {value}" for metric, value in self.scores.items())
        return f"{told}: {self.source}" if told else "not read here"


TOY = "the paper, in IDEC-toy's README"
LOG = "last epoch of the author's log"
README = "README of the release"
PROPOS = "the paper, in a table of ProPos"
THEIRS = "ResNet-34, train and test merged, a table in the README of ProPos' release"
TABLE = "in a table of TSUC's paper"
PAGE = "its page on Papers with Code; learned from train, scored on test"

PUBLISHED = [
    Published("dec", "mnist", {"ACC": ".912 ± .047"}, "DEC-keras, 10 seeds", "paper"),
    Published("dec", "STL-10 (HOG)", {}),
    Published("dec", "Reuters-10k", {"ACC": ".778"}, "DEC-keras, 10 seeds"),
    Published("idec", "mnist", {"ACC": ".881"}, TOY, "paper", "dec"),
    Published("idec", "USPS", {"ACC": ".7605"}, TOY),
    Published("idec", "Reuters-10k", {"ACC": ".756"}, TOY),
    Published("dac", "mnist", {"ACC": ".981"}, f"{LOG}, all 70,000 images", "paper"),
    Published("dac", "cifar10", {"ACC": ".518"}, f"{LOG}, second variant", "gpu"),
    Published("dac", "stl10", {"ACC": ".433"}, "the author's log, epoch 36 of 75", "gpu"),
    Published("dac", "cifar100-20", {"ACC": ".255"}, LOG, "gpu"),
    Published("dac", "ImageNet-10", {"ACC": ".668"}, LOG),
    Published("dac", "ImageNet-Dogs", {"ACC": ".250"}, LOG),
    Published("adc", "cifar10", {"ACC": ".325"}, TABLE, "gpu"),
    Published("adc", "cifar100-20", {"ACC": ".160"}, TABLE, "gpu"),
    Published("adc", "stl10", {"ACC": ".530"}, TABLE, "gpu"),
    Published("adc", "mnist", {}, profile="paper"),
    Published("agae", "eight data sets", {}),
    Published(
        "kingdra",
        "cifar10",
        {"ACC": ".546"},
        "of features of a ResNet-50, abstract, in the README of the release",
    ),
    Published("kingdra", "20news", {"ACC": ".439"}, "abstract, in the README of the release"),
    Published("kingdra", "mnist", {}, profile="paper"),
    Published("deepcluster", "VOC07", {"mAP": ".704"}, f"fc6-8, {README}, an erratum"),
    Published("deepcluster", "ImageNet", {}),
    Published("lsdc", "cifar10", {}, profile="paper"),
    Published("lsdc", "cifar100-20", {}, profile="gpu"),
    Published("lsdc", "stl10", {}, profile="gpu"),
    Published("lsdc", "mnist", {}, profile="gpu"),
    Published("lsdc", "Reuters-10k", {}),
    Published("swav", "ImageNet", {"linear": ".753"}, f"ResNet-50, 800 epochs, {README}"),
    Published("swav", "cifar10", {"linear": ".892"}, "ResNet-18 of solo-learn, 1000 epochs", "gpu"),
    Published(
        "scan",
        "cifar10",
        {"ACC": ".883", "NMI": ".797", "ARI": ".772"},
        f"best ResNet-18, {README}",
        "paper",
    ),
    Published(
        "scan",
        "cifar100-20",
        {"ACC": ".507", "NMI": ".486", "ARI": ".333"},
        f"best ResNet-18, {README}",
        "gpu",
    ),
    Published(
        "scan",
        "stl10",
        {"ACC": ".809", "NMI": ".698", "ARI": ".646"},
        f"best ResNet-18, {README}",
        "gpu",
    ),
    Published("scan", "ImageNet-50", {"ACC": ".768"}, README),
    Published("scan", "ImageNet-100", {"ACC": ".689"}, README),
    Published("scan", "ImageNet-200", {"ACC": ".581"}, README),
    Published("scan", "ImageNet", {"ACC": ".399"}, README),
    Published("pcl", "ImageNet", {"linear": ".676"}, f"version 2, 200 epochs, {README}"),
    Published("pcl", "VOC07", {"mAP": ".854"}, f"version 2, SVM, {README}"),
    Published(
        "pcl", "cifar10", {"linear": ".828"}, "ResNet-18 of a user, issue 7 of the release", "gpu"
    ),
    Published("cc", "cifar10", {"ACC": ".790", "NMI": ".705", "ARI": ".637"}, PROPOS, "paper"),
    Published("cc", "cifar100-20", {"ACC": ".429", "NMI": ".431", "ARI": ".266"}, PROPOS, "gpu"),
    Published("cc", "stl10", {"ACC": ".850", "NMI": ".764", "ARI": ".726"}, PROPOS, "gpu"),
    Published("cc", "ImageNet-10", {"ACC": ".893", "NMI": ".859", "ARI": ".822"}, PROPOS),
    Published("cc", "ImageNet-Dogs", {"ACC": ".429", "NMI": ".445", "ARI": ".274"}, PROPOS),
    Published(
        "idfd",
        "cifar10",
        {"ACC": ".815", "NMI": ".711", "ARI": ".663"},
        f"{PROPOS}, trained and scored on the 50,000 images of train",
        "paper",
    ),
    Published("idfd", "cifar100-20", {"ACC": ".425", "NMI": ".426", "ARI": ".264"}, PROPOS, "gpu"),
    Published("idfd", "stl10", {"ACC": ".756", "NMI": ".643", "ARI": ".575"}, PROPOS, "gpu"),
    Published("idfd", "ImageNet-10", {"ACC": ".954", "NMI": ".898", "ARI": ".901"}, PROPOS),
    Published("idfd", "ImageNet-Dogs", {"ACC": ".591", "NMI": ".546", "ARI": ".413"}, PROPOS),
    Published(
        "barlowtwins",
        "ImageNet",
        {"linear": ".732"},
        "ResNet-50, 1000 epochs, the paper, in a page of results",
    ),
    Published(
        "barlowtwins",
        "cifar10",
        {"linear": ".921"},
        "ResNet-18 of solo-learn, 1000 epochs",
        "gpu",
    ),
    Published("jigclu", "ImageNet", {"linear": ".664"}, f"ResNet-50, 200 epochs, {README}"),
    Published("jigclu", "ImageNet-100", {"linear": ".809"}, "the paper, in issue 5 of the release"),
    Published("rlcc", "Market-1501", {}),
    Published("rlcc", "MSMT17", {}),
    Published(
        "tsuc", "cifar10", {"ACC": ".810"}, "the paper, table 1, on the images of train", "paper"
    ),
    Published(
        "tsuc", "cifar100-20", {"ACC": ".353"}, "the paper, table 1, on the images of train", "gpu"
    ),
    Published("tsuc", "stl10", {"ACC": ".665"}, "the paper, table 1", "gpu"),
    Published(
        "nnm",
        "cifar10",
        {"ACC": ".843", "NMI": ".748", "ARI": ".709"},
        f"best epoch by the labels of test, {README}",
        "paper",
    ),
    Published(
        "nnm",
        "cifar100-20",
        {"ACC": ".477", "NMI": ".484", "ARI": ".316"},
        f"best epoch by the labels of test, {README}",
        "gpu",
    ),
    Published(
        "nnm",
        "stl10",
        {"ACC": ".808", "NMI": ".694", "ARI": ".650"},
        f"best epoch by the labels of test, {README}",
        "gpu",
    ),
    Published(
        "spice",
        "cifar10",
        {"ACC": ".926", "NMI": ".865", "ARI": ".852"},
        f"train and test merged; stage 3 began with the epoch best by labels, {README}",
        "paper",
    ),
    Published(
        "spice",
        "cifar100-20",
        {"ACC": ".538", "NMI": ".567", "ARI": ".387"},
        f"train and test merged, {README}",
        "gpu",
    ),
    Published(
        "spice",
        "stl10",
        {"ACC": ".938", "NMI": ".872", "ARI": ".870"},
        f"train and test merged, {README}",
        "gpu",
    ),
    Published(
        "ruc",
        "cifar10",
        {"ACC": ".901"},
        f"hybrid, scored on its training images, {README}",
        "paper",
    ),
    Published(
        "ruc",
        "cifar100-20",
        {"ACC": ".543"},
        f"hybrid, scored on its training images, {README}",
        "gpu",
    ),
    Published(
        "ruc", "stl10", {"ACC": ".866"}, f"hybrid, scored on its training images, {README}", "gpu"
    ),
    Published(
        "mice",
        "cifar10",
        {"ACC": ".835", "NMI": ".737", "ARI": ".698"},
        PROPOS,
        "paper",
    ),
    Published(
        "mice",
        "cifar100-20",
        {"ACC": ".440", "NMI": ".436", "ARI": ".280"},
        PROPOS,
        "gpu",
    ),
    Published(
        "mice",
        "stl10",
        {"ACC": ".752", "NMI": ".635", "ARI": ".575"},
        PROPOS,
        "gpu",
    ),
    Published(
        "byol", "cifar10", {"ACC": ".894", "NMI": ".817", "ARI": ".790"}, THEIRS, "paper", "propos"
    ),
    Published(
        "byol",
        "cifar100-20",
        {"ACC": ".569", "NMI": ".559", "ARI": ".393"},
        THEIRS,
        "gpu",
        "propos",
    ),
    Published(
        "byol", "stl10", {"ACC": ".825", "NMI": ".713", "ARI": ".657"}, THEIRS, "gpu", "propos"
    ),
    Published(
        "byol",
        "ImageNet-10",
        {"ACC": ".939", "NMI": ".866", "ARI": ".872"},
        THEIRS,
        chapter="propos",
    ),
    Published(
        "byol",
        "ImageNet-Dogs",
        {"ACC": ".694", "NMI": ".635", "ARI": ".548"},
        THEIRS,
        chapter="propos",
    ),
    Published("propos", "cifar10", {"ACC": ".943", "NMI": ".886", "ARI": ".884"}, THEIRS, "paper"),
    Published(
        "propos", "cifar100-20", {"ACC": ".614", "NMI": ".606", "ARI": ".451"}, THEIRS, "gpu"
    ),
    Published("propos", "stl10", {"ACC": ".867", "NMI": ".758", "ARI": ".737"}, THEIRS, "gpu"),
    Published("propos", "ImageNet-10", {"ACC": ".956", "NMI": ".896", "ARI": ".906"}, THEIRS),
    Published("propos", "ImageNet-Dogs", {"ACC": ".745", "NMI": ".692", "ARI": ".627"}, THEIRS),
    Published(
        "temi",
        "cifar10",
        {"ACC": ".969", "NMI": ".926", "ARI": ".932"},
        f"CLIP ViT-L/14, {PAGE}",
    ),
    Published(
        "temi",
        "CIFAR-100",
        {"ACC": ".737", "NMI": ".799", "ARI": ".612"},
        f"CLIP ViT-L/14, 100 classes, {PAGE}",
    ),
    Published(
        "temi",
        "ImageNet",
        {"ACC": ".616", "NMI": ".825", "ARI": ".484"},
        f"MSN ViT-L, {PAGE}",
    ),
    Published(
        "turtle",
        "cifar10",
        {"ACC": ".995", "NMI": ".985", "ARI": ".989"},
        f"CLIP ViT-L/14 and DINOv2 ViT-g/14, {PAGE}",
    ),
    Published("turtle", "Caltech-101", {"ACC": ".898"}, f"the same two networks, {PAGE}"),
]
"""In the order of the chapters; of a method, what it is best known for comes first."""
