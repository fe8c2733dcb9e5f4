"""The report: one HTML file that says what a pretrained encoder is worth, made from files alone.

It opens with the verdict as a sentence, then tables, cases, failures, the leakage statement, the training
curves and pictures, the collection and the environment. Everything is inside the file (style, charts as
SVG, pictures as data URIs) and its content policy forbids requests, so it can be mailed and archived. There
is no script. Missing files cost their part of the page, never the page: a section lists them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from html import escape
from pathlib import Path
from string import Template

from ..data.atomic import write_text
from .charts import number
from .curves import beside, curves
from .report_calibration import calibration
from .report_curves import label_curves
from .report_inputs import Inputs, read_inputs
from .report_sections import cases, leakage, results, section, worst
from .report_subgroups import subgroups
from .report_training import collection, environment, last, training
from .report_tuning import tuning
from .robustness.page import robustness
from .verdict import verdict

_HERE = Path(__file__).parent


def write_report(
    out_html: Path,
    *,
    evaluations: Sequence[Path] = (),
    pretrain_runs: Sequence[Path] = (),
    title: str = "medloom report",
) -> Path:
    """Write the report and return its path.

    Args:
        out_html: file to write, atomically; its folder is made.
        evaluations: folders with summary.json, cases.csv and overlays/, as `evaluate` writes them.
        pretrain_runs: run folders of `pretrain`.
        title: shown above the verdict and in the browser's tab.
    """
    inputs = read_inputs(list(evaluations), list(pretrain_runs))
    out_html = Path(out_html)
    out_html.parent.mkdir(parents=True, exist_ok=True)
    write_text(out_html, render(inputs, title))
    return out_html


def render(inputs: Inputs, title: str) -> str:
    """The page as text."""
    found = curves(inputs.evaluations)
    # What belongs to a curve is told there: one run of it, with the most labels, also has tables of its own.
    inputs = replace(inputs, evaluations=beside(found, inputs.evaluations))
    sentences = verdict(inputs.evaluations)
    limits = "".join(f"<li>{escape(sentence)}</li>" for sentence in sentences[1:])
    sections = [
        results(inputs.evaluations),
        label_curves(found),
        subgroups(inputs.evaluations),
        calibration(inputs.evaluations),
        leakage(inputs.evaluations),
        _missing(inputs.missing),
        cases(inputs.evaluations),
        robustness(inputs.evaluations),
        worst(inputs.evaluations),
        tuning(inputs.evaluations),
        training(inputs.runs),
        collection(inputs.runs),
        environment(inputs.evaluations, inputs.runs),
    ]
    return Template((_HERE / "report.html").read_text(encoding="utf-8")).substitute(
        title=escape(title),
        css=(_HERE / "report.css").read_text(encoding="utf-8").strip(),
        verdict=_first_sentence(sentences[0]),
        limits=f'<ul class="limits">{limits}</ul>' if limits else "",
        facts=_facts(inputs),
        sections="\n".join(part for part in sections if part),
    )


def _first_sentence(sentence: str) -> str:
    """The verdict with its numbers, what follows the colon, in a lighter weight."""
    words, colon, numbers = sentence.partition(": ")
    return f"{escape(words)}: <span>{escape(numbers)}</span>" if colon else escape(sentence)


def _missing(lines: list[str]) -> str:
    items = "".join(f"<li>{escape(line)}</li>" for line in dict.fromkeys(lines))
    return section("missing", "What is missing", "", f"<ul>{items}</ul>" if items else "")


def _facts(inputs: Inputs) -> str:
    facts: list[tuple[str, str]] = []
    tasks = sorted({evaluation.task for evaluation in inputs.evaluations})
    if tasks:
        facts.append(("Held-out tasks", str(len(tasks))))
    tested = {(e.task, row.get("case")) for e in inputs.evaluations for row in e.cases}
    if tested:
        facts.append(("Test cases", f"{len(tested):,}"))
    for run in inputs.runs:
        samples = last(run, "samples")
        if samples == samples:
            facts.append((run.name, f"{number(samples, 0)} samples"))
    items = "".join(f"<div><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>" for k, v in facts)
    return f'<dl class="facts">{items}</dl>' if items else ""
