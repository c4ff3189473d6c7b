"""`dcl ensemble`: runs and files become one clustering, its page says where to look."""

import json
import re
import shutil

import numpy as np
import pytest
import torch

from browser import CONTRAST, OVERFLOW, Seen, looking  # noqa: F401
from dcl.app import ensemble as work
from dcl.app.assignments import read_csv
from dcl.app.cli import IMPOSSIBLE, OK, WARNING, main
from dcl.app.ensemble import Consensus, Members, ensemble
from dcl.app.report_ensemble import clusters, doubtful, mixed, report
from dcl.data import load
from photos import photos_in

TRUTH = torch.arange(60) % 3
MEMBERS = torch.stack([TRUTH, (TRUTH + 1) % 3, 2 - TRUTH])
"""The same clustering in three numberings."""


def differing():
    """The three with images 0 to 3, of cluster 0, 1, 2, 0, put elsewhere by the first member."""
    rows = MEMBERS.clone()
    rows[0, :4] = torch.tensor([1, 2, 1, 1])
    return rows


# ---------------------------------------------------------------- from Python


@pytest.mark.parametrize("method", work.METHODS)
def test_python_gives_clusters_agreement_and_votes(method):
    given = [differing()[0].numpy(), differing()[1].tolist(), differing()[2]]
    found = ensemble(given, method=method)
    assert (found.clusters[:, None] == found.clusters).equal(TRUTH[:, None] == TRUTH)
    assert found.agreement.tolist() == pytest.approx([2 / 3] * 4 + [1] * 56)
    assert found.votes[1:].equal(found.clusters.expand(2, -1))
    assert (found.votes[0] != found.clusters).nonzero()[:, 0].tolist() == [0, 1, 2, 3]


def test_the_largest_cluster_is_number_0():
    row = torch.tensor([2, 2, 2, 2, 0, 0, 1, 1, 1])
    assert ensemble([row, row]).clusters.tolist() == [0] * 4 + [2] * 2 + [1] * 3
    fewer = ensemble([row, torch.where(row == 0, 1, row)], n_clusters=2)
    assert fewer.clusters.tolist() == [1] * 4 + [0] * 5
    assert ensemble(torch.stack([row])).clusters.max() == 2  # one is its own consensus


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda: ensemble([[0, 1], [0, 1, 1]]), ValueError, r"equal length.* got \(2,\), \(3,\)"),
        (lambda: ensemble([]), ValueError, "labels must be rows of equal length.* got none"),
        (lambda: ensemble([0, 1]), ValueError, r"got \(\), \(\)"),
        (lambda: ensemble([[0.0, 1.0]]), TypeError, "labels must be whole numbers; got torch.flo"),
        (lambda: ensemble([[0, -1]]), ValueError, "labelings must be numbers from 0; got -1"),
        (lambda: ensemble(MEMBERS, method="vote"), ValueError, "method must be one of evidence, "
         "spectral, majority; got 'vote'"),
        (lambda: ensemble([[0, 1, 1], [0, 1, 2]]), ValueError, "n_clusters must be given when the "
         "members have different numbers of clusters; they have 2, 3"),
        (lambda: ensemble(MEMBERS, 4), ValueError, "n_clusters must be at most 3, .* got 4"),
        (lambda: ensemble(MEMBERS, 2, "majority"), ValueError, "n_clusters must be that of a row, "
         "3, 3, 3, for method majority; got 2: evidence and spectral take any"),
        (lambda: ensemble(MEMBERS, 2.5), TypeError, "n_clusters must be an integer; got 2.5"),
    ],
)  # fmt: skip
def test_python_names_what_is_wrong(call, kind, message):
    with pytest.raises(kind, match=message):
        call()


# ---------------------------------------------------------------- from runs


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return photos_in(tmp_path_factory.mktemp("photos"))


