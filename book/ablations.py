"""What each part of a method is worth: one thing changed at a time, on the embedded data sets.

python book/ablations.py [scan-digits ...]    run what is missing (default: in all studies)
    --seeds N    seeds 0 to N-1 of every variant (default 3)
    --only NAME  this variant and the recipe; may be repeated
    --out DIR    where the files are (default: book/results/ablations)

Every finished (variant, seed) is written to the study's file at once and not run again, so an
interrupted command resumes. SCAN and LSD-C get one pretext per seed, shared by the variants.
Where a study says so, the recipe is not trained again: its rows are those of book/results.
`python book/notebooks.py results` writes the tables of book/ablations.md; `check` compares them
with the files, and the files with their clusters and the variants named here.
"""

import argparse
import copy
import functools
import itertools
import json
import math
import statistics
import string
import sys
import time
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.nn import functional as F

from dcl import methods
from dcl.algorithm import algorithm, pretrain
from dcl.app.monitors import Log
from dcl.app.pretexts import stored
from dcl.cluster.balance import uniform_order
from dcl.cluster.centroids import Centroids, Representation
from dcl.cluster.consensus import former
from dcl.cluster.ensemble import agreement, evidence_accumulation, majority, spectral
from dcl.cluster.kmeans import kmeans
from dcl.config import flat, unflat, with_epochs, with_rows
from dcl.data import Data, load
from dcl.data.people import people
from dcl.measure import metrics
from dcl.measure.baselines import evaluate
from dcl.measure.calibration import calibration_error
from dcl.measure.paired import paired
from dcl.measure.retrieval import retrieval
from dcl.methods import (
    agae,
    deepcluster,
    lsdc,
    nnm,
    propos,
    rlcc,
    ruc,
    scan,
    simclr,
    spice,
    superand,
    swav,
    tsuc,
)
from dcl.nets.convnets import encoder as network
from dcl.nets.convnets import identity
from dcl.nets.labelled import Labelled
from dcl.notebook import results
from dcl.objective import Encoder, Objective
from dcl.recipes import recipe
from dcl.runtime.files import write_atomic
from dcl.runtime.versions import machine, versions
from dcl.train import extract, predict, seeded, train
from dcl.views import DIGIT_VIEW, View
from dcl.views.ricap import RicapDraw
from tables import differing, folded, known_labels

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "book" / "results" / "ablations"
RECIPE = "as in the recipe"
SYMBOLS = string.digits + string.ascii_letters  # a cluster's number as one letter of a file
SAME = 0.02
"""The largest difference that still counts as "no difference"."""

Change = dict[str, Any]
Run = dict[str, Any]

# ---------------------------------------------------------------- the variants


@dataclass(frozen=True)
class Variant:
    """The recipe with some fields of its Config changed, and what is published about that."""

    change: Change
    published: str = ""
    """What the source reports, and which source."""
    claim: str = ""
    """"better", "worse" or "same", compared with the recipe, by that source; empty: no claim."""
    score: str = ""
    """The score that decides; empty: the study's."""


def released_order(labels: Tensor) -> Tensor:
    """Rows (N,) that DeepCluster's loop serves: right ids, looked up in a set sorted by cluster."""
    return labels.argsort(stable=True).cpu()[uniform_order(labels)]


class ReleasedSampler(deepcluster.DeepCluster):
    """DeepCluster as released: ids of images are taken for positions in the sorted set."""

    def order(self, n: int) -> Tensor:
        """One epoch, not uniform over pseudo-clusters, though meant to be."""
        return released_order(self.pseudo)


@algorithm
def released_sampler(
    images: Tensor, config: deepcluster.Config, encoder: Any, run: dict[str, Any]
) -> ReleasedSampler:
    """DeepCluster's `fit` with the released sampler."""
    model = ReleasedSampler(images, config, encoder)
    train(model, images, config.train, **run)
    model.fit_clusters(images)
    return model


class ReleasedTargets(lsdc.LSDC):
    """LSD-C as released: the pair labels are permuted on the side that was not mixed."""

    def targets(self, alike: Tensor, draw: RicapDraw) -> Tensor:
        """The transpose of what the mixtures are: sum_k W_k S[i, pi_k(j)]. Of one process."""
        return super().targets(alike.T, draw).T


@algorithm
def released_targets(
    images: Tensor, config: lsdc.Config, encoder: Any, run: dict[str, Any]
) -> ReleasedTargets:
    """LSD-C's `fit` with the released targets, from a pretext and k-means on it."""
    model = ReleasedTargets(lsdc.features_of(encoder), config)
    model.start_at_centroids(images)
    train(model, images, config.train, **run)
    return model


def edges(images: Tensor, config: Any, stem: str) -> Encoder:
    """A method's encoder, except that it sees Sobel edges instead of colours."""
    return network(config.encoder, images, width=config.width, stem=stem, sobel=True)


@algorithm
def sobel_pretext(
    images: Tensor, config: scan.Config, encoder: Any, run: dict[str, Any]
) -> Objective:
    """SCAN's `fit` from a SimCLR that sees edges; the heads and step 5 keep its encoder."""
    recipe = config.pretext
    pretext = simclr.SimCLR(images, recipe, edges(images, recipe, "small"))
    train(pretext, images, recipe.train, stage="pretext", **run)
    return scan.fit(images, config, encoder=pretext, **run)


@algorithm
def sobel_encoder(
    images: Tensor, config: swav.Config, encoder: Any, run: dict[str, Any]
) -> swav.SwAV:
    """SwAV's `fit` with an encoder that sees edges."""
    model = swav.SwAV(images, config, edges(images, config, config.stem))
    train(model, images, config.train, **run)
    model.clusters.fit(extract(model.embed, images))
    return model


class WithoutConsensus(rlcc.RLCC):
    """RLCC whose soft labels come from the centres of now: softened, but nothing of the past."""

    def before_epoch(self, epoch: int) -> None:
        """Clusters as usual, and softmax of the cosines with their centres."""
        super().before_epoch(epoch)
        f = extract(self.embed, self.images)
        self.soft = former(f, self.centres, self.pseudo, self.config.sharpness, 0.0)


