"""The page: every section there, every string escaped, gaps explained, numbers of any kind survived."""

import json
import re
import shlex
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import plotly.graph_objects as go
import pytest
import torch

from selfsight.data.protocol import DataError
from selfsight.errors import UserError
from selfsight.report import gather, page
from selfsight.report.atlas import atlas, project
from selfsight.report.charts import curve, embedding, smooth, thin
from selfsight.report.content import ReportContent
from selfsight.report.sections import all_sections, repeat

HOSTILE = "<img src=x onerror=alert(1)> </script> & \" '"
IDS = "evaluation training monitors views map neighbours throughput skipped recipe repeat".split()


class Outline(HTMLParser):
    """The elements of a page: tags with attributes, and the text outside scripts."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text, self.silent = [], [], None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.silent = tag if tag in ("script", "style") else self.silent

    def handle_endtag(self, tag):
        self.silent = None if tag == self.silent else self.silent

    def handle_data(self, data):
        if not self.silent:
            self.text.append(data)

    def ids(self, tag):
        return [attrs.get("id") for name, attrs in self.tags if name == tag]


@pytest.fixture
def content(run_folder, patches, mirrored, coarse):
    """A whole run's content: what it wrote, with a map and neighbours of a stand-in encoder."""
    found, near = atlas(coarse, mirrored.plain, patches, most=48)
    read = gather.gather_content(run_folder)
    shown = gather.draw_views(mirrored, patches, seed=0)
    return replace(read, title="Made up", views=shown, embedding=found, neighbours=near, missing={})


def test_a_whole_run_fills_every_section(content):
    outline = Outline(page.build_page(content))
    assert outline.ids("section") == IDS
    assert "61.4%" in "".join(outline.text)
    assert "63.2" in "".join(outline.text)
    assert [attrs.get("class") for _, attrs in outline.tags].count(
        "empty"
    ) == 1  # the line for browsers without scripts
    assert "raise --workers" in "".join(outline.text)


def test_the_page_asks_no_network(content):
    addresses = [
        value
        for tag, attrs in Outline(page.build_page(content)).tags
        for name, value in attrs.items()
        if name in ("src", "href", "srcset", "action", "data")
    ]
    assert addresses
    assert all(value.startswith(("data:", "#")) for value in addresses)
    styles = (page._HERE / "report.css").read_text()
    assert "url(" not in styles
    assert "@import" not in styles


def test_an_empty_run_says_what_would_fill_each_section():
    """Nothing but a name: no exception, each section has one line."""
    content = ReportContent(name="runs/x", settings={}, reconstructs=True)
    outline = Outline(page.build_page(content))
    assert outline.ids("section") == [*IDS[:4], "reconstructions", *IDS[4:]]
    assert all(section.empty for section in all_sections(content))
    assert "selfsight evaluate runs/x" in "".join(outline.text)


def test_every_string_is_escaped(content):
    settings = {**content.settings, "command": HOSTILE, "hyper": {HOSTILE: HOSTILE}, "resolved": {HOSTILE: HOSTILE}}
    many = [HOSTILE] * len(content.embedding.x)
    hostile = replace(
        content,
        name=HOSTILE,
        title=HOSTILE,
        fact=HOSTILE,
        settings={**settings, "data": {"name": HOSTILE, "samples": 3}, "flags": {"backbone": HOSTILE}},
        alarms=[dict.fromkeys(("step", "name", "value", "cause", "advice"), HOSTILE)],
        skipped=[dict.fromkeys(("position", "where", "reason"), HOSTILE)],
        metrics={"step": [0.0, 1.0], HOSTILE: [1.0, 2.0]},
        evaluations={HOSTILE: {HOSTILE: HOSTILE, "scores": {"top1": 0.5}, "baselines": {HOSTILE: {"top1": 0.1}}}},
        embedding=replace(content.embedding, labels=many, names=many),
        missing={},
    )
    outline = Outline(page.build_page(hostile))
    assert not [attrs for _, attrs in outline.tags if "onerror" in attrs]
    assert outline.ids("section") == IDS
    assert not [attrs for _, attrs in outline.tags if attrs.get("src") == "x"]


@pytest.mark.parametrize(
    "command",
    [
        "rm -r runs",
        "selfsight pretrain simclr; rm -r runs",
        "selfsight pretrain simclr $(touch owned)",
        "selfsight pretrain simclr --out runs/precious --overwrite",
        "selfsight pretrain simclr 'unclosed",
        "selfsight export runs/x --format timm",
        ["selfsight", "pretrain"],
    ],
)
def test_a_command_that_is_no_run_of_ours_is_not_held_out_to_be_copied(command):
    """Who shows a run's report may have it from somebody else."""
    content = ReportContent(name="runs/a; b", settings={"command": command})
    parts = repeat(content).parts
    assert [part.kind for part in parts] == ["note", "code"]
    assert parts[1].body.startswith("selfsight pretrain --from 'runs/a; b/run.yaml'")
    ours = shlex.join(["selfsight", "pretrain", "simclr", "--data", "my images"])
    assert repeat(replace(content, settings={"command": ours})).parts[0].body == ours


def test_figures_are_plotly_s_and_finite(content):
    broken = {**content.metrics, "loss": [float("nan"), *content.metrics["loss"][1:-1], float("inf")]}
    text = page.build_page(replace(content, metrics=broken))
    figures = json.loads(re.search(r'id="figures">(.*?)</script>', text, re.DOTALL)[1])
    assert {"loss", "knn", "lr", "grad_norm", "own-0", "feature_std", "speed", "map"} <= figures.keys()
    for figure in figures.values():
        go.Figure(figure)  # validates every property
    assert "NaN" not in json.dumps(figures)