@pytest.fixture(scope="module")
def runs(photos, tmp_path_factory):
    place = tmp_path_factory.mktemp("runs")
    for seed in ("0", "1", "2"):
        asked = ["--data", str(photos), "--out", str(place / f"run{seed}"), "--recipe", "smoke"]
        asked += ["--clusters", "5", "--size", "16", "--seed", seed]
        assert main(["fit", "deepcluster", *asked]) in (OK, WARNING)
    return [str(place / f"run{seed}") for seed in (0, 1, 2)]


def rows(path, *columns):
    return {row[0]: row[1:] for row in read_csv(path, *columns)}


def pictures(page):
    return len(re.findall("<img ", page.read_text()))


def test_three_runs_of_a_folder_become_one(runs, photos, tmp_path, capfd):
    out = tmp_path / "all"
    assert main(["ensemble", *runs, "--out", str(out)]) in (OK, WARNING)
    said = capfd.readouterr().out
    assert "120 images in 5 clusters; all 3 members agree on " in said and "report.html" in said
    members = [rows(f"{run}/assignments.csv", "file", "cluster") for run in runs]
    found = rows(out / "assignments.csv", "file", "cluster", "confidence")
    assert [*found] == [*members[0]]
    by_hand = ensemble([[int(c) for (c,) in member.values()] for member in members], 5)
    assert [int(c) for c, _ in found.values()] == by_hand.clusters.tolist()
    assert [float(p) for _, p in found.values()] == pytest.approx(
        by_hand.agreement.tolist(), abs=1e-4
    )
    assert pictures(out / "report.html") > 8
    assert main(["evaluate", str(out), "--labels", "folders"]) == OK
    assert "compared 120" in capfd.readouterr().out
    # its folder is a clustering like any other, and may be written again
    assert main(["ensemble", str(out), runs[0], "--out", str(tmp_path / "two")]) in (OK, WARNING)
    assert main(["ensemble", *runs, "--out", str(out), "--method", "spectral"]) in (OK, WARNING)
    assert "<td>spectral</td>" in (out / "report.html").read_text()


def test_images_that_were_moved_are_only_missed_in_the_report(runs, photos, tmp_path, capfd):
    moved, out = tmp_path / "moved", tmp_path / "all"
    copies = [shutil.copytree(run, tmp_path / run[-4:]) for run in runs]
    for copy in copies:
        about = json.loads((copy / "config.json").read_text())
        about["source"]["data"] = str(tmp_path / "gone")
        (copy / "config.json").write_text(json.dumps(about))
    asked = ["ensemble", *map(str, copies), "--out", str(out)]
    assert main(asked) in (OK, WARNING)
    assert "the report shows no pictures; --data PLACE says where" in capfd.readouterr().err
    assert pictures(out / "report.html") == 2  # the charts
    before = (out / "assignments.csv").read_bytes()
    shutil.copytree(photos, moved)
    assert main([*asked, "--data", str(moved)]) in (OK, WARNING)
    assert pictures(out / "report.html") > 8
    assert sorted((out / "assignments.csv").read_bytes().split()) == sorted(before.split())
    next(moved.glob("*/*.png")).unlink()
    assert main([*asked, "--data", str(moved)]) == IMPOSSIBLE
    said = capfd.readouterr().err
    assert "data must hold the 120 images of" in said and "1 are missing, such as" in said


# ---------------------------------------------------------------- from files


def table(path, labels, names=None, order=None):
    names = names or [f"{i}.png" for i in range(len(labels))]
    lines = [f"{name},{label}" for name, label in zip(names, labels, strict=True)]
    lines = [lines[i] for i in order] if order is not None else lines
    path.write_text("file,cluster\n" + "\n".join(lines) + "\n")
    return str(path)


