"""The page *Many GPUs*: its numbers follow from its formulas, and its formulas from the code.

`python tests/test_many_gpus.py` writes the numbers into the page.
"""

import math
import re
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as td
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.module import register_module_forward_pre_hook

from dcl import train as loop
from dcl.cluster.kmeans import lloyd
from dcl.config import TrainConfig, with_stages
from dcl.data import load
from dcl.nets import convnets
from dcl.recipes import recipe
from dcl.train import batches
from processes import in_processes
from sabotage import METHODS
from smoke import accepted, module, smooth, still

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
    """Three digits and a prefix: 94.0 MB; without a unit a power of ten: 6.6 · 10¹²."""
    digits, power = f"{x:.2e}".split("e") if unit else f"{x:.1e}".split("e")
    if not unit:
        raised = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")
        return f"{digits} · 10{str(int(power)).translate(raised)}"
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
    assert amount(6.56e12, "") == "6.6 · 10¹²"


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

BATCH = 20
STEP = TrainConfig(2, BATCH, "sgd", 0.01, precision="float32")


def counted(rank):
    """What the last step of each stage of each method adds up, and the rounds of a k-means."""
    sent, norms, step, steps, rounds = [], [], {}, {}, {}
    add, average = td.all_reduce, loop.dist.average_gradients

    def noted(x, *rest, **more):
        sent.append(x.numel() * x.element_size())
        return add(x, *rest, **more)

    def passed(module, inputs):
        if isinstance(module, _BatchNorm) and module.training:
            norms.append((module.num_features, torch.is_grad_enabled()))

    def stepwise(*args):
        for batch in batches(*args):
            sent.clear()
            norms.clear()
            yield batch
        step.update(sent=[*sent], norms=[*norms])

    def weighed(parameters):
        own = [*parameters]
        step["W"] = sum(p.numel() for p in own if p.grad is not None)  # that this step trains
        average(own)

    td.all_reduce, loop.batches, loop.dist.average_gradients = noted, stepwise, weighed
    register_module_forward_pre_hook(passed)
    images = load("digits").subset(5 * BATCH).images
    for stem in METHODS:
        config = with_stages(still(recipe(stem, "smoke")), lambda s: STEP if s.epochs else s)

        def look(stage, epoch, objective, losses, stem=stem, config=config):
            width = objective.embed(images[:2].float() / 255).shape[1]
            width = getattr(config, "dim", width)  # of one of MiCE's experts
            numbers = {"W": step["W"], "P": 2, "B": BATCH, "D": 12, "e": width}
            numbers["K"] = getattr(config, "n_prototypes", getattr(config, "n_clusters", 0))
            numbers["H"] = getattr(config, "heads", 1)
            foreign = type(objective).__module__ != module(stem).__name__
            base = getattr(config, "base", None) if foreign else None  # a clustering before it
            name = (module(stem) if base is None else sys.modules[type(base).__module__]).__doc__
            if base:
                numbers["H"] = base.heads
            steps[stem, stage] = {"name": name.split(":")[0], "numbers": numbers, **step}

        module(stem).fit(images, config, encoder=accepted(stem, images, smooth()), monitor=look)
    x = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
    for n in (1, 2):  # far from standing still
        sent.clear()
        lloyd(x, torch.zeros(6), 4, n, False, x[:4])
        rounds[n] = sum(sent)
    return steps, rounds


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return in_processes(counted, (), tmp_path_factory.mktemp("counted"))[0]


def expected(name, stage, step):
    """Bytes of a step by the page: gradients, BatchNorm, and the rows of the method or stage."""
    page = formulas("step", PAGE.read_text())
    total = value(page["gradients"], step["numbers"])
    for row, grad in (("BatchNorm, one pass with gradients", True),
                      ("BatchNorm, one pass without", False)):  # fmt: skip
        channels = [width for width, needed in step["norms"] if needed == grad]
        total += value(page[row], {"L": len(channels), "C": sum(channels)})
    own = [row for row in page if row.startswith(f"{name}, {stage}:")]
    own = own or [row for row in page if row.startswith(f"{name}:")]
    return total + sum(value(page[row], step["numbers"]) for row in own), own


@pytest.mark.parametrize("stem", METHODS)
def test_a_step_sends_what_the_page_says(stem, found):
    """A method whose step sends more has a row on the page, which begins with its name."""
    steps = {stage: step for (method, stage), step in found[0].items() if method == stem}
    assert steps
    for stage, step in steps.items():
        total, own = expected(step["name"], stage, step)
        assert sum(step["sent"]) == total, (stage, own)
        if not own:  # gradients in one message; three for a BatchNorm, two more on the way back
            messages = [5 if needed else 3 for _, needed in step["norms"]]
            assert len(step["sent"]) == 1 + sum(messages)


def test_a_round_of_k_means_sends_what_the_page_says(found):
    page = formulas("epoch", PAGE.read_text())["DeepCluster: k-means, each of 20 rounds"]
    on_a_gpu = value(page, {"K": 4, "d": 6})
    assert found[1][2] - found[1][1] == on_a_gpu - 4 * 4 * 6  # a CPU sums in float32


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text()))
