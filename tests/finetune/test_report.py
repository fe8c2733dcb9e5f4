"""The report: an honest first sentence, one self-contained accessible page, no private names."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from medloom.finetune import charts, report
from medloom.finetune.report import write_report
from medloom.finetune.report_inputs import Comparison, Evaluation, Score, picture, read_inputs
from medloom.finetune.statistics import holm, paired_difference
from medloom.finetune.verdict import case_table, headline, verdict
from PIL import Image, PngImagePlugin

_SPEC = importlib.util.spec_from_file_location("report_sample", Path(__file__).with_name("report_sample.py"))
assert _SPEC is not None and _SPEC.loader is not None
sample = importlib.util.module_from_spec(_SPEC)
sys.modules["report_sample"] = sample
_SPEC.loader.exec_module(sample)

VOID = {"meta", "img", "br", "wbr", "link", "polyline", "circle", "rect"}


class Page(HTMLParser):
    """Tags with attributes in order; fails on tags that are not closed in turn."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(html)
        assert not self._open, f"not closed: {self._open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID and tag != "line":
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open and self._open[-1] == tag, f"</{tag}> closes {self._open[-3:]}"
        self._open.pop()

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A full report of two tasks and a run, and the folder of its inputs."""
    folder = tmp_path_factory.mktemp("report")
    sample.segmentation(folder / "seg")
    sample.classification(folder / "cls")
    sample.pretrain_run(folder / "vit")
    path = write_report(
        folder / "new" / "report.html", evaluations=[folder / "seg", folder / "cls"],
        pretrain_runs=[folder / "vit"], title="Phantom benchmark",
    )  # fmt: skip
    return folder, path.read_text()


def task(name: str, difference: float, low: float, high: float, metric: str = "dice", **more) -> Evaluation:
    kind = "classification" if metric == "auc" else "segmentation"
    arms = {
        "pretrained": [Score(metric, "", 0.8 + difference, 0.7, 0.9, 20)],
        "scratch": [Score(metric, "", 0.8, 0.7, 0.9, 20)],
    }
    comparison = Comparison(metric, "", "pretrained", "scratch", difference, low, high, 0.01)
    return Evaluation(name, kind, "full", arms, [comparison], leakage={"status": "clean"}, **more)


def test_verdict_says_beats_only_when_the_interval_excludes_zero() -> None:
    (one,) = verdict([task("liver", 0.05, 0.02, 0.08)])
    assert one.replace("\u00a0", " ") == (
        "Pretrained beats scratch on liver: Dice 0.850 against 0.800, difference +0.050, "
        "95 % CI +0.020 to +0.080."
    )
    (one,) = verdict([task("liver", 0.05, -0.01, 0.11)])
    assert one.startswith("Pretrained shows no clear difference from scratch on liver")
    assert "includes zero" in one
    (one,) = verdict([task("liver", -0.05, -0.09, -0.01)])
    assert one.startswith("Pretrained is worse than scratch on liver")
    (one,) = verdict([task("liver", 0.05, float("nan"), float("nan"))])
    assert "without an interval" in one and "beats" not in one


def test_verdict_counts_tasks() -> None:
    lines = [task("a", 0.05, 0.02, 0.08), task("b", 0.01, -0.02, 0.04, "auc"), task("c", -0.2, -0.3, -0.1)]
    (one,) = verdict(lines)
    assert one.startswith("Pretrained beats scratch on 1 of 3 tasks: better on a (Dice 0.850")
    assert "no clear difference on b (AUC 0.810" in one and "worse on c" in one
    (none,) = verdict(lines[1:])
    assert none.startswith("Pretrained beats scratch on none of 2 tasks")


def test_lower_is_better_turns_the_sign() -> None:
    line = headline(task("liver", -1.5, -2.0, -1.0, "hd95"))
    assert line is not None and line.outcome == "better"
    mark = charts.interval_mark(1.5, 1.0, 2.0, 2.0, "x")
    assert "whisker better" in mark


def test_verdict_names_leaks_and_small_tests_and_silence() -> None:
    leaked = task("liver", 0.05, 0.02, 0.08)
    leaked.leakage = {"status": "leaked"}
    assert any("not held out" in sentence for sentence in verdict([leaked])[1:])
    unknown = task("liver", 0.05, 0.02, 0.08)
    unknown.leakage = {}
    assert any("is not known" in sentence for sentence in verdict([unknown])[1:])
    few = task("liver", 0.05, 0.02, 0.08, cases=[{"subject": "a"}, {"subject": "b"}])
    assert "liver was tested on 2 subjects only." in verdict([few])
    alone = task("liver", 0.05, 0.02, 0.08)
    alone.comparisons = []
    assert "was not compared with a baseline" in verdict([alone])[0]
    assert "no score yet" in verdict([])[0]


def test_several_structures_without_a_mean_row_are_averaged_from_the_cases(tmp_path: Path) -> None:
    folder = sample.segmentation(tmp_path / "seg")
    (evaluation,) = read_inputs([folder], []).evaluations
    evaluation.comparisons = [c for c in evaluation.comparisons if c.structure != "mean"]
    line = headline(evaluation)
    (a, cases), (b, _) = (case_table(evaluation, arm, "dice") for arm in ("pretrained", "scratch"))
    assert a.shape == (24, 2) and np.isnan(a).sum() == 1
    expected = paired_difference(a, b, [patient for _, patient in cases])
    assert line is not None
    found = line.comparison
    assert (found.difference, found.low, found.p) == (expected.difference, expected.low, expected.p)
    assert line.patients == 24


def test_page_opens_with_the_verdict_and_is_well_formed(made: tuple[Path, str]) -> None:
    page = Page(made[1])
    heading = re.search(r"<h1>(.*?)</h1>", made[1], re.S)
    assert heading is not None
    words = re.sub(r"<[^>]+>", "", heading.group(1))
    assert words.startswith("Pretrained beats scratch on 1 of 2 tasks: better on phantom_ct_lesion (Dice 0.8")
    assert [name for name, _ in page.tags].count("h1") == 1
    assert page.all("html")[0]["lang"] == "en"
    identities = [a["id"] for _, a in page.tags if a.get("id")]
    assert len(identities) == len(set(identities))
    for wanted in ("results", "leakage", "cases", "worst", "pretraining", "collection", "environment"):
        assert wanted in identities
    assert "missing" not in identities


def test_page_loads_nothing(made: tuple[Path, str]) -> None:
    page = Page(made[1])
    assert not page.all("script") and not page.all("link")
    for _, attributes in page.tags:
        for name in ("src", "href", "srcset", "data", "poster"):
            value = attributes.get(name) or "#"
            assert value.startswith(("data:image/", "#")), value[:80]
    assert "url(" not in made[1] and "@import" not in made[1]
    policy = next(a["content"] for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None and policy.startswith("default-src 'none'")


def test_page_is_accessible(made: tuple[Path, str]) -> None:
    page = Page(made[1])
    assert len(page.all("img")) == 7
    assert all(image["alt"] for image in page.all("img"))
    assert page.all("svg") and all(
        svg.get("role") == "img" and svg.get("aria-label") for svg in page.all("svg")
    )
    assert all(head.get("scope") in ("col", "row") for head in page.all("th"))
    assert len(page.all("caption")) == len(page.all("table"))


def test_page_names_no_person_and_no_folder(made: tuple[Path, str]) -> None:
    for canary in ("somebody", "secret", "/home", str(made[0])):
        assert canary not in made[1]
    assert "medloom pretrain phantom-mae-2d out=vit" in made[1]


def test_page_says_how_to_make_it_again(tmp_path: Path) -> None:
    cls = sample.classification(tmp_path / "cls", split="val", fraction=0.5, steps=300)
    run = sample.pretrain_run(tmp_path / "vit")
    (run / "env.json").write_text('{"python": "3.11.9"}')
    text = Page(write_report(tmp_path / "r.html", evaluations=[cls], pretrain_runs=[run]).read_text()).text
    assert "medloom pretrain vit.yaml data.shards=SHARDS out=RUN" in text
    assert "crop: [64, 64]" in text
    assert "medloom finetune phantom_ultrasound --encoder ENCODER --protocol linear fraction=0.5" in text
    assert "medloom evaluate RUN --split val" in text


def test_every_score_difference_and_count_is_on_the_page(made: tuple[Path, str]) -> None:
    folder, html = made
    text = Page(html).text
    summaries = [json.loads((folder / name / "summary.json").read_text()) for name in ("seg", "cls")]
    raw = [c["p"] for s in summaries for c in s["comparisons"]]
    adjusted = holm(raw)
    shown = [c["b"] == "scratch" for s in summaries for c in s["comparisons"]]
    for p in adjusted[shown]:
        assert ("<0.001" if p < 0.001 else f"{p:.3f}") in text
    for summary in summaries:
        for rows in summary["arms"].values():
            for row in rows:
                digits = 2 if row["metric"] == "hd95" else 3
                assert f"{row['mean']:.{digits}f}{row['low']:.{digits}f} to {row['high']:.{digits}f}" in text
    assert "lesion 1 left out; replaced 1 (pretrained), 1 (scratch)" in text
    assert "NSD tolerance 2.0 mm, not verified" in text
    assert "Empty in one of them" in text
    assert "random, 95 % CI" in text  # the second baseline, in a sentence
    assert "384 images of 4 sources" in text and "phantom_ultrasound (test)" in text


def test_only_the_latest_panel_of_each_kind_is_shown(made: tuple[Path, str]) -> None:
    assert made[1].count("at step 1,200") == 2
    assert "at step 1:" not in made[1]


def test_curves_show_loss_probes_and_the_rank_of_the_probe(made: tuple[Path, str]) -> None:
    labels = [svg["aria-label"] or "" for svg in Page(made[1]).all("svg") if svg["class"] == "chart"]
    told = {label.split(":")[0]: label for label in labels if label.startswith("vit")}
    assert list(told) == ["vit, Probe, neighbours", "vit, Loss", "vit, Effective rank"]
    probes = told["vit, Probe, neighbours"]
    assert all(name in probes for name in ("derm from", "fundus from", "us_breast from"))
    assert "rankme" not in probes
    rows = [json.loads(line) for line in (made[0] / "vit" / "metrics.jsonl").read_text().splitlines()]
    last = [row["probe/rankme"] for row in rows if "probe/rankme" in row][-1]
    assert f"to {last:.1f} at step 1101" in told["vit, Effective rank"]


def test_same_files_give_the_same_bytes(made: tuple[Path, str]) -> None:
    folder, html = made
    again = write_report(
        folder / "again.html", evaluations=[folder / "seg", folder / "cls"], pretrain_runs=[folder / "vit"],
        title="Phantom benchmark",
    )  # fmt: skip
    assert again.read_text() == html


def test_markup_in_names_is_shown_not_run(tmp_path: Path) -> None:
    evil = "<script>alert('x')</script>"
    folder = sample.classification(tmp_path / "cls", task=evil)
    html = write_report(tmp_path / "r.html", evaluations=[folder], title=evil + "$title").read_text()
    page = Page(html)
    assert not page.all("script")
    assert evil in page.text


def test_nothing_at_all_still_makes_a_page(tmp_path: Path) -> None:
    page = Page(write_report(tmp_path / "r.html").read_text())
    assert "There is no score yet" in page.text
    assert "No evaluation was given" in page.text and "No pretraining run was given" in page.text


def test_missing_and_damaged_files_are_listed_and_cost_only_their_part(tmp_path: Path) -> None:
    seg, run = sample.segmentation(tmp_path / "seg"), sample.pretrain_run(tmp_path / "vit")
    (seg / "cases.csv").unlink()
    next((seg / "overlays").glob("*.png")).write_bytes(b"not a picture")
    (run / "encoder.json").write_text('{"architecture": ')
    (run / "metrics.jsonl").write_text(
        '{"step": 20, "loss": 1.0}\n{"step": 40, "loss": null}\n{"step": 60, "lo'
    )
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "summary.json").write_text('["not", "a", "summary"]')
    page = Page(
        write_report(
            tmp_path / "r.html",
            evaluations=[seg, broken, tmp_path / "absent"],
            pretrain_runs=[run, tmp_path / "gone"],
        ).read_text()
    )
    for line in (
        "seg/cases.csv does not exist",
        "of a worst case cannot be read",
        "vit/encoder.json cannot be read",
        "broken/summary.json holds no summary",
        "absent/summary.json does not exist",
        "gone/metrics.jsonl is missing or empty",
    ):
        assert line in page.text
    assert "Pretrained beats scratch on phantom_ct_lesion" in page.text
    assert not any(a.get("id") == "cases" for _, a in page.tags)


def test_scores_without_a_leakage_statement_are_called_out(tmp_path: Path) -> None:
    folder = sample.segmentation(tmp_path / "seg", leakage=None)
    page = Page(write_report(tmp_path / "r.html", evaluations=[folder]).read_text())
    assert "cannot be trusted without one" in page.text
    assert "Whether the encoder saw data of phantom_ct_lesion in pretraining is not known." in page.text


def test_null_scores_become_dashes_not_numbers(tmp_path: Path) -> None:
    folder = sample.classification(tmp_path / "cls")
    summary = json.loads((folder / "summary.json").read_text())
    for row in summary["arms"]["scratch"] + summary["comparisons"]:
        row |= dict.fromkeys(("mean", "low", "high", "difference", "p") & row.keys())
    (folder / "summary.json").write_text(json.dumps(summary))
    text = Page(write_report(tmp_path / "r.html", evaluations=[folder]).read_text()).text
    assert "no interval" in text and "nan" not in text.lower().replace("phantom", "")


def test_pictures_lose_their_metadata_and_their_size(tmp_path: Path) -> None:
    note = PngImagePlugin.PngInfo()
    note.add_text("Comment", "PATIENT-CANARY")
    Image.fromarray(np.zeros((10, 3000), np.uint8)).save(tmp_path / "a.png", pnginfo=note)
    uri = picture(tmp_path / "a.png")
    import base64
    import io

    assert uri is not None
    data = base64.b64decode(uri.split(",")[1])
    assert b"CANARY" not in data
    assert Image.open(io.BytesIO(data)).size == (1400, 5)
    assert picture(tmp_path / "absent.png") is None


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_have_contrast(scheme: str) -> None:
    """WCAG AA: 4.5 to 1 for every text and mark colour on the page's two grounds."""
    css = Path(report.__file__).with_name("report.css").read_text()
    blocks = re.findall(r":root \{(.*?)\}", css, re.S)
    colours = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", blocks[0 if scheme == "light" else 1]))

    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))

    for name in ("ink", "soft", "pretrained", "scratch", "other", "s0", "s1", "s2", "s3", "s4", "bad"):
        for ground in ("paper", "raised"):
            light, dark = sorted((luminance(colours[name]), luminance(colours[ground])), reverse=True)
            assert (light + 0.05) / (dark + 0.05) >= 4.5, (name, ground)