def test_numbers_of_a_file_cut_short(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_text("step,epoch,loss,knn\n0,0,5.5,\n20,0,nan,0.5\n40,0,4")
    read = gather.read_numbers(path)
    assert read["step"] == [0.0, 20.0, 40.0]
    assert read["knn"] == [None, 0.5, None]
    path.write_text("step,epoch,lo")
    assert gather.read_numbers(path) == {}
    assert gather.read_numbers(tmp_path / "none.csv") == {}


def test_a_broken_evaluation_is_named(run_folder):
    (run_folder / "evaluation" / "linear.json").write_text('{"scores": {"top1"')
    (run_folder / "evaluation" / "knn.json").unlink()
    content = gather.gather_content(run_folder)
    assert "linear" not in content.evaluations
    assert "linear.json" in content.missing["evaluation"]


def test_what_cannot_be_drawn_says_why(run_folder):
    """This run's data are gone: its tables are shown all the same, its pictures say why not."""
    content = gather.gather_content(run_folder)
    assert "patches" in content.missing["map"]
    assert content.metrics["loss"]


def test_no_run_is_one_line(tmp_path):
    with pytest.raises(UserError, match="no run"):
        page.write_report(tmp_path)


def test_write_report_leaves_one_file(run_folder):
    target = page.write_report(run_folder)
    assert target == run_folder / "report.html"
    assert not list(run_folder.glob("*.part"))


def test_neighbours_are_the_nearest_by_cosine(patches, mirrored, coarse):
    """Against a naive search over the same features."""
    found, near = atlas(coarse, mirrored.plain, patches, most=48)
    kept = [int(name.split("_")[1].split(".")[0]) for name in found.names]
    assert 5 not in kept
    images = torch.from_numpy(np.stack([patches.read(at) for at in kept]))
    features = coarse((images.float() / 255 - mirrored.mean) / mirrored.std).detach().double()
    unit = features / features.norm(dim=1, keepdim=True)
    order = [
        sorted((j for j in range(len(kept)) if j != i), key=lambda j: -float(unit[i] @ unit[j]))
        for i in range(len(kept))
    ]
    for row in near.rows:
        asked = found.names.index(row[0].name)
        cosines = [float(unit[asked] @ unit[j]) for j in order[asked][:8]]
        assert cosines[0] - cosines[-1] > 0.003
        assert [one.similarity for one in row[1:]] == pytest.approx(cosines, abs=1e-5)
    assert {row[0].label for row in near.rows[:4]} == set(patches.classes)
    same = [kept[i] % 4 == kept[j] % 4 for i in range(len(kept)) for j in order[i][:8]]
    assert near.agreement == pytest.approx(sum(same) / len(same))
    counts = np.bincount(np.array(kept) % 4)
    assert near.chance == pytest.approx((counts * (counts - 1)).sum() / (len(kept) * (len(kept) - 1)))


def test_without_labels_there_is_a_map_all_the_same(mirrored, patches, coarse):
    patches.labels = None
    found, near = atlas(coarse, mirrored.plain, patches, most=12)
    assert found.labels is None
    assert near.agreement is None
    assert len(embedding(found).figure["data"]) == 1


def test_collapse_and_divergence_are_named_instead_of_drawn():
    with pytest.raises(DataError, match="same feature"):
        project(np.ones((60, 8), np.float32))
    with pytest.raises(DataError, match="not finite"):
        project(np.full((60, 8), np.nan, np.float32))


def test_clusters_stay_together_on_the_map():
    centres = np.repeat(np.eye(3, 16) * 5, 20, axis=0)
    x = (centres + np.random.default_rng(0).normal(size=centres.shape) * 0.1).astype(np.float32)
    xy, how = project(x)
    distance = np.linalg.norm(xy[:, None] - xy[None], axis=-1) + 1e9 * np.eye(60)
    assert (distance.argmin(1) // 20 == np.arange(60) // 20).all()
    assert "t-SNE" in how


def test_thinning_keeps_the_mean_and_smoothing_a_line():
    _, y = thin(range(6000), [float(i % 7) for i in range(6000)], most=1500)
    assert len(y) == 1500
    assert sum(y) / 1500 == pytest.approx(sum(i % 7 for i in range(6000)) / 6000)
    assert smooth([2.0] * 50) == pytest.approx([2.0] * 50)
    line = smooth([float(i) for i in range(200)])
    assert line[10:190] == pytest.approx(list(range(10, 190)))


def test_a_level_outside_the_curve_is_in_the_range():
    chart = curve("knn", "kNN", "", [0.0, 1.0], [0.5, 0.6], lines={"raw pixels": 0.2}, percent=True)
    low, high = chart.figure["layout"]["yaxis"]["range"]
    assert low < 0.2
    assert high > 0.6
    assert chart.value == "60.0%"
    assert curve("knn", "kNN", "", [0.0], [None]) is None


def test_what_steers_a_terminal_is_spelt_out() -> None:
    text = page.build_page(ReportContent(name="runs/\x1b[31mred\u202e", settings={}))
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]", text.partition("<script")[0])
    assert r"runs/\x1b[31mred\u202e" in text
