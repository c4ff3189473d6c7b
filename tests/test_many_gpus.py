"""The page *Many GPUs*: its numbers follow from its formulas, and its formulas from the code.

`python tests/test_many_gpus.py` writes the numbers into the page.
"""

import importlib
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as td
from torch import nn

from dcl.cluster.kmeans import lloyd
from dcl.config import TrainConfig
from dcl.data import load
from dcl.recipes import recipe
from dcl.train import train
from dcl.views import View
from processes import in_processes

PAGE = Path(__file__).resolve().parent.parent / "book" / "many-gpus.md"
UNITS = {"step": "B", "epoch": "B", "memory": "B", "work": ""}


def part(name, text):
    return re.search(rf"<!-- {name}: start -->(.*?)<!-- {name}: end -->", text, re.S)[1]


def rows(name, text):
    """The rows of the table between two marks, as lists of cells, without its head."""
    lines = [line for line in part(name, text).splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def settings(text):
    """The two columns of numbers, each {symbol: number}."""
    found = rows("settings", text)
    return [
        {cells[0].strip("`"): int(cells[k].replace(",", "")) for cells in found} for k in (2, 3)
    ]


def formulas(name, text):
    return {what: formula.strip("`") for what, formula, *_ in rows(name, text)}


def value(formula, numbers):
    return eval(formula, {"__builtins__": {}, "ln": math.log, "int": int}, numbers)


def amount(x, unit):
    """Three digits and a prefix: 94.0 MB; without a unit a power of ten: 6.6 · 10^12."""
    digits, power = f"{x:.2e}".split("e") if unit else f"{x:.1e}".split("e")
    if not unit:
        return f"{digits} · 10^{int(power)}"
    step, shift = divmod(int(power), 3)
    return f"{float(digits) * 10**shift:.{2 - shift}f} {['', 'k', 'M', 'G', 'T'][step]}{unit}"


def filled(text):
    """The page with the numbers that its formulas give."""
    both = settings(text)
    for name, unit in UNITS.items():
        old = part(name, text)
        head = "\n".join(old.strip().splitlines()[:2])
        body = [
            f"| {what} | {formula} | "
            + " | ".join(amount(value(formula.strip("`"), n), unit) for n in both)
            + " |"
            for what, formula, *_ in rows(name, text)
        ]
        text = text.replace(old, "\n\n" + "\n".join([head, *body]) + "\n\n")
    return text


def test_amounts():
    assert amount(94_001_408, "B") == "94.0 MB"
    assert amount(265, "B") == "265 B"
    assert amount(10_248_000, "B") == "10.2 MB"
    assert amount(999_999, "B") == "1.00 MB"
    assert amount(102.4e9, "B") == "102 GB"
    assert amount(6.56e12, "") == "6.6 · 10^12"


def test_the_numbers_on_the_page_follow_from_its_formulas():
    text = PAGE.read_text()
    assert filled(text) == text, "run python tests/test_many_gpus.py"
    assert filled(text.replace("| 1,281,167 |", "| 1,281,168,000 |")) != text


def test_numbers_in_sentences_follow_from_the_settings():
    text = " ".join(PAGE.read_text().split())
    small, large = settings(PAGE.read_text())
    assert f"4 · {small['W']:,} = {4 * small['W']:,} bytes, 94 MB" in text
    assert f"{5 * small['L']} in a pass of ResNet-50" in text
    work = formulas("work", PAGE.read_text())
    rounds = value(work["k-means++, one start"], small) / value(
        work["k-means, a round of assignments"], small
    )
    assert f"it costs as much as {rounds:.0f} rounds" in text
    assert f"({3 * 64 * 64:,} bytes each) it is {amount(small['N'] * 3 * 64 * 64, 'B')}" in text
    assert f"x 256 x 4 bytes are {amount(large['N'] * 256 * 4, 'B')}" in text


def test_the_network_of_the_tables_is_the_one_that_is_built():
    from dcl.nets import convnets

    network = convnets.encoder("resnet50", torch.zeros(1, 3, 224, 224, dtype=torch.uint8))
    norms = [m.num_features for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    found = {
        "W": sum(p.numel() for p in network.parameters()),
        "L": len(norms),
        "C": sum(norms),
        "D": network.out_dim,
    }
    assert all(found.items() <= numbers.items() for numbers in settings(PAGE.read_text()))


# ---------------------------------------------------------------- counted

SAME, BATCH = View(), 20
SMALL = {
    # the method's settings, and what its step is made of: (row of the page, how often)
    "simclr": ({"view": SAME}, {"BatchNorm, one pass with gradients": 1,
        "SimCLR: embeddings of two views": 1}),
    "deepcluster": ({"view": SAME, "n_pseudo": 5, "n_clusters": 3, "reassign": 100},
        {"BatchNorm, one pass with gradients": 1}),
    "lsdc": ({"view": SAME, "clean_view": SAME, "n_clusters": 7, "frozen": ()},
        {"BatchNorm, one pass with gradients": 3, "LSD-C: features, owners, probabilities": 1}),
    "dac": ({"view": SAME, "n_clusters": 7}, {"BatchNorm, one pass with gradients": 1,
        "BatchNorm, one pass without": 1, "DAC: label features twice, owners": 1}),
    "swav": ({"views": (SAME, SAME), "n_prototypes": 9, "freeze_steps": 0, "queue_length": BATCH,
        "queue_start": 0, "dim": 6}, {"BatchNorm, one pass with gradients": 1,
        "SwAV: Sinkhorn, two crops, three rounds": 1,
        "SwAV: embeddings for the queue, if there is one": 1}),
    "scan": ({"scan_view": SAME, "n_clusters": 7, "heads": 2}, {
        "BatchNorm, one pass with gradients": 1, "SCAN: logits of images and neighbours": 1}),
    "selflabel": ({"strong": SAME, "n_clusters": 7, "heads": 2}, {
        "BatchNorm, one pass with gradients": 1, "BatchNorm, one pass without": 1,
        "SCAN: logits for self-labelling": 1}),
}  # fmt: skip


def network():
    net = nn.Sequential(
        nn.Conv2d(1, 4, 5, 3), nn.BatchNorm2d(4), nn.Tanh(),
        nn.Conv2d(4, 6, 2), nn.BatchNorm2d(6), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
    )  # fmt: skip
    net.out_dim = 6
    return net


def objective(stem, images):
    method = "scan" if stem == "selflabel" else stem
    module = importlib.import_module(f"dcl.methods.{method}")
    stage = TrainConfig(1, BATCH, "sgd", 0.01, precision="float32")
    name = "scan" if method == "scan" else "train"
    config = replace(recipe(method, "smoke"), **SMALL[stem][0], **{name: stage})
    if stem == "scan":
        neighbors = torch.arange(len(images))[:, None]
        return module.Scan(network(), images, neighbors, config), stage
    return module.model(images, config, network()), stage


def counted(rank):
    """Bytes added up in a step of each method: an epoch of five steps less one of three."""
    sent = []
    add = td.all_reduce

    def noted(x, *rest, **more):
        sent.append(x.numel() * x.element_size())
        return add(x, *rest, **more)

    td.all_reduce = noted
    images = load("digits").subset(5 * BATCH).images
    found = {}
    for stem in SMALL:
        totals, messages = [], []
        for n in (3, 5):
            torch.manual_seed(0)
            made, stage = objective(stem, images[: n * BATCH])
            made.before_epoch = lambda epoch: None  # what happens once per epoch does not count
            sent.clear()
            train(made, images[: n * BATCH], stage)
            totals.append(sum(sent))
            messages.append(len(sent))
        norms = [m for m in made.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        found[stem] = {
            "bytes": (totals[1] - totals[0]) / 2,
            "messages": (messages[1] - messages[0]) / 2,
            "W": sum(p.numel() for p in made.parameters() if p.requires_grad),
            "L": len(norms),
            "C": sum(m.num_features for m in norms),
        }
    x = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
    for rounds in (1, 2):  # far from standing still
        sent.clear()
        lloyd(x, torch.zeros(6), 4, rounds, False, x[:4])
        found[f"rounds {rounds}"] = sum(sent)
    return found


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return in_processes(counted, (), tmp_path_factory.mktemp("counted"))[0]


@pytest.mark.parametrize("stem", SMALL)
def test_a_step_sends_what_the_page_says(stem, found):
    made, (changed, parts) = found[stem], SMALL[stem]
    numbers = {k: made[k] for k in "WLC"} | {"P": 2, "B": BATCH, "D": 6, "H": 2}
    numbers["K"] = changed.get("n_prototypes", changed.get("n_clusters"))
    numbers["e"] = changed.get("dim", 64)
    page = formulas("step", PAGE.read_text())
    expected = value(page["gradients"], numbers)
    expected += sum(times * value(page[row], numbers) for row, times in parts.items())
    assert made["bytes"] == expected
    if stem == "deepcluster":  # gradients in one message, and five for each BatchNorm
        assert made["messages"] == 1 + 5 * made["L"]


def test_a_round_of_k_means_sends_what_the_page_says(found):
    page = formulas("epoch", PAGE.read_text())["DeepCluster: k-means, each of 20 rounds"]
    on_a_gpu = value(page, {"K": 4, "d": 6})
    assert found["rounds 2"] - found["rounds 1"] == on_a_gpu - 4 * 4 * 6  # a CPU sums in float32


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text()))