@algorithm
def without_consensus(
    images: Tensor, config: rlcc.Config, encoder: Any, run: dict[str, Any]
) -> WithoutConsensus:
    """RLCC's `fit` without the past."""
    model = WithoutConsensus(images, config, encoder)
    train(model, images, config.train, **run)
    model.fit_clusters(images)
    return model


class ReleasedBank(nnm.NNM):
    """NNM as released: the bank is filled in one order and read in another."""

    def before_epoch(self, epoch: int) -> None:
        """Fill the bank, and shuffle it."""
        super().before_epoch(epoch)
        if self.bank is not None:
            self.bank = self.bank[torch.randperm(len(self.bank))]


@algorithm
def released_bank(images: Tensor, config: nnm.Config, encoder: Any, run: dict[str, Any]) -> nnm.NNM:
    """NNM's `fit` with the released bank."""
    with patch.object(nnm, "NNM", ReleasedBank):
        return nnm.fit(images, config, encoder=encoder, **run)


class OneEStep(propos.ProPos):
    """ProPos whose pseudo-labels stay those of the first E-step."""

    def before_epoch(self, epoch: int) -> None:
        """The E-step at the end of the warm-up."""
        if epoch == self.config.warmup:
            super().before_epoch(epoch)


class ShuffledLabels(propos.ProPos):
    """ProPos whose pseudo-labels are those of other images."""

    def before_epoch(self, epoch: int) -> None:
        """The E-step, and a permutation."""
        super().before_epoch(epoch)
        self.pseudo.copy_(self.pseudo[torch.randperm(len(self.pseudo)).to(self.pseudo.device)])


class NoPredictor(propos.ProPos):
    """ProPos that compares the projections themselves."""

    def __init__(self, images: Tensor, config: propos.Config, encoder: Any = None):
        super().__init__(images, config, encoder)
        self.predictor = torch.nn.Sequential()


def propos_as(kind: type[propos.ProPos]) -> Any:
    """ProPos' `fit` with another objective."""

    @algorithm
    def fitted(images: Tensor, config: Any, encoder: Any, run: dict[str, Any]) -> Objective:
        with patch.object(propos, "ProPos", kind):
            return propos.fit(images, config, encoder=encoder, **run)

    return fitted


@algorithm
def picked_by_labels(
    images: Tensor, config: spice.Config, encoder: Any, run: dict[str, Any]
) -> Objective:
    """SPICE's `fit` on the digits, from the head and epoch of step 2 that are best by labels."""
    truth, best = load("digits").labels, dict[str, Any](ACC=0.0)

    def look(stage: str, epoch: int, objective: Any, losses: dict[str, float]) -> None:
        run["monitor"](stage, epoch, objective, losses)
        heads = objective.heads if stage == "spice" else []
        for h, head in enumerate(heads):
            answers = extract(objective.proba, objective.seen)[:, h].argmax(1).cpu()
            if (acc := metrics.accuracy(truth, answers)) > best["ACC"]:
                best.update(ACC=acc, head=copy.deepcopy(head.state_dict()))

    def trained(objective: Any, *rest: Any, stage: str, **more: Any) -> None:
        train(objective, *rest, stage=stage, **more)
        for head in objective.heads if stage == "spice" else []:
            head.load_state_dict(best["head"])

    with patch.object(spice, "train", trained):
        return spice.fit(images, config, encoder=encoder, **run | {"monitor": look})


def scan_instead(epochs: int | None = None) -> Any:
    """A `fit` of SCAN, with its recipe, on another method's pretext; epochs: of self-labelling."""

    @algorithm
    def scanned(images: Tensor, config: Any, encoder: Any, run: dict[str, Any]) -> Objective:
        own = replace(recipe("scan", "digits"), pretext=config.pretext, seed=config.seed)
        if epochs is not None:
            own = replace(own, selflabel=replace(own.selflabel, epochs=epochs))
        model: Any = scan.fit(images, own, encoder=encoder, **run)
        model.config = config  # the study's
        return model

    return scanned


@algorithm
def modest_base(images: Tensor, config: ruc.Config, encoder: Any, run: dict[str, Any]) -> ruc.RUC:
    """RUC's `fit` behind a SCAN that says the same clusters less surely, at temperature 3."""
    pretext = pretrain(simclr, images, config, run, encoder)
    own = replace(config.base, n_clusters=config.n_clusters, seed=config.seed)
    base = scan.fit(images, own, encoder=pretext, **run)
    p = extract(base.predict_proba, images)
    sure = (p.clamp(min=1e-30).log() / 3).softmax(1).amax(1)
    calm = Labelled(base.encoder, p.argmax(1), sure, pretext)
    return ruc.fit(images, config, encoder=calm, **run)


class Heaps(Representation):
    """A pretext's embedding, clustered by k-means."""

    def __init__(self, pretext: Any, config: Any, width: int):
        super().__init__()
        self.config, self.pretext, self.encoder = config, pretext, pretext.encoder
        self.clusters = Centroids(config.n_clusters, width)

    def embed(self, x: Tensor) -> Tensor:
        """Embeddings (B,D) of length 1."""
        return self.pretext.embed(x)


def heaps(images: Tensor, pretext: Any, config: Any) -> Heaps:
    """Clusters of a pretext's embedding by k-means."""
    found = Heaps(pretext, config, extract(pretext.embed, images[:1]).shape[1])
    found.to(images.device).fit_clusters(images)
    return found


@algorithm
def kmeans_instead(images: Tensor, config: Any, encoder: Any, run: dict[str, Any]) -> Heaps:
    """k-means on the embedding of a method's SimCLR."""
    return heaps(images, pretrain(simclr, images, config, run, encoder), config)


@algorithm
def no_stage_1(images: Tensor, config: tsuc.Config, encoder: Any, run: dict[str, Any]) -> Objective:
    """TSUC's `fit` from random weights."""
    return tsuc.fit(images, config, encoder=simclr.model(images, config.pretext), **run)


@functools.cache
def superand_digits(seed: int) -> superand.SuperAND:
    """Super-AND on the digits, of its recipe."""
    plan = replace(recipe("superand", "digits"), seed=seed)
    return superand.fit(load("digits").images, plan)


