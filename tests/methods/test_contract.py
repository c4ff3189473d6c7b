"""What every file in dcl/methods keeps, whoever wrote it."""

import importlib
import inspect
import json
from dataclasses import fields, replace

import pytest
import torch

from dcl.config import flat, unflat, with_epochs, with_rows, with_stages
from dcl.data import load
from dcl.measure.health import ADVICE
from dcl.measure.metrics import accuracy
from dcl.methods import methods
from dcl.nets.convnets import encoder
from dcl.recipes import recipe, recipes
from dcl.train import extract, predict, seeded
from sabotage import METHODS
from smoke import accepted, module, same

CLUSTERING = sorted(methods())


@pytest.fixture(scope="module")
def digits():
    return load("digits").subset(300)


def state(module_):
    """A copy of a state dict."""
    return {k: v.clone() if torch.is_tensor(v) else v for k, v in module_.state_dict().items()}


def tiny(stem):
    """The smoke recipe, cut to two epochs of each stage that it has, and batches of 100."""
    return with_rows(with_epochs(recipe(stem, "smoke"), 2), 100)


def schooled(stem):
    """With a longer pretext: on one that knows nothing there may be one cluster."""
    config = tiny(stem)
    if base := getattr(config, "base", None):  # a clustering, whose pretext it is
        return replace(config, base=replace(base, pretext=with_epochs(base.pretext, 40)))
    pretext = getattr(config, "pretext", None)
    return replace(config, pretext=with_epochs(pretext, 40)) if pretext else config


@pytest.fixture(scope="module")
def fitted(digits):
    done = {}

    def fit(stem):
        if stem not in done:
            before = torch.get_rng_state()
            rows = []

            def look(stage, epoch, objective, losses):
                rows.append(((stage, epoch), losses, objective.chances()))

            done[stem] = (
                module(stem).fit(digits.images, tiny(stem), monitor=look),
                rows,
                torch.equal(before, torch.get_rng_state()),
            )
        return done[stem]

    return fit


@pytest.mark.parametrize("stem", METHODS)
def test_signature_has_no_room_for_labels(stem):
    parameters = inspect.signature(module(stem).fit).parameters
    assert list(parameters) == ["images", "config", "encoder", "monitor", "run_dir"]


@pytest.mark.parametrize("stem", METHODS)
def test_losses_are_finite_and_the_random_state_is_the_callers(stem, fitted):
    _, rows, untouched = fitted(stem)
    assert untouched
    assert rows
    for (stage, epoch), losses, chances in rows:
        assert isinstance(stage, str) and isinstance(epoch, int)
        assert "loss" in losses
        assert torch.isfinite(torch.tensor(losses["loss"])), (stage, epoch, losses)
        assert chances.keys() <= losses.keys() and all(0 < c < 20 for c in chances.values())


@pytest.mark.parametrize("stem", METHODS)
def test_the_encoder_gives_features(stem, fitted, digits):
    z = extract(fitted(stem)[0].encoder, digits.images)
    assert z.shape[0] == len(digits) and z.ndim == 2 and z.isfinite().all()


@pytest.mark.parametrize("stem", CLUSTERING)
def test_clusters_are_above_chance_and_predict_changes_nothing(stem, digits):
    objective = module(stem).fit(digits.images, schooled(stem))
    before = state(objective)
    modes = [m.training for m in objective.modules()]
    clusters = predict(objective, digits.images)
    assert torch.equal(clusters, predict(objective, digits.images))
    assert [m.training for m in objective.modules()] == modes
    assert same(objective.state_dict(), before)
    assert clusters.shape == (300,) and clusters.dtype == torch.int64
    k = tiny(stem).n_clusters
    assert clusters.min() >= 0 and clusters.max() < k
    assert accuracy(digits.labels, clusters) > 0.2  # 300 random labels give about .15
    one = torch.stack([objective.predict(x[None].float() / 255)[0] for x in digits.images[:4]])
    assert torch.equal(one, clusters[:4])  # an image's cluster does not depend on its batch


@pytest.mark.parametrize("stem", METHODS)
def test_the_same_seed_gives_the_same_run_and_another_gives_another(stem, fitted, digits):
    first = fitted(stem)[0].state_dict()
    again = module(stem).fit(digits.images, tiny(stem)).state_dict()
    assert same(first, again)
    other = module(stem).fit(digits.images, replace(tiny(stem), seed=1)).state_dict()
    assert not same(first, other)