def test_ticks_enclose_and_are_round() -> None:
    assert charts.ticks(0.32, 1.02, 4) == [0.2, 0.4, 0.6, 0.8, 1.0, 1.2]
    rng = np.random.default_rng(0)
    for _ in range(300):
        low = float(rng.normal() * 10 ** rng.uniform(-4, 4))
        high = low + float(10 ** rng.uniform(-3, 4))
        found = charts.ticks(low, high, 4)
        assert found[0] <= low + 1e-9 and found[-1] >= high - 1e-9
        assert 3 <= len(found) <= 8
    assert len(charts.ticks(0.5, 0.5, 4)) >= 2


def test_labels_are_kept_apart_in_order_and_inside() -> None:
    placed = charts.spread([50, 52, 51, 199], 13, 10, 200)
    assert sorted(range(4), key=lambda i: placed[i]) == [0, 2, 1, 3]
    assert min(np.diff(sorted(placed))) >= 13 - 1e-9
    assert max(placed) <= 200


def test_lines_are_thinned_with_their_ends_kept_and_gaps_left_out() -> None:
    y = np.sin(np.arange(5000) / 300)
    x, thinned = charts.thin(charts.Series("", list(range(5000)), list(y)))
    assert len(x) == charts.MOST_POINTS and (x[0], x[-1]) == (0, 4999)
    assert thinned[-1] == y[-1]
    x, _ = charts.thin(charts.Series("", [1, 2, 3], [1.0, float("nan"), 3.0]))
    assert list(x) == [1, 3]
    assert charts.line_chart([charts.Series("", [1], [float("nan")])], label="x") == ""


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [(0.12345, 3, "0.123"), (-0.5, 2, "−0.50"), (12345.0, 0, "12.3k"), (2_500_000, 0, "2.5M"),
     (float("nan"), 3, "–"), (0.00004, 3, "4.0e−05"), (0.0, 3, "0.000"), (1234, 0, "1234")],
)  # fmt: skip
def test_numbers_are_for_reading(value: float, digits: int, text: str) -> None:
    assert charts.number(value, digits) == text


def test_paired_dots_draw_every_finite_case_and_say_who_wins() -> None:
    pairs = [charts.Pair("a", 0.9, 0.5), charts.Pair("b", 0.2, 0.4), charts.Pair("c", float("nan"), 0.4)]
    svg = charts.paired_dots(pairs, ("pretrained", "scratch"), label="liver", axis="Dice", bounds=(0.0, 1.0))
    assert svg.count("<title>") == 2
    assert "of 2 cases pretrained is higher in 1 and lower in 1" in svg
    assert svg.count("join rise") == svg.count("join fall") == 1