@algorithm
def from_superand(
    images: Tensor, config: tsuc.Config, encoder: Any, run: dict[str, Any]
) -> Objective:
    """TSUC's `fit` from the paper's stage 1."""
    return tsuc.fit(images, config, encoder=superand_digits(config.seed), **run)


@algorithm
def superand_kmeans(images: Tensor, config: Any, encoder: Any, run: dict[str, Any]) -> Heaps:
    """k-means on the embedding of the paper's stage 1."""
    return heaps(images, superand_digits(config.seed), config)


@algorithm
def both_kmeans(images: Tensor, config: Any, encoder: Any, run: dict[str, Any]) -> Heaps:
    """k-means on the embedding of TSUC from the paper's stage 1, without its heads."""
    return heaps(images, from_superand(images, config, **run), config)


def two_averages(model: agae.AGAE, k: int) -> Tensor:
    """k-means on pixels averaged twice over the links of AGAE's graph."""
    return kmeans(model.encoder.links @ model.encoder.smooth, k, n_init=10).labels


def consensus_instead(consensus: Any) -> Any:
    """A `fit`: what `consensus(model, k)` makes of AGAE's graph with the same seed. No network."""

    @algorithm
    def agreed(images: Tensor, config: agae.Config, encoder: Any, run: dict[str, Any]) -> Objective:
        model = agae.AGAE(images, config)
        model.connect(images)
        found = consensus(model, config.n_clusters)
        model.encoder.codes.copy_(F.one_hot(found, config.dim))
        model.clusters.centroids.copy_(torch.eye(config.n_clusters, config.dim))
        return model

    return agreed


class Centres(Representation):
    """k-means on vectors as they are."""

    def __init__(self, vectors: Tensor, config: Any):
        super().__init__()
        self.config, self.encoder = config, identity(vectors.shape[1])
        self.clusters = Centroids(config.n_clusters, vectors.shape[1])
        self.fit_clusters(vectors)

    def embed(self, x: Tensor) -> Tensor:
        """The vectors (B,d)."""
        return x