def test_files_alone_will_do_in_any_order(tmp_path, capfd):
    given = differing()
    order = torch.randperm(60, generator=torch.Generator().manual_seed(0)).tolist()
    asked = [table(tmp_path / "a.csv", given[0].tolist())]
    asked += [table(tmp_path / "b.csv", given[1].tolist(), order=order)]
    asked += [table(tmp_path / "c.csv", given[2].tolist(), order=order[::-1])]
    assert main(["ensemble", *asked, "--out", str(tmp_path / "o")]) == OK
    assert "60 images in 3 clusters; all 3 members agree on 93.3%" in capfd.readouterr().out
    found = rows(tmp_path / "o" / "assignments.csv", "file", "cluster", "confidence")
    assert [*found][:5] == ["0.png", "1.png", "2.png", "3.png", "4.png"]
    assert [p for _, p in found.values()] == ["0.6667"] * 4 + ["1.0000"] * 56
    page = (tmp_path / "o" / "report.html").read_text()
    assert pictures(tmp_path / "o" / "report.html") == 2 and "<bdi>3.png</bdi>" in page
    many = [table(tmp_path / "d.csv", range(60)), asked[0]]
    assert main(["ensemble", *many, "--out", str(tmp_path / "o")]) == IMPOSSIBLE
    assert "clusters must be given when the members have" in capfd.readouterr().err
    more = ["--clusters", "3", "--out", str(tmp_path / "o")]
    assert main(["ensemble", *many, *more]) in (OK, WARNING)
    assert "members differ: their mean ARI is 0.00" in capfd.readouterr().out


def test_files_and_the_images_of_a_set_or_vectors(tmp_path):
    labels = load("digits").subset(60).labels.tolist()
    numbers = [str(i) for i in range(60)]
    asked = [table(tmp_path / f"{n}.csv", labels, numbers) for n in "ab"]
    np.save(tmp_path / "images.npy", load("digits").subset(60).images.numpy())
    np.save(tmp_path / "vectors.npy", np.random.default_rng(0).normal(size=(60, 4)))
    for name, noun, least in (("images.npy", "60 images", 12), ("vectors.npy", "60 vectors", 2)):
        out = tmp_path / noun
        assert main(["ensemble", *asked, "--data", str(tmp_path / name), "--out", str(out)]) in (
            OK, WARNING,
        )  # fmt: skip
        assert f"{noun} in 10 clusters" in (out / "report.html").read_text()
        assert pictures(out / "report.html") >= least
    assert pictures(tmp_path / "60 vectors" / "report.html") == 2


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ("a.png,0\nb.png,1\n", "got 2: 1 are missing, such as 'c.png'"),
        ("a.png,0\nb.png,1\nx.png,1\n", "1 are missing, such as 'c.png', 1 are not of "),
        ("a.png,0\nb.png,1\nc.png,1\nd.png,0\n", "images of .*a.csv, and no other; got 4"),
        ("a.png,0\nb.png\nc.png,1\n", "cluster must be a whole number, 0 or more; got '' for 'b"),
        ("a.png,0\nb.png,\nc.png,1\n", "cluster must be a whole number, 0 or more; got '' for 'b"),
        ("a.png,0\nb.png,-1\nc.png,1\n", "whole number, 0 or more; got '-1' for 'b.png'"),
        ("a.png,0\nb.png,1\nb.png,1\nc.png,1\n", "one row per image; 'b.png' has several"),
    ],
)
def test_other_images_and_holes_are_named_before_any_work(second, message, tmp_path, capfd):
    one, two, out = tmp_path / "a.csv", tmp_path / "b.csv", tmp_path / "o"
    one.write_text("file,cluster\na.png,0\nb.png,1\nc.png,1\n")
    two.write_text("file,cluster\n" + second)
    assert main(["ensemble", str(one), str(two), "--out", str(out)]) == IMPOSSIBLE
    said = capfd.readouterr().err
    assert re.search(message, said) and "b.csv" in said
    assert not out.exists()