@pytest.mark.parametrize("stem", METHODS)
def test_a_run_goes_on_where_it_was_stopped(stem, fitted, digits, tmp_path):
    stages = [key for key, *_ in fitted(stem)[1]]

    def interrupt(stage, epoch, objective, losses):
        if (stage, epoch) == stages[-1] if len(stages) == 1 else (stage, epoch) == stages[-2]:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        module(stem).fit(digits.images, tiny(stem), monitor=interrupt, run_dir=tmp_path)
    resumed = module(stem).fit(digits.images, tiny(stem), run_dir=tmp_path).state_dict()
    whole = fitted(stem)[0].state_dict()
    assert same(resumed, whole)
    with pytest.raises(ValueError, match="seed: there 0, now 5"):
        module(stem).fit(digits.images, replace(tiny(stem), seed=5), run_dir=tmp_path)


@pytest.mark.parametrize("stem", METHODS)
def test_an_encoder_handed_in_is_used_and_left_alone(stem, digits):
    mine = accepted(stem, digits.images, encoder("small_cnn", digits.images, width=8))
    before = state(mine)
    objective = module(stem).fit(digits.images, tiny(stem), encoder=mine)
    assert same(mine.state_dict(), before)
    assert extract(objective.encoder, digits.images[:2]).shape[1] <= max(8 * 4, 256)


@pytest.mark.parametrize("stem", METHODS)
def test_a_configuration_is_plain_json(stem):
    for name, config in recipes(stem).items():
        plain = flat(config)
        assert json.loads(json.dumps(plain)) == plain, name
        assert len(fields(config)) <= 20
        assert getattr(config, "advice", {}).keys() <= ADVICE.keys()


@pytest.mark.parametrize("stem", METHODS)
def test_bad_input_is_refused_before_work(stem, digits):
    fit, config = module(stem).fit, tiny(stem)

    def never(*_):
        raise AssertionError("trained before it looked")

    with pytest.raises(TypeError, match=r"images must be .*uint8.*float32"):
        fit(digits.images.float(), config, monitor=never)
    with pytest.raises(ValueError, match="batch_size must be at most 50 for 50 images"):
        fit(digits.images[:50], config, monitor=never)
    if stem in CLUSTERING:
        for k in (1, 301):
            with pytest.raises(ValueError, match=f"n_clusters must be between 2 .* 300; got {k}"):
                fit(digits.images, replace(config, n_clusters=k), monitor=never)


@pytest.mark.parametrize("stem", METHODS)
def test_vectors_are_taken_or_refused_as_the_config_says(stem):
    with seeded(0):
        truth = torch.arange(150) % 3
        vectors = (20 * torch.randn(3, 12))[truth] + torch.randn(150, 12)
    config = schooled(stem)
    if not getattr(config, "takes_vectors", False):
        with pytest.raises(ValueError, match=f"{stem} needs images"):
            module(stem).fit(vectors, config)
        if not hasattr(type(config), "takes_vectors"):
            return
        config = with_rows(with_epochs(recipe(stem, "frozen"), 20), 150)
    if stem in CLUSTERING:
        config = replace(config, n_clusters=3)
    objective = module(stem).fit(vectors, config)
    if stem in CLUSTERING:
        assert accuracy(truth, predict(objective, vectors)) == 1


@pytest.mark.parametrize("stem", METHODS)
def test_a_pretext_handed_in_gives_the_same_run(stem, fitted, digits):
    config = tiny(stem)
    if not hasattr(config, "pretext"):
        pytest.skip("no pretext")
    pretext = importlib.import_module(type(config.pretext).__module__)
    done = pretext.fit(digits.images, replace(config.pretext, seed=config.seed))
    handed = module(stem).fit(digits.images, config, encoder=done)
    assert same(handed.state_dict(), fitted(stem)[0].state_dict())


@pytest.mark.parametrize("stem", METHODS)
def test_a_removed_setting_is_accepted_with_the_value_that_changes_nothing(stem):
    config = tiny(stem)
    gone = getattr(config, "gone", {})
    assert unflat(type(config), flat(config) | gone) == config
    for name in (*gone, "never"):
        with pytest.raises(ValueError, match=f"has no field {name}"):
            unflat(type(config), flat(config) | gone | {name: "other"})


@pytest.mark.parametrize("stem", CLUSTERING)
def test_colour_images_of_another_size_train_too(stem):
    shapes = load("shapes").subset(200)
    config = replace(schooled(stem), n_clusters=6)
    objective = module(stem).fit(shapes.images, config)
    assert predict(objective, shapes.images).unique().numel() >= 2


@pytest.mark.parametrize("stem", CLUSTERING)
def test_bfloat16_runs(stem, digits):
    config = with_stages(tiny(stem), lambda stage: replace(stage, precision="bfloat16"))
    objective = module(stem).fit(digits.images, config)
    assert all(v.isfinite().all() for v in objective.parameters())