def of_few(method: str, n: int) -> Any:
    """A `fit` of a method, or k-means, to n of the photographs: its recipe, in as many steps.

    The neighbours of an image are the same share of all images.
    """

    @algorithm
    def few(images: Tensor, config: Any, encoder: Any, run: dict[str, Any]) -> Objective:
        whole, seen = len(images), images[torch.randperm(len(images))[:n]]
        if method == "k-means":
            return Centres(seen, config)
        own = replace(recipe(method, "photographs"), seed=config.seed)
        if hasattr(own, "n_neighbors"):
            own = replace(own, n_neighbors=max(2, own.n_neighbors * n // whole))
        if not hasattr(own, "steps"):  # whose number does not depend on the images
            own = with_epochs(own, lambda epochs: epochs * whole // n)
        model: Any = methods.method(method).fit(seen, with_rows(own, n), **run)
        model.config = config  # the study's
        return model

    return few


SIZES_OF_FEW = (500, 2000, 10_000)
LEARNERS = ("k-means", "scan", "temi", "turtle")

FITS = {
    "official_indexing": released_sampler,
    "official_orientation": released_targets,
    "sobel_pretext": sobel_pretext,
    "sobel_encoder": sobel_encoder,
    "without_consensus": without_consensus,
    "released_bank": released_bank,
    "picked_by_labels": picked_by_labels,
    "scan": scan_instead(),
    "scan_step_3": scan_instead(epochs=0),
    "kmeans": kmeans_instead,
    "modest_base": modest_base,
    "no_stage_1": no_stage_1,
    "one_e_step": propos_as(OneEStep),
    "shuffled_labels": propos_as(ShuffledLabels),
    "no_predictor": propos_as(NoPredictor),
    "from_superand": from_superand,
    "superand_kmeans": superand_kmeans,
    "both_kmeans": both_kmeans,
    "evidence_instead": consensus_instead(lambda m, k: evidence_accumulation(m.labelings, k)),
    "spectral_instead": consensus_instead(lambda m, k: spectral(m.labelings, k)),
    "averages_instead": consensus_instead(two_averages),
    **{f"{m}_of_{n}": of_few(m, n) for m in LEARNERS for n in SIZES_OF_FEW},
}
"""Changes that no field of a Config makes, by their names in the files: each is a `fit`."""

CONSENSUS: dict[str, Any] = {
    "evidence_accumulation": evidence_accumulation,
    "spectral": spectral,
    "majority": majority,
}
"""Changes that train nothing: each makes one clustering of several of the recipe."""
GROUPS, SIZES = 50, (2, 3, 5, 10, 15)
"""So many groups of each size are drawn, to show what the number of members is worth."""


@dataclass(frozen=True)
class Study:
    """Variants of one method's recipe on one data set."""

    method: str
    data: str
    score: str
    variants: dict[str, Variant]
    recorded: bool = False
    """The recipe's rows are the results of book/results: the variants share no pretext with it."""
    members: int = 1
    """Above 1 the variants are consensuses of so many runs of the recipe, each of other seeds."""

    def config(self, variant: str, seed: int = 0) -> Any:
        """The configuration of a variant: the recipe with nothing else changed."""
        change = {} if variant == RECIPE else self.variants[variant].change
        fields = {k: v for k, v in change.items() if k not in FITS | CONSENSUS}
        return replace(recipe(self.method, self.data), **fields, seed=seed)

    def by_fit(self, variant: str) -> Change:
        """What of a variant no field makes, but FITS or CONSENSUS: {} or {name: True}."""
        change = {} if variant == RECIPE else self.variants[variant].change
        return {k: v for k, v in change.items() if k in FITS | CONSENSUS}

    def changed(self, config: Any) -> Change:
        """The fields in which a configuration differs from the recipe, seeds apart, flat."""
        plain, mine = flat(self.config(RECIPE)), flat(config)
        seeds = ("seed", "pretext.seed")
        return {k: v for k, v in mine.items() if k not in seeds and plain.get(k) != v}

    def meant(self, variant: str) -> Change:
        """What a run of a variant must record as changed."""
        return self.changed(self.config(variant)) | self.by_fit(variant)


_SELFLABEL = recipe("scan", "digits").selflabel
_SMALL = (replace(DIGIT_VIEW, scale=(0.4, 0.7), size=12),) * 4


def negatives(view: View) -> View:
    """The view, a negative half of the time, as DeepCluster's of the shapes are."""
    return replace(view, negative=0.5)


_SHAPES = recipe("scan", "shapes")
_SEEN = replace(_SHAPES.pretext, view=negatives(_SHAPES.pretext.view))

_SPICE = recipe("spice", "digits")

_TAUS = {".07": 0.07, ".2": 0.2, "2": 2.0}

_ROUNDS = "paper: fewer than 3 iterations do not converge"

STUDIES = {
    "scan-photographs": Study("scan", "photographs", "ACC", {
        **{f"{m.upper() if m in methods.methods() else m}, {n:,} images":
           Variant({f"{m}_of_{n}": True}) for m in LEARNERS for n in SIZES_OF_FEW
           if (m, n) != ("scan", 10_000)},
        "5 clusters": Variant({"n_clusters": 5}, score="NMI"),
        "20 clusters": Variant({"n_clusters": 20}, score="NMI"),
    }, recorded=True),
    "scan-digits": Study("scan", "digits", "ACC", {
        "1 neighbour": Variant({"n_neighbors": 1}),
        "5 neighbours": Variant({"n_neighbors": 5}),
        "50 neighbours": Variant({"n_neighbors": 50}),
        "100 neighbours": Variant({"n_neighbors": 100}),
        "entropy weight 0": Variant({"entropy_weight": 0.0}),
        "entropy weight 1": Variant({"entropy_weight": 1.0}),
        "entropy weight 2": Variant({"entropy_weight": 2.0}),
        "entropy weight 10": Variant({"entropy_weight": 10.0}),
        "1 head": Variant({"heads": 1}),
        "20 clusters": Variant({"n_clusters": 20}, "twice as many clusters, matched many to one: "
            "CIFAR-10 86.2 against 87.6, STL-10 76.8 against 76.7 (issue 113)", "same", "purity"),
        "no self-labelling": Variant({"selflabel": replace(_SELFLABEL, epochs=0)},
            "CIFAR-10: 81.6 without, 88.3 with (README of the release)", "worse"),
    }),
    "swav-digits": Study("swav", "digits", "linear", {
        "10 prototypes": Variant({"n_prototypes": 10}),
        "300 prototypes": Variant({"n_prototypes": 300}, "paper: from 3,000 to 100,000, a change "
            "of at most 0.3 points", "same"),
        "prototypes never trained": Variant({"freeze_steps": 10**9}, "paper: 73.1 against 73.9",
            "worse"),
        "no Sinkhorn": Variant({"sinkhorn_iterations": 0}, _ROUNDS, "worse"),
        "1 iteration": Variant({"sinkhorn_iterations": 1}, _ROUNDS, "worse"),
        "10 iterations": Variant({"sinkhorn_iterations": 10}, "paper: more iterations hurt "
            "slightly", "worse"),
        "2 + 4 crops": Variant({"views": (DIGIT_VIEW,) * 2 + _SMALL}, "2 + 6 crops: 74.6 against "
            "70.1 at 400 epochs (README of the release)", "better"),
        "queue of 4 batches": Variant({"queue_length": 512, "queue_start": 5}),
    }),
    "barlowtwins-digits": Study("barlowtwins", "digits", "ACC", {
        "no off-diagonal": Variant({"offdiagonal": 0.0}),
        "lambda 1 / D": Variant({"offdiagonal": None}),
        "8 dimensions": Variant({"dim": 8, "offdiagonal": None}),
        "32 dimensions": Variant({"dim": 32, "offdiagonal": None}),
        "512 dimensions": Variant({"dim": 512, "offdiagonal": None}),
    }, recorded=True),
    "lsdc-digits": Study("lsdc", "digits", "ACC", {
        "L2": Variant({"labeler": "l2", "threshold": 6.2}),
        "SNE": Variant({"labeler": "sne", "threshold": 0.02, "temperature": 3.0}),
        "nearest neighbours": Variant({"labeler": "knn", "k": 7}),
        "no RICAP": Variant({"beta": 0.0}),
        "targets as released": Variant({"official_orientation": True}),
        "clean view moved": Variant({"clean_view": DIGIT_VIEW}),
    }),
    "ensemble-digits": Study("lsdc", "digits", "ACC", {
        "evidence accumulation": Variant({"evidence_accumulation": True}),
        "spectral": Variant({"spectral": True}),
        "majority vote": Variant({"majority": True}),
    }, members=5),
    "idfd-digits": Study("idfd", "digits", "ACC", {
        **{f"tau {told}": Variant({"temperature": tau}) for told, tau in _TAUS.items()},
        "no decorrelation": Variant({"decorrelation": 0.0}),
        **{f"tau {told}, no decorrelation": Variant({"temperature": tau, "decorrelation": 0.0})
           for told, tau in _TAUS.items()},
        "weight 1": Variant({"decorrelation": 1.0}),
    }, recorded=True),
    "adc-digits": Study("adc", "digits", "ACC", {
        "no k-means start": Variant({"kmeans_at": 0.0}),
        "released penalty, no k-means start": Variant({"l1": 2e-4, "kmeans_at": 0.0}),
        "no visit": Variant({"visit_weight": 0.0}),
        "no views": Variant({"views_weight": 0.0}),
        "1 view": Variant({"n_views": 1}),
    }, recorded=True),
    "deepcluster-shapes": Study("deepcluster", "shapes", "NMI", {
        "6 clusters": Variant({"n_pseudo": 6}, "users of the released code: about 100 clusters "
            "for CIFAR-10, never 10", "worse"),
        "10 clusters": Variant({"n_pseudo": 10}),
        "100 clusters": Variant({"n_pseudo": 100}),
        "300 clusters": Variant({"n_pseudo": 300}),
        "raw colour": Variant({"sobel": False}, "the author: the paper's runs need the Sobel "
            "filter (issue 32)", "worse", "linear"),
        "no balance": Variant({"balance": "none"}, "DeepCluster-v2 drops it as unnecessary "
            "(SwAV's paper)", "same", "linear"),
        "the released sampler": Variant({"official_indexing": True}, "the author: the released "
            "code should reproduce the paper (issue 32)", "same", "linear"),
    }),
    "pcl-digits": Study("pcl", "digits", "ACC", {
        "no prototypes: MoCo": Variant({"n_prototypes": ()}),
        "40 prototypes": Variant({"n_prototypes": (40,)}),
        "phi fixed": Variant({"phi": "fixed"}),
        "no warm-up": Variant({"warmup": 0}),
        "no BatchNorm in the head": Variant({"head_norm": False}),
    }, recorded=True),
    "cc-digits": Study("cc", "digits", "ACC", {
        "no entropy": Variant({"entropy_weight": 0.0}),
        "no instance head": Variant({"instance_weight": 0.0, "rows_first": 0.0}),
        "no cluster head": Variant({"cluster_weight": 0.0}),
        "rows not first": Variant({"rows_first": 0.0}),
        "1 head": Variant({"heads": 1}),
        "as published": Variant({"heads": 1, "batch_norm": False, "rows_first": 0.0}),
    }, recorded=True),
    "nnm-digits": Study("nnm", "digits", "ACC", {
        "local only": Variant({"global_weight": 0.0}),
        "global only": Variant({"local": False}),
        "neither": Variant({"local": False, "global_weight": 0.0}),
        "no columns": Variant({"contrast_weight": 0.0}),
        "bank from epoch 1": Variant({"bank_from": 1}),
        "the released bank": Variant({"released_bank": True}),
        "1 head": Variant({"heads": 1}),
        "SCAN": Variant({"scan": True}),
        "SCAN, its step 3": Variant({"scan_step_3": True}),
        "k-means on the pretext": Variant({"kmeans": True}),
    }, recorded=True),
    "spice-digits": Study("spice", "digits", "ACC", {
        "stage 2 only": Variant({"fixmatch": replace(_SPICE.fixmatch, epochs=0)}),
        "everybody is reliable": Variant({"agree": 0.0, "sure": 0.0}),
        "a new network": Variant({"fresh": True}),
        "checkpoint by labels": Variant({"picked_by_labels": True}),
    }, recorded=True),
    "mice-digits": Study("mice", "digits", "ACC", {
        "gate alone": Variant({"experts": False}),
        "experts alone": Variant({"gate": False}),
        "no refresh": Variant({"refresh": False}),
        "no k-means start": Variant({"warmup": 0}),
        "kappa 1": Variant({"gate_temperature": 1.0}),
        "momentum .99": Variant({"momentum": 0.99}),
        "momentum .95": Variant({"momentum": 0.95}),
        "k-means on the pretext": Variant({"kmeans": True}),
    }),
    "kingdra-digits": Study("kingdra", "digits", "ACC", {
        "1 network": Variant({"models": 1, "low": 0, "high": 0}),
        "3 networks": Variant({"models": 3, "high": 2}),
        "no votes": Variant({"begin": 99}),
        "groups begin with sure images": Variant({"sure": 0.9}),
        "no decoder": Variant({"reconstruction": (0.0, 0.0, 0.0, 0.0)}),
    }, recorded=True),
    "tsuc-digits": Study("tsuc", "digits", "ACC", {
        "1 head": Variant({"heads": 1}, "the mean over five heads of a run: CIFAR-10 71.8 against "
            "81.0 of the one with the lowest loss (figure of the release)", "worse"),
        "the paper's normalisation": Variant({"normalize": "cluster"}),
        "no normalisation": Variant({"normalize": "off"}, "paper, CIFAR-10: 56.0 against 81.0",
            "worse"),
        "trained directions": Variant({"learned": True}),
        "no consistency loss": Variant({"consistency_weight": 0.0},
            "paper, CIFAR-10: 58.2 against 81.0", "worse"),
        "consistency of weight 1": Variant({"consistency_weight": 1.0}),
        "no stage 1": Variant({"no_stage_1": True}, "paper, CIFAR-10: 58.6 against 81.0", "worse"),
        "from Super-AND": Variant({"from_superand": True}),
        "k-means on Super-AND": Variant({"superand_kmeans": True}, "paper, CIFAR-10: 38.3 against "
            "81.0 (with stage 2)", "worse"),
        "from Super-AND, then k-means": Variant({"both_kmeans": True}),
        "k-means on the pretext": Variant({"kmeans": True}),
        "SCAN": Variant({"scan": True}),
    }, recorded=True),
    "agae-digits": Study("agae", "digits", "NMI", {
        "evidence accumulation": Variant({"evidence_instead": True}),
        "spectral": Variant({"spectral_instead": True}),
        "two averages, k-means": Variant({"averages_instead": True}),
        "no adversary": Variant({"adversary": 0.0}),
        "adversary of weight .1": Variant({"adversary": 0.1}),
        "no noise": Variant({"variational": False}),
        "links from .2": Variant({"threshold": 0.2}),
        "every link": Variant({"threshold": 0.0}),
    }),
    "rlcc-digits": Study("rlcc", "digits", "ACC", {"hard labels": Variant({"alpha": 1.0})}),
    "rlcc-people": Study("rlcc", "people", "mAP", {
        "hard labels": Variant({"alpha": 1.0}, "abstract: up to 8.8 points less mAP, on MSMT17"),
        "alpha .5": Variant({"alpha": 0.5}),
        "without consensus": Variant({"without_consensus": True}),
    }),
    "ruc-digits": Study("ruc", "digits", "ECE", {
        "SCAN": Variant({"scan": True}),
        "one network": Variant({"peer": False}),
        "no smoothing": Variant({"smoothing": 0.0}),
        "smoothing .5, as published": Variant({"smoothing": 0.5}),
        "a modest base": Variant({"modest_base": True}),
    }, recorded=True),
    "scan-shapes": Study("scan", "shapes", "ACC", {
        "Sobel edges": Variant({"sobel_pretext": True}),
        "Sobel edges, negatives": Variant({"sobel_pretext": True, "pretext": _SEEN,
            "scan_view": negatives(_SHAPES.scan_view), "strong": negatives(_SHAPES.strong)}),
    }, recorded=True),
    "swav-shapes": Study("swav", "shapes", "ACC", {
        "Sobel edges": Variant({"sobel_encoder": True}),
        "Sobel edges, negatives": Variant({"sobel_encoder": True,
            "views": tuple(map(negatives, recipe("swav", "shapes").views))}),
    }, recorded=True),
    "jigclu-digits": Study("jigclu", "digits", "ACC", {
        "location off": Variant({"location_weight": 0.0}),
        "clustering off": Variant({"cluster_weight": 0.0}),
        "patches not mixed": Variant({"mixed": False}),
        "no overlap": Variant({"overlap": 0.0}),
        "overlap .3": Variant({"overlap": 0.3}),
        "patches of 8 px": Variant({"view": replace(DIGIT_VIEW, size=8)}),
        "mirror images": Variant({"view": replace(DIGIT_VIEW, size=12, flip=0.5)}),
        "read at 24 px": Variant({"size": 24}),
        "statistics of the montages": Variant({"settled": False}),
    }, recorded=True),
    "propos-digits": Study("propos", "digits", "ACC", {
        "BYOL": Variant({"scattering": 0.0, "noise": 0.0}, "CIFAR-10, ResNet-34: 89.4 against "
            "94.3 (table of the release)", "worse"),
        "no noise": Variant({"noise": 0.0}),
        "lambda .025": Variant({"scattering": 0.025}),
        "lambda .1": Variant({"scattering": 0.1}),
        "lambda 1": Variant({"scattering": 1.0}),
        "no warm-up": Variant({"warmup": 0}),
        "E-step: best of ten, ++": Variant({"restarts": 10, "init": "k-means++"}),
        "E-step: one start, ++": Variant({"init": "k-means++"}),
        "one E-step": Variant({"one_e_step": True}),
        "shuffled labels": Variant({"shuffled_labels": True}),
        "no target": Variant({"momentum": 0.0}),
        "momentum rises": Variant({"rises": True}),
        "no predictor": Variant({"no_predictor": True}),
        "not standardised": Variant({"standardize": False}),
    }, recorded=True),
}  # fmt: skip
"""Each study is a file of FOLDER and a table of the page."""

# ---------------------------------------------------------------- running


def run(
    name: str, folder: Path = FOLDER, seeds: int = 3, only: Collection[str] | None = None
) -> int:
    """Run what the file of a study lacks, seed by seed; returns the number of runs.

    only: just these variants, besides the recipe.

    Raises ValueError if the file holds runs of another recipe or other variants.
    """
    study, path = STUDIES[name], folder / f"{name}.json"
    data, count = load(study.data), 0
    found = read(path) or {
        "method": study.method,
        "data": study.data,
        "checksum": data.checksum,
        "images": len(data),
        "command": "",
        "recipe": flat(study.config(RECIPE)),
        **({"members": study.members} if study.members > 1 else {}),
        "runs": [],
    }
    if wrong := faults(name, found):
        raise ValueError(f"{path} must hold runs of today's variants:\n" + "\n".join(wrong))
    asked = [*(study.variants if only is None else only)]
    for seed in range(seeds):
        pretext = None
        for variant in (RECIPE, *(asked if study.members == 1 else ())):
            if any((r["variant"], r["seed"]) == (variant, seed) for r in found["runs"]):
                continue
            config = study.config(variant, seed)
            if study.recorded and variant == RECIPE:
                found["runs"].append(recorded(study, seed))
            else:
                begins = hasattr(config, "pretext") and not study.by_fit(variant)
                if begins and pretext is None and not data.vectors:
                    plan = replace(config.pretext, seed=seed)
                    pretext = stored(data.images, plan) or simclr.fit(data.images, plan)
                found["runs"].append(one(study, variant, seed, data, pretext))
            found["command"] = f"python book/ablations.py {name} --seeds {seeds}"
            write_atomic(path, results.dumps(found).encode())
            count += 1
            print(f"{name} {variant}, seed {seed}: {found['runs'][-1]['metrics']}", flush=True)
    if study.members > 1:
        there = {(r["variant"], r["seed"]) for r in found["runs"]}
        new = {*itertools.product(asked, range(seeds // study.members))} - there
        found["runs"] += [agreed(study, found, *which, data) for which in sorted(new)]
        found["drawn"] = drawn(study, found, data)
        write_atomic(path, results.dumps(found).encode())
        count += len(new)
    return count


def agreed(study: Study, found: dict[str, Any], variant: str, seed: int, data: Data) -> Run:
    """The consensus `variant` of the recipe's runs of seeds m * seed to m * seed + m - 1."""
    first = study.members * seed
    rows = [clusters_of(r) for r in found["runs"]
            if r["variant"] == RECIPE and first <= r["seed"] < first + study.members]  # fmt: skip
    began, labelings = time.process_time(), torch.stack(rows)
    how = study.by_fit(variant)
    clusters = CONSENSUS[next(iter(how))](labelings, study.config(RECIPE).n_clusters)
    seconds, sure = time.process_time() - began, agreement(labelings, clusters) == 1
    told = metrics.scores(data.labels, clusters) | {
        "purity": metrics.purity(data.labels, clusters),
        "unanimous": float(sure.float().mean()),
        "ACC of these": float(right(data.labels, clusters)[sure].float().mean()),
    }
    return {
        "variant": variant,
        "seed": seed,
        "changed": how,
        "metrics": {k: round(v, 4) for k, v in told.items()},
        "used": len(clusters.unique()),
        "seconds": round(seconds, 1),
        "clusters": "".join(SYMBOLS[c] for c in clusters.tolist()),
        "machine": machine("cpu"),
        "versions": versions(),
    }


def drawn(study: Study, found: dict[str, Any], data: Data) -> dict[str, dict[str, list[float]]]:
    """ACC of consensuses of GROUPS random groups of the recipe's runs: by variant, by group size.

    Groups overlap, so that they differ less than runs of new seeds would.
    """
    rows = torch.stack([clusters_of(r) for r in found["runs"] if r["variant"] == RECIPE])
    with seeded(0):
        sizes = [size for size in SIZES if size < len(rows)]
        groups = {size: [torch.randperm(len(rows))[:size] for _ in range(GROUPS)] for size in sizes}
    k, said = study.config(RECIPE).n_clusters, {}
    for title in study.variants:
        how = CONSENSUS[next(iter(study.by_fit(title)))]
        said[title] = {
            str(size): [round(metrics.accuracy(data.labels, how(rows[g], k)), 4) for g in of_size]
            for size, of_size in groups.items()
        }
    return said


def clusters_of(row: Run) -> Tensor:
    """The clusters (N,) int64 of a run of a file."""
    return torch.tensor([SYMBOLS.index(c) for c in row["clusters"]])


def right(labels: Any, clusters: Tensor) -> Tensor:
    """Which images (N,) bool are right under the matching of ACC."""
    named = metrics.match(labels, clusters)
    return torch.tensor([named.get(c) == y for c, y in zip(clusters.tolist(), labels.tolist())])


def recorded(study: Study, seed: int) -> Run:
    """The recipe's run with a seed as book/results has it: no losses, and no CPU time.

    Raises ValueError unless there is one, of today's recipe.
    """
    stem = f"{study.method}-{study.data}-quick-seed{seed}"
    config = study.config(RECIPE, seed)
    for result in results.load(stem=stem):
        if study.changed(unflat(type(config), result["config"])) == {}:
            clusters = result["clusters"]
            return {
                "variant": RECIPE,
                "seed": seed,
                "changed": {},
                "metrics": result["metrics"],
                "used": len(set(clusters)),
                "clusters": "".join(SYMBOLS[c] for c in clusters),
                "machine": result["machine"],
                "versions": result["versions"],
                "recorded": stem,
            }
    raise ValueError(f"book/results must hold {stem}.json, a run of today's recipe")


def one(study: Study, variant: str, seed: int, data: Data, pretext: Objective | None) -> Run:
    """Train a variant with a seed and score its last epoch. Seconds are CPU time, of `fit`."""
    config, log = study.config(variant, seed), Log(every=10**9)
    given = {} if pretext is None else {"encoder": pretext}
    began = time.process_time()
    by_fit = study.by_fit(variant)
    fit: Any = FITS[next(iter(by_fit))] if by_fit else methods.method(study.method).fit
    model = fit(data.images, config, monitor=log, **given)
    seconds = time.process_time() - began
    clusters = predict(model, data.images).tolist()
    found = scored(data, clusters) if data.vectors else evaluate(model, data, seed=seed)
    found |= ranked(model) if study.data == "people" else {}
    found |= calibrated(model, data) if study.score == "ECE" else {}
    found |= without_head(model, data, seed) if study.method == "adc" else {}
    told = ("stage", "epoch", "seconds", "chances")
    last = log.history[-1] if log.history else {}  # k-means alone trains nothing
    losses = {k: round(v, 4) for k, v in last.items() if k not in told}
    return {
        "variant": variant,
        "seed": seed,
        # what was trained, not what was asked for
        "changed": study.changed(model.config) | by_fit,
        "metrics": {k: round(v, 4) for k, v in found.items()},
        "used": len(set(clusters)),
        "losses": losses,
        "seconds": round(seconds, 1),
        "clusters": "".join(SYMBOLS[c] for c in clusters),
        "machine": machine("cpu"),
        "versions": versions(),
    }


def scored(data: Data, clusters: list[int]) -> dict[str, float]:
    """The scores of clusters of vectors, whose probes are the same whatever was trained on them."""
    return metrics.scores(data.labels, clusters) | {"purity": metrics.purity(data.labels, clusters)}


def ranked(model: Any) -> dict[str, float]:
    """Retrieval, mAP and R1, among the people of the test split, none of whom was trained on."""
    p = people("test")
    z = extract(model.embed, torch.from_numpy(p.images))
    found = retrieval(z, p.person, p.camera, p.query)
    return {"mAP": found.map, "R1": float(found.cmc[0])}


def calibrated(model: Any, data: Data) -> dict[str, float]:
    """The calibration error of a model's confidences."""
    sure, clusters = extract(model.predict_proba, data.images).max(1)
    return {"ECE": calibration_error(data.labels, clusters, sure)}


def without_head(model: Any, data: Data, seed: int) -> dict[str, float]:
    """ACC of k-means on the embeddings, whatever a model's head says of them."""
    with seeded(seed):
        heaps = kmeans(extract(model.embed, data.images), model.config.n_clusters, n_init=50).labels
    return {"k-means": metrics.accuracy(data.labels, heaps)}


# ---------------------------------------------------------------- the files


def read(path: Path) -> dict[str, Any]:
    """A study's file, {} if there is none."""
    return json.loads(path.read_text()) if path.exists() else {}


def faults(name: str, found: dict[str, Any]) -> list[str]:
    """The faults of a study's file, one line each.

    Checked: recipe and changes are those of this module; no run occurs twice; ACC, NMI, ARI,
    purity and the number of clusters follow from the clusters. (Probes would need the training.)
    """
    study = STUDIES[name]
    labels, checksum = known_labels(study.data)
    now = study.config(RECIPE)
    then = flat(unflat(type(now), found["recipe"]))
    wrong = [
        f"{name}: {k} was {then[k]!r} in the recorded recipe and is {v!r} now"
        for k, v in flat(now).items()
        if then[k] != v
    ]
    if found["checksum"] != checksum:
        wrong.append(f"{name}: was not run on the images of {study.data}")
    seen = set()
    for one_run in found["runs"]:
        title, seed = one_run["variant"], one_run["seed"]
        which = f"{name}, {title}, seed {seed}"
        if title != RECIPE and title not in study.variants:
            wrong.append(f"{which}: there is no such variant")
            continue
        if one_run["changed"] != (meant := study.meant(title)):
            wrong.append(f"{which}: was run with {one_run['changed']}, should be {meant}")
        if (title, seed) in seen:
            wrong.append(f"{which}: occurs twice")
        seen.add((title, seed))
        if "recorded" in one_run and one_run != recorded(study, seed):
            wrong.append(f"{which}: is not {one_run['recorded']}.json")
        clusters = clusters_of(one_run)
        if len(clusters) != len(labels):
            wrong.append(f"{which}: has clusters of {len(clusters)} images, not {len(labels)}")
            continue
        again = metrics.scores(labels, clusters) | {"purity": metrics.purity(labels, clusters)}
        wrong += differing(which, one_run["metrics"], again, 1e-4, "clusters give")
        if one_run["used"] != len(clusters.unique()):
            wrong.append(f"{which}: used is {one_run['used']}, its clusters give another number")
    return wrong


def wrong_ablations(folder: Path = FOLDER) -> list[str]:
    """The faults of the files in a folder."""
    paths = sorted(folder.glob("*.json"))
    unknown = [f"{path.name} belongs to no study" for path in paths if path.stem not in STUDIES]
    known = [path for path in paths if path.stem in STUDIES]
    return unknown + [line for path in known for line in faults(path.stem, read(path))]


# ---------------------------------------------------------------- the tables


def difference(found: dict[str, Any], variant: str, metric: str) -> tuple[float, float, int]:
    """Mean of variant minus recipe over the seeds of both, half its 95 % interval, n.

    Of a consensus: minus the mean of its members.
    """
    scores = {(r["variant"], r["seed"]): r["metrics"][metric] for r in found["runs"]}
    m = found.get("members", 1)
    pairs = [
        (v, statistics.fmean(scores[RECIPE, m * s + j] for j in range(m)))
        for (title, s), v in scores.items()
        if title == variant and (RECIPE, m * s) in scores
    ]
    if not pairs:
        return float("nan"), float("inf"), 0
    return *paired(*zip(*pairs)), len(pairs)


def word(mean: float, half: float, claim: str = "") -> str:
    """What a difference and half its interval say about a claim, "better", "worse" or "same".

    Without a claim: "higher", "lower", or "within noise" if the interval contains 0.
    """
    told = "within noise" if abs(mean) <= half else "higher" if mean > 0 else "lower"
    if claim == "same":
        within, beyond = abs(mean) + half <= SAME, abs(mean) > max(half, SAME)
        return "**reproduced**" if within else "**refuted**" if beyond else "within noise"
    if not claim or told == "within noise":
        return told
    return "**reproduced**" if (told == "higher") == (claim == "better") else "**refuted**"


def content(name: str, folder: Path = FOLDER) -> str:
    """The Markdown of a study; without its file, the command that makes it."""
    found, study = read(folder / f"{name}.json"), STUDIES[name]
    if not found or not found["runs"]:
        return f"Not run yet: `python book/ablations.py {name}`."
    shown = [v for v in (RECIPE, *study.variants) if any(r["variant"] == v for r in found["runs"])]
    known = ("ACC", "NMI", "purity", "kNN", "linear", "mAP", "ECE", "unanimous", "ACC of these",
             "k-means")  # fmt: skip
    columns = [c for c in known if any(c in r["metrics"] for r in found["runs"])]
    lines = []
    for variant in shown:
        runs = [r for r in found["runs"] if r["variant"] == variant]
        used = statistics.fmean(r["used"] for r in runs)
        seconds = [r["seconds"] for r in runs if "seconds" in r]
        cells = [results.cell(runs, metric) for metric in columns]
        lines.append([variant, *cells, f"{used:.1f}".removesuffix(".0"), str(len(runs)),
                      f"{statistics.fmean(seconds):.0f}" if seconds else ""])  # fmt: skip
        if study.members > 1:
            lines[-1].append(results.short(likeness(runs)))
    verdicts = []
    for title in shown[1:]:
        variant = study.variants[title]
        score = variant.score or study.score
        mean, half, n = difference(found, title, score)
        range_ = f"{mean:+.3f} ± {half:.3f}" if n > 1 else f"{mean:+.3f}"
        told = word(mean, half, variant.claim) if n > 1 else "one seed"
        verdicts.append([title, variant.published, score, range_, str(n), told])
    head = ["changed", "published", "score", "difference, 95 %", "n", "here"]
    likely = ["ARI of two"] if study.members > 1 else []
    torches, revisions = (
        ", ".join(sorted({r["versions"][k] for r in found["runs"]})) for k in ("torch", "revision")
    )
    machines = ", ".join(sorted({r["machine"]["cpu"] for r in found["runs"]}))
    return "\n\n".join(
        [
            f"Trained and scored on the same {found['images']:,} images of {found['data']}; last "
            "epoch, mean ± standard deviation over the seeds:",
            results.markdown(["", *columns, "used", "n", "CPU s", *likely], lines),
            results.markdown(head, verdicts),
            *by_size(found),
            folded(
                "Machine and command",
                f"- `{found['command']}`\n"
                f"- Machine: {machines}, 1 thread; torch {torches}; revision {revisions}.\n"
                f"- Checksum of the images and labels: `{found['checksum']}`.",
            ),
        ]
    )


def likeness(runs: list[Run]) -> float:
    """Mean ARI of every two of some runs: how much the same they would say again. No labels."""
    pairs = itertools.combinations(map(clusters_of, runs), 2)
    return statistics.fmean(metrics.ari(a, b) for a, b in pairs) if len(runs) > 1 else math.nan


def by_size(found: dict[str, Any]) -> list[str]:
    """The table of `drawn`, if the file has it."""
    if not (said := found.get("drawn")):
        return []
    first = next(iter(said.values()))
    lines = [
        [size, *(f"{results.short(statistics.fmean(said[title][size]))} ± "
                 f"{results.short(statistics.stdev(said[title][size]))}" for title in said)]
        for size in first
    ]  # fmt: skip
    n = len(next(iter(first.values())))
    return [
        f"ACC by the number of members, mean ± standard deviation over {n} groups drawn from the "
        "runs above, which overlap:",
        results.markdown(["members", *said], lines),
    ]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    known = sorted({variant for study in STUDIES.values() for variant in study.variants})
    parser.add_argument("studies", nargs="*", help=f"of {', '.join(STUDIES)} (default: all)")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", action="append", metavar="VARIANT", choices=known)
    parser.add_argument("--out", type=Path, default=FOLDER)
    asked = parser.parse_args(arguments)
    if unknown := [name for name in asked.studies if name not in STUDIES]:
        parser.error(f"there is no study {unknown[0]!r}; there are {', '.join(STUDIES)}")
    for name in asked.studies or STUDIES:
        mine = asked.only and [v for v in asked.only if v in STUDIES[name].variants]
        count = run(name, asked.out, asked.seeds, mine)
        print(f"{name}: added {count} missing runs")
    return 0


if __name__ == "__main__":
    sys.exit(main())