def test_what_cannot_be_combined_is_said_in_a_line(runs, tmp_path, capfd):
    other = shutil.copytree(runs[0], tmp_path / "other")
    for run in (one := shutil.copytree(runs[1], tmp_path / "one"), other):
        table(run / "assignments.csv", [0, 1], ["0", "1"])  # of a set, whose images go by number
    about = json.loads((other / "config.json").read_text())
    about["data"]["checksum"] = "0"
    (other / "config.json").write_text(json.dumps(about))
    begun = shutil.copytree(runs[2], tmp_path / "begun")
    (begun / "assignments.csv").unlink()
    out = str(tmp_path / "o")
    for asked, message in (
        ([runs[0]], "members must be two or more different clusterings; got"),
        ([runs[0], runs[0]], "members must be two or more different clusterings; got"),
        ([runs[0], "nowhere"], "there must be a CSV file at nowhere; there is none"),
        ([runs[0], str(begun)], "there is no assignments.csv. If it was interrupted: dcl resume"),
        ([str(one), str(other)], "members must be clusterings of the same images"),
        ([runs[0], str(one)], "120 are missing"),
        ([*runs, "--method", "vote"], "method must be one of evidence, spectral, majority"),
        ([*runs, "--clusters", "-1"], "clusters must be at least 0; got -1"),
        ([*runs, "--clusters", "100"], "n_clusters must be at most"),
        ([*runs, "--data", "digits"], "data must hold the 120 images of"),
        ([*runs, "--out", runs[1]], "holds a run or a member"),
    ):
        place = [] if "--out" in asked else ["--out", out]
        assert main(["ensemble", *asked, *place]) == IMPOSSIBLE, asked
        err = capfd.readouterr().err
        assert message in err and "Traceback" not in err
    assert not (tmp_path / "o").exists()


# ---------------------------------------------------------------- the page


def test_doubtful_images_and_mixed_clusters_by_hand():
    found = ensemble(differing())
    a, b, c = found.clusters[:3].tolist()  # of TRUTH 0, 1, 2
    assert [d.row for d in doubtful(found)] == [0, 1, 2, 3]
    assert [d.others for d in doubtful(found)] == [[(b, 1)], [(c, 1)], [(b, 1)], [(b, 1)]]
    assert [m.rows for m in mixed(found)] == [[0, 3], [1, 2]]
    assert {(m.a, m.b) for m in mixed(found)} == {(min(a, b), max(a, b)), (min(b, c), max(b, c))}
    first = next(one for one in clusters(found) if one.k == a)
    assert first.size == 20 and first.least == [3, 0] and first.sheet[-2:] == [0, 3]
    assert first.agreement == pytest.approx((18 + 2 * 2 / 3) / 20)
    same = ensemble(MEMBERS)
    assert doubtful(same) == mixed(same) == [] and not clusters(same)[0].least


HOSTILE = '<script>alert("1")</script> & "é"\n'


def test_the_page_in_a_browser(browser, tmp_path):
    """With pictures and without; whatever a file or a member is called is only text."""
    data = load("digits").subset(60)
    files = [HOSTILE, "long" * 60, *(f"{i}.png" for i in range(58))]
    places = [HOSTILE, "b" * 200, "c"]
    found: Consensus = ensemble(differing())
    for images in (data, None):
        members = Members(places, files, differing(), [3, 3, 3], images)
        path = tmp_path / "report.html"
        assert report(path, members, found, {"command": "x" * 300, "empty": ""}) == []
        assert "<script>alert" not in path.read_text()
        for scheme in ("light", "dark"):
            context = browser.new_context(
                color_scheme=scheme, viewport={"width": 1280, "height": 900}
            )
            tab = context.new_page()
            seen = Seen(tab, path.as_uri())
            tab.goto(path.as_uri(), wait_until="load")
            tab.evaluate("() => document.querySelectorAll('details').forEach(d => d.open = true)")
            for width in (1280, 390):
                tab.set_viewport_size({"width": width, "height": 900})
                assert tab.evaluate(OVERFLOW) == [], f"sticks out at {width} px, {scheme}"
            assert tab.evaluate(CONTRAST) == []
            tab.fill('input[data-cluster="1"]', "cats")
            assert tab.inner_text('nav [data-named="1"]').strip() == "cats"
            assert seen.foreign == seen.bad == seen.console == []
            context.close()
