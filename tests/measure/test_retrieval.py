"""mAP and CMC by hand, by a slow loop, and what they leave out."""

import pytest
import torch

from dcl.measure.retrieval import retrieval
from dcl.train import seeded


def test_by_hand():
    # one query, person 0 seen by camera 0, and a gallery from near to far
    angles = torch.tensor([0.0, 0.1, 0.2, 0.3, 0.4, 0.5])
    z = torch.stack([angles.cos(), angles.sin()], 1)
    person = [0, 0, 1, 0, 1, 0]
    camera = [0, 0, 1, 1, 1, 2]
    query = [True] + [False] * 5
    found = retrieval(z, person, camera, query, ranks=4)
    # the nearest picture, by the query's own camera, does not count: wrong right wrong right
    assert found.map == pytest.approx((1 / 2 + 2 / 4) / 2)
    assert found.cmc.tolist() == [0, 1, 1, 1] and found.queries == 1


def slow(z, person, camera, query, ranks):
    cosine = (z / z.norm(dim=1, keepdim=True)) @ (z / z.norm(dim=1, keepdim=True)).T
    rows, precisions, firsts = range(len(z)), [], []
    for q in rows:
        if not query[q]:
            continue
        gallery = [g for g in rows if not query[g]]
        gallery = [g for g in gallery if (person[g], camera[g]) != (person[q], camera[q])]
        gallery.sort(key=lambda g, q=q: -float(cosine[q, g]))
        places = [k for k, g in enumerate(gallery) if person[g] == person[q]]
        if places:
            precisions.append(sum((n + 1) / (k + 1) for n, k in enumerate(places)) / len(places))
            firsts.append(places[0])
    cmc = [sum(first <= r for first in firsts) / len(firsts) for r in range(ranks)]
    return sum(precisions) / len(precisions), cmc, len(firsts)


@pytest.mark.parametrize("seed", range(4))
def test_it_is_the_slow_loop(seed):
    with seeded(seed):
        z = torch.randn(57, 5)
        person, camera = torch.randint(9, (57,)), torch.randint(3, (57,))
        query = torch.rand(57) < 0.4
    person[0], query[0] = 99, True  # nobody else's picture: does not count
    average, cmc, queries = slow(z, person.tolist(), camera.tolist(), query.tolist(), 7)
    found = retrieval(z, person, camera, query, ranks=7)
    assert found.map == pytest.approx(average, abs=1e-6) and found.queries == queries
    assert found.cmc.tolist() == pytest.approx(cmc)
    assert queries < int(query.sum())
    longer = retrieval(3 * z, person, camera, query, ranks=7)
    assert longer.map == pytest.approx(found.map)  # cosines


def test_a_perfect_embedding_has_1_and_one_of_cameras_has_less_than_chance():
    person, camera = torch.arange(60) % 5, torch.arange(60) // 5 % 4
    query = torch.arange(60) < 20
    assert retrieval(torch.eye(5)[person], person, camera, query).map == 1
    with seeded(0):
        blind = retrieval(torch.randn(60, 8), person, camera, query).map
        cameras = retrieval(torch.eye(4)[camera] + 0.01 * torch.randn(60, 4), person, camera, query)
    assert cameras.map < blind < 0.4


@pytest.mark.parametrize(
    "change, message",
    [
        ({"z": torch.zeros(3, 2)}, r"z must be \(N,D\), the others \(N,\); got \(3, 2\)"),
        ({"z": torch.full((4, 2), torch.nan)}, "z must be finite"),
        ({"camera": [0, 0, 0, 0]}, "query must hold a picture of a person whom another camera"),
    ],
)
def test_bad_input_is_refused(change, message):
    good = {"z": torch.eye(4)[:, :2] + 1, "person": [0, 0, 1, 1], "camera": [0, 1, 0, 1]}
    good["query"] = [True, False, True, False]
    assert retrieval(**good).queries == 2
    with pytest.raises(ValueError, match=message):
        retrieval(**good | change)
