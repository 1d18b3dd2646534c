"""The page as a reader and a browser meet it."""

from __future__ import annotations

import base64
import io
import json
import re
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from helpers import toy_metric
from helpers.report_project import BEST, Project, drift
from pipeline.errors import DataError
from pipeline.report import album, gallery, page
from pipeline.report.words import clip

Make = Callable[..., Project]
PAYLOADS = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "'onmouseover='alert(1)",
    "</style><script>alert(1)</script>",
    "{{ 7 * 7 }}{% raw %}",
    "&lt;b&gt; & co",
    "javascript:alert(1)",
    "../../etc/passwd",
    "]]><svg onload=alert(1)>",
    "`code` \u202e right to left",
]
VOID = {"meta", "img", "br", "line", "path"}
INLINE = {"b", "a", "code"}


class Reader(HTMLParser):
    """Elements, attributes and text, as HTML's own rules give them."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.text += "" if tag in INLINE else " "
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-1:]}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.text += data

    def values(self, name: str) -> list[str]:
        return [value for _, attribute, value in self.attributes if attribute == name]


def plain(html: str) -> str:
    return " ".join(Reader(html).text.split())


def pixels(uri: str) -> np.ndarray:
    kind, data = uri.split(",")
    assert kind == "data:image/png;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))


@pytest.mark.parametrize(
    ("verdict", "said"),
    [
        ("gain", "Synthetic images help: +2.1 points of balanced accuracy 95 % interval 0.8 to 3.4, 5 seeds"),
        ("no_gain", "No gain shown: +0.4 points of balanced accuracy 95 % interval −0.9 to 1.7, 5 seeds"),
        ("harm", "Synthetic images harm: −3.1 points of balanced accuracy 95 % interval −4.4 to −1.8, 5 seeds"),
    ],
)
def test_the_verdict_comes_first(make: Make, verdict: str, said: str) -> None:
    text = plain(make(verdict=verdict).render())
    assert said in text
    assert f"against {BEST}, the best real-only arm on validation" in text
    assert text.index(said) < text.index("What to do next") < text.index("Gains over the best real-only arm")


def test_the_page_holds_what_was_measured(make: Make) -> None:
    project = make()
    html = project.render()
    text = plain(html)
    for part in (
        "random_forest",
        "best real-only",
        "Calibration error",
        "AUROC, synthetic",
        "rare classes drawn more often",
        "class 9 has 3 train images",
        "4 of 5 expectations met",
        "broken.png truncated",
        "7 pairs of near-duplicates",
        "5f1c0ffee5f1c0ffee5f1c0f",
        "the estimate says little",
        "source: digits",
        "KID kernel distance of the two sets; 0 is no difference 0.0213 0.0110 to 0.0340 0.0480 0.0310 to 0.0600",
        "Mean AUROC",
        "tailforge export flow_matching --out FOLDER",
    ):
        assert part in text, part
    assert Reader(html).values("href")[-1] == "../data/docs/flow_matching/index.html"
    assert "synthetic_only −23.8 −25.1 to −22.5" in text
    assert "unknown" not in text


def test_unknown_sources_are_said(make: Make) -> None:
    text = plain(make(families=("flow_matching", "external")).render())
    assert "The sources of the images of external are unknown." in text
    assert f"flow_matching chosen gain +2.1 0.8 to 3.4 {BEST}" in text
    assert "external pretrained: it may have seen the test images gain" in text


def test_a_family_that_is_no_longer_asked_for_is_not_shown(make: Make) -> None:
    project = make(families=("flow_matching", "external"))
    project.change("metrics.json", lambda m: m["generators"].pop("external"))
    assert "external" not in plain(project.render()).replace("external.parquet", "")


def test_equivalent_real_images_stand_beneath_the_verdict_and_with_their_curve(make: Make) -> None:
    project = make()
    html = project.render()
    text, said = plain(html), "worth about 23 real images a class [4.3, more than 100]"
    assert text.index(f"The synthetic images are {said}.") < text.index("What to do next")
    assert f"{said}, 222 in all. With so many more the best real-only arm would score the same." in text
    assert f'aria-label="learning curve: synthetic images are {said}"' in html
    project.change(
        "metrics.json",
        lambda m: m["equivalent_real_images"].update(real_images_per_class=100.0, beyond=True, real_images=900.0),
    )
    text = plain(project.render())
    assert "worth more than 100 real images a class [4.3, more than 100], more than 900 in all. With so many" in text
    nothing = {"real_images_per_class": 0.0, "low": 0.0, "beyond": False, "real_images": 0.0}
    project.change("metrics.json", lambda m: m["equivalent_real_images"].update(nothing))
    text = plain(project.render())
    assert "worth no real images a class [0, more than 100]." in text and "in all:" not in text
    project.change("metrics.json", lambda m: m.pop("equivalent_real_images"))
    assert "real images a class" not in plain(project.render())


def test_another_metric_that_is_good_when_low_decides_the_whole_page(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    toy_metric.install(monkeypatch)
    project = make(verdict="gain")
    low = {"estimate": -0.04, "low": -0.05, "high": -0.03}
    score = {"estimate": 0.12, "low": 0.1, "high": 0.14}

    def change(metrics: dict[str, Any]) -> None:
        metrics["metric"] = "error_rate"
        metrics["gain"]["error_rate"] = low
        for result in metrics["generators"].values():
            result["gain"]["error_rate"] = low
        for arm in (*metrics["arms"].values(), *metrics["reference"].values()):
            arm["error_rate"] = score

    project.change("metrics.json", change)
    with open(project.path("gains.csv"), "a") as file:
        file.write("synthetic,error_rate,-0.04,-0.05,-0.03\n")
    text = plain(project.render())
    assert "Synthetic images help: −4.0 points of error rate 95 % interval −5.0 to −3.0" in text
    assert "← gain points of error rate harm →" in text and f"Error rate, points against {BEST}" in text
    assert "Error rate, % 12.0 → 12.0" in text and "error rate, % more real images of each class" in text
    assert "error rate of a classifier that saw these images alone; low is good" in text
    assert text.index("Arm Error rate Balanced accuracy") > 0
    assert "balanced accuracy" not in text


def test_the_parts_of_the_gain_stand_with_their_arms(make: Make) -> None:
    project = make()
    text = plain(project.render())
    assert f"no part of the gain +2.0 0.9 to 3.1 {BEST} − augment" in text
    assert f"train images in the place of new ones −0.6 −1.9 to 0.7 replay − {BEST}" in text
    assert "New content what only the new images give +2.7 1.3 to 4.1 synthetic − replay" in text
    project.change("metrics.json", lambda m: m["decomposition"].pop("prior_shift"))
    assert "Prior shift" not in plain(project.render())
    project.change("metrics.json", lambda m: m.pop("decomposition"))
    assert "Parts of the gain" not in plain(project.render())


def test_families_stand_beside_each_other(make: Make) -> None:
    text = plain(make(families=("flow_matching", "naive", "external")).render())
    table = text.split("Families beside each other")[-1]
    assert "Measure flow_matching external naive" in table  # the chosen one first
    assert "high is good 0.871 0.850 to 0.890 0.871 0.850 to 0.890" in table
    assert "* from a bound 4.32 * 4.30 to 4.40 – 4.32 4.30 to 4.40" in table  # a star at a bound, none at a density
    assert "Fréchet distance of means and covariances; 0 is no difference 7.11 7.11 7.11" in table


def test_the_ensemble_counts_the_images_of_all_families(make: Make) -> None:
    project = make(families=("flow_matching", "naive"))
    one = plain(project.render())

    def pooled(metrics: dict[str, Any]) -> None:
        metrics["generators"]["ensemble"] = metrics["generators"]["flow_matching"]
        metrics["generator"] = "ensemble"

    project.change("metrics.json", pooled)
    both = plain(project.render())
    accepted = [int(re.search(r"Synthetic images accepted (\d+) of", text)[1]) for text in (one, both)]  # type: ignore[index]
    assert accepted[1] == 2 * accepted[0] and "ensemble chosen" in both


def test_recall_of_each_class_stands_beside_its_train_images(make: Make) -> None:
    project = make()
    text = plain(project.render())
    details = json.loads(project.path("data/evaluation/details.json").read_text())
    before, after = (100 * details["recall"][arm]["9"]["estimate"] for arm in (BEST, "synthetic"))
    assert f"9 tail 3 {before:.1f} → {after:.1f}" in text


def test_a_strip_shows_the_images_and_their_neighbours(make: Make) -> None:
    project = make()
    html = project.render()
    checked = pq.read_table(project.path("data/checked/flow_matching/images.parquet")).to_pylist()
    pool = pq.read_table(project.path("data/pools/flow_matching")).to_pylist()
    stored = {row["sample_id"]: np.asarray(Image.open(io.BytesIO(row["image"]))) for row in pool}
    stored |= {name: picture[0] for name, picture in project.pixels.items()}
    nearest = {row["sample_id"]: row["nearest"] for row in checked if row["accepted"]}
    images = re.findall(r'<img src="([^"]+)" width="64" height="64" alt="([^"]+)" title="([^"]+)" class="px">', html)
    assert len(images) > 200
    for uri, _, name in images:
        assert np.array_equal(pixels(uri), stored[name]), name
    pairs = [(a[2], b[2]) for a, b in pairwise(images) if a[1] == "synthetic image"]
    assert len(pairs) == 10 * album.PER_CLASS
    assert all(nearest[made] == real for made, real in pairs)
    assert all(name not in nearest for _, alt, name in images if alt == "rejected synthetic image")
    assert sum(alt == "real image" for _, alt, _ in images) == 3 + 4 + 6 + 8 + 10 * 6


def test_rejected_images_stand_under_their_check_with_value_and_threshold(make: Make) -> None:
    text = plain(make().render())
    assert "label: 24 images" in text and "outlier: 12 images" in text
    assert "0.120 allowed: at least 0.5" in text
    assert "8.40 allowed: at most 6.2" in text
    assert "0.100 allowed: at least 0.2" in text
    assert "0.400 allowed: at least 2" in text


def test_bytes_that_are_no_image_are_counted_and_not_shown(make: Make) -> None:
    project = make()
    path = project.path("data/pools/flow_matching/part-00000.parquet")
    rows = pq.read_table(path).to_pylist()
    torn = {row["sample_id"]: row["image"] for row in rows[:5]}
    for k, row in enumerate(rows[:5]):
        row["image"] = (b"", None, b"\x89PNG\r\n\x1a\n", row["image"][:60])[k % 4]
    pq.write_table(pa.Table.from_pylist(rows, pq.read_schema(path)), path)
    html = project.render()
    assert not set(Reader(html).values("title")) & set(torn)
    assert "12 accepted" in plain(html) and "pictures not found" not in plain(html)


def test_a_first_version_has_one_line_on_drift(make: Make) -> None:
    text = plain(make().render())
    assert "Generators fitted on these train images." in text and "Adjusted p" not in text


def test_a_re_used_generator_is_said_with_what_came(make: Make) -> None:
    project = make()
    found = drift(project.classes, project.counts, came=2)
    project.change("data/drift.json", lambda d: d.update(found))
    text = plain(project.render())
    assert "Generators re-used: 20 train images came since they were fitted, and no drift was found." in text
    assert "9 3 5 2 0.410 0.12 0.6" in text and "Two-sample test (mmd)" in text and "All classes together: 0.6." in text


def test_reasons_for_fitting_anew_are_listed_and_the_most_changed_class_leads(make: Make) -> None:
    project = make()
    found = drift(project.classes, project.counts, came=2, decision="retrain")
    found["classes"][7] |= {"p": 0.0005, "adjusted": 0.005}
    found["reasons"] = [
        {"why": "new", "class": "9"},
        {"why": "drift", "class": "7", "value": 0.005},
        {"why": "counts", "class": "9", "value": 2 / 3},
        {"why": "gone", "value": 3},
    ]
    project.change("data/drift.json", lambda d: d.update(found))
    text = plain(project.render())
    assert "Generators fitted anew, 20 train images came: class 9 is new; images of class 7 changed (adjusted p 0.005)" in text
    assert "and 2 more reasons" in text and "class 9 grew by 66.7 %" in text
    assert "3 train images of those they were fitted on went" in text
    table = text[text.index("Train before") :]
    assert table.index(" 7 6 8 2 ") < table.index(" 0 60 62 2 ")


@pytest.mark.fault(18, "names in reasons for fitting anew")
def test_names_in_reasons_are_text(make: Make) -> None:
    project = make(classes=PAYLOADS)
    found = drift(PAYLOADS, project.counts, came=1, decision="retrain")
    found["reasons"] = [{"why": "new", "class": name} for name in PAYLOADS]
    found["settings"]["test"] = PAYLOADS[0]
    project.change("data/drift.json", lambda d: d.update(found))
    reader = Reader(project.render())
    assert "script" not in reader.tags and not [a for a in reader.attributes if a[1].startswith("on")]
    for payload in PAYLOADS:
        assert f"class {clip(payload, 40)} is new" in reader.text


def test_two_reports_on_the_same_data_are_the_same_bytes(make: Make) -> None:
    project = make(families=("flow_matching", "external"))
    assert project.render() == project.render()


@pytest.mark.fault(18, "names of classes and files, warnings and checks on the report")
def test_names_from_the_data_are_text(make: Make) -> None:
    project = make(classes=PAYLOADS, prefix='"><script>alert(2)</script>')

    def spoil(summary: dict[str, object]) -> None:
        summary["warnings"] = PAYLOADS
        summary["fidelity"] = {PAYLOADS[0]: {"estimate": 1.0, "low": None, "high": None, "warning": PAYLOADS[1]}}

    project.change("data/checked/flow_matching/summary.json", spoil)
    html = project.render()
    reader = Reader(html)
    allowed = {"html", "head", "meta", "title", "style", "body", "main", "nav", "section", "div", "span", "p", "b", "br", "a"}
    allowed |= {"h1", "h2", "h3", "small", "code", "pre", "ul", "li", "dl", "dt", "dd", "figure", "figcaption", "img", "svg"}
    allowed |= {"line", "path", "text", "table", "thead", "tbody", "tr", "th", "td", "details", "summary"}
    assert set(reader.tags) <= allowed
    assert not [a for a in reader.attributes if a[1].startswith("on") or a[1] in ("style", "srcdoc", "action")]
    assert not reader.open
    for payload in PAYLOADS:
        assert clip(payload, 40) in reader.text


@pytest.mark.fault(18, "the report: no script, nothing from outside, a policy that forbids both")
def test_the_page_needs_nothing_from_outside(make: Make) -> None:
    html = make(families=("flow_matching", "external")).render()
    reader = Reader(html)
    policy = next(v for t, n, v in reader.attributes if n == "content" and "default-src" in v)
    assert policy.startswith("default-src 'none'; img-src data:; style-src 'unsafe-inline'")
    assert "script" not in reader.tags and "link" not in reader.tags and "iframe" not in reader.tags
    assert all(v.startswith("data:image/") for v in reader.values("src"))
    ids = set(reader.values("id"))
    assert all(v[1:] in ids if v.startswith("#") else v.startswith("../data/docs/") for v in reader.values("href"))
    style = html[html.index("<style>") : html.index("</style>")]
    assert "url(" not in style and "@import" not in style and "prefers-color-scheme: dark" in style


def test_a_thousand_classes_with_long_names_stay_small(make: Make) -> None:
    html = make(classes=[f"{i:04d} " + "<x>" * 400 for i in range(1000)], per_class=2).render()
    text = plain(html)
    assert len(html.encode()) < 3e6
    assert text.count("<x>") > 100
    assert html.count('<div class="strip">') == gallery.CLASSES
    assert "976 classes with more images not shown, to keep this page small." in text
    assert "800 classes with more images not shown; all are in" in text


def test_heavy_images_of_three_families_stay_small(make: Make) -> None:
    html = make(classes=[f"class {i}" for i in range(26)], families=("a", "b", "c"), per_class=18, side=96).render()
    shown = html.count('<div class="strip">')
    assert len(html.encode()) < 10e6
    assert 5 <= shown <= gallery.CLASSES
    assert f"{26 - shown} classes with more images not shown" in plain(html)


def test_the_bytes_of_pictures_have_a_budget(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    project = make()
    whole = len(project.render())
    monkeypatch.setattr(gallery, "STRIP_BYTES", 20_000)
    monkeypatch.setattr(gallery, "REJECTED_BYTES", 5_000)
    html = project.render()
    assert sum(len(uri) for uri in Reader(html).values("src")) <= 25_000
    assert len(html) < whole
    assert re.search(r"\d classes with more images not shown, to keep this page small", plain(html))
    assert "4 images, 0 shown" in plain(html)


def test_images_are_read_in_a_stream(make: Make) -> None:
    project = make()
    path = project.path("data/prepared/train.parquet")
    rows = pq.read_table(path)
    row = rows.slice(0, 1).to_pylist()[0] | {"label": "of no class", "image": np.random.default_rng(0).bytes(40_000)}
    more = pa.Table.from_pylist([row | {"sample_id": f"extra {i}"} for i in range(5000)], rows.schema)
    pq.write_table(pa.concat_tables([rows, more]), path, use_dictionary=False, compression="none")
    assert path.stat().st_size > 190e6
    script = (
        "import sys, pyarrow; from pathlib import Path; from pipeline.report import page;"
        "page.render(page.Sources(*map(Path, sys.argv[1:])), Path('report'));"
        "print(pyarrow.default_memory_pool().max_memory())"
    )
    folders = [f"data/{name}" for name in ("prepared", "drift.json", "pools", "checked", "measures", "evaluation")]
    places = [project.path(p) for p in (*folders, "metrics.json")]
    done = subprocess.run([sys.executable, "-c", script, *places], capture_output=True, text=True, check=True)
    assert 1e5 < int(done.stdout) < 120e6


def test_large_images_become_thumbnails() -> None:
    grain = np.random.default_rng(0).integers(0, 256, (300, 200, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(grain).save(buffer, "PNG")
    shown = album.picture("a", buffer.getvalue())
    assert shown.uri.startswith("data:image/jpeg") and (shown.width, shown.height) == (64, 96)
    assert len(shown.uri) < 12_000 and not shown.pixelated


def nothing_rejected(project: Project) -> str:
    path = project.path("data/checked/flow_matching/images.parquet")
    rows = [row | {"accepted": True, "reason": None} for row in pq.read_table(path).to_pylist()]
    pq.write_table(pa.Table.from_pylist(rows, pq.read_schema(path)), path)
    return "No image of flow_matching was rejected."


def nothing_accepted(project: Project) -> str:
    path = project.path("data/checked/flow_matching/images.parquet")
    rows = [row | {"accepted": False, "reason": "blank", "nearest": None} for row in pq.read_table(path).to_pylist()]
    pq.write_table(pa.Table.from_pylist(rows, pq.read_schema(path)), path)
    project.change("data/checked/flow_matching/summary.json", lambda s: s.update(fidelity={}, expectations={}))
    project.change("metrics.json", lambda m: m.update(verdict="no_gain"))
    return "validation accepted no synthetic image"


def nothing_checked(project: Project) -> str:
    for name in ("images", "checks"):
        path = project.path(f"data/checked/flow_matching/{name}.parquet")
        pq.write_table(pq.read_schema(path).empty_table(), path)
    return "Not one of the 228 images of flow_matching was checked"


def nothing_made(project: Project) -> str:
    for path in project.path("data/pools/flow_matching").iterdir():
        path.unlink()
    for name in ("images", "checks"):
        path = project.path(f"data/checked/flow_matching/{name}.parquet")
        pq.write_table(pq.read_schema(path).empty_table(), path)
    project.change("data/checked/flow_matching/summary.json", lambda s: s.update(n=0))
    project.change("metrics.json", lambda m: m.update(verdict="no_gain", gain={}, generators={}, reference={}))
    return "no synthetic image was made"


def no_tail(project: Project) -> str:
    def drop(metrics: dict[str, object]) -> None:
        metrics["gain"].pop("tail_recall")  # type: ignore[attr-defined]
        for values in metrics["arms"].values():  # type: ignore[attr-defined]
            values["tail_recall"] = None

    project.change("metrics.json", drop)
    project.change("data/evaluation/details.json", lambda d: d.update(strata={"head": project.classes}))
    rows = project.path("gains.csv").read_text().splitlines()
    project.path("gains.csv").write_text("\n".join(r for r in rows if "tail" not in r) + "\n")
    return "No class counts as tail"


def nothing_rare(project: Project) -> str:
    same = {name: project.classes for name in ("head", "middle", "tail")}
    project.change("data/evaluation/details.json", lambda d: d.update(strata=same))
    return "Tail recall: +4.5 points"


def nothing_but_the_verdict(project: Project) -> str:
    project.change(
        "metrics.json",
        lambda m: [
            m.pop(k) for k in ("arms", "reference", "generators", "generator", "equivalent_real_images", "decomposition")
        ],
    )
    project.change(
        "data/evaluation/details.json",
        lambda d: [d.pop(k) for k in list(d) if k not in ("classes", "train_counts", "confidence")],
    )
    project.path("gains.csv").write_text("arm,metric,estimate,low,high\n")
    project.change("data/prepared/dataset.json", lambda d: [d.pop(k) for k in ("counts", "warnings", "set_aside", "left_out")])
    return "No arm was compared"


@pytest.mark.parametrize(
    "loss",
    [nothing_rejected, nothing_accepted, nothing_checked, nothing_made, no_tail, nothing_rare, nothing_but_the_verdict],
    ids=lambda f: f.__name__,
)
def test_missing_parts_read_well(make: Make, loss: Callable[[Project], str]) -> None:
    project = make()
    said = loss(project)
    html = project.render()
    text = plain(html)
    assert said in text
    assert not Reader(html).open
    assert not re.search(r"\b(None|nan|inf|Undefined)\b", text)


def test_no_generator_at_all(make: Make) -> None:
    text = plain(make(families=(), verdict="no_gain").render())
    assert "No generator ran." in text and "no synthetic image was made" in text


def test_two_classes_and_one(make: Make) -> None:
    assert "2 classes, 8 × 8 pixels, grey" in plain(make(classes=["a", "b"]).render())
    assert "1 class, 8 × 8 pixels, grey" in plain(make(classes=["a"]).render())


@pytest.mark.parametrize(
    "name",
    [
        "metrics.json",
        "gains.csv",
        "data/evaluation/details.json",
        "data/prepared/dataset.json",
        "data/drift.json",
        "data/prepared/train.parquet",
        "data/checked/flow_matching/images.parquet",
        "data/checked/flow_matching/checks.parquet",
        "data/pools/flow_matching/part-00001.parquet",
    ],
)
@pytest.mark.fault(6, "each file that the report reads, torn: named, the old report stays")
def test_a_torn_file_is_named_and_the_old_report_stays(make: Make, name: str) -> None:
    project = make()
    old = project.render()
    path = project.path(name)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2] + b"\xff")
    with pytest.raises(DataError, match=re.escape(path.name)):
        project.render()
    assert project.path("report/index.html").read_text() == old


def test_a_table_of_another_form_is_refused(make: Make) -> None:
    project = make()
    path = project.path("data/checked/flow_matching/images.parquet")
    pq.write_table(pq.read_table(path).drop_columns(["nearest"]), path)
    with pytest.raises(DataError, match="no column nearest"):
        project.render()


def test_an_unknown_verdict_is_refused(make: Make) -> None:
    project = make()
    project.change("metrics.json", lambda m: m.update(verdict="splendid"))
    with pytest.raises(DataError, match="splendid"):
        project.render()


def test_prose_marks_code_and_nothing_else() -> None:
    assert page.prose("run `a<b` & go") == "run <code>a&lt;b</code> &amp; go"
    assert page.prose("a lone ` tick") == "a lone ` tick"
