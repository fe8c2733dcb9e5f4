"""Sections of the report about pretraining: curves, pictures, the collection, the environment."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from .charts import Series, line_chart, number
from .report_inputs import Evaluation, PretrainRun, finite
from .report_sections import flat, pairs_table, section, shown, table

# Charts in reading order: title, digits, then keys of metrics.jsonl with what to read from them; the first
# that a run has is drawn. RankMe of a batch is bounded by its size, so the rank of the probe is preferred.
_CURVES = (
    ("Loss", 3, {"loss": "mean since the row before"}),
    (
        "Effective rank",
        1,
        {
            "probe/rankme": "RankMe of the probe's images; collapse shows as a fall towards 1",
            "rankme": "RankMe of one batch; collapse shows as a fall towards 1",
        },
    ),
)
_PROBES = {  # kind in the keys of metrics.jsonl -> title, and what is scored on labelled images
    "knn": ("Probe, neighbours", "balanced accuracy of k nearest neighbours on frozen features"),
    "linear": ("Probe, linear", "balanced accuracy of a logistic regression on frozen features"),
    "dense": ("Probe, dense", "Dice of a logistic regression on frozen patch tokens against label maps"),
}
_PANELS = {
    "reconstruction": (
        "Reconstruction",
        "input, what the encoder saw, and what the decoder made of it; look for structure that continues "
        "across hidden patches.",
    ),
    "views": (
        "Views",
        "input and the crops that the method compares; look for crops that still show what matters.",
    ),
    "features": (
        "Tokens as colours",
        "first three principal components of the patch tokens; the same tissue should have the same colour "
        "in different images.",
    ),
}


def training(runs: Sequence[PretrainRun]) -> str:
    """Curves and pictures of every run."""
    parts = []
    for run in runs:
        figures = "".join(_curve(run, title, digits, keys) for title, digits, keys in _CURVES)
        figures = "".join(_probe_chart(run, kind) for kind in _PROBES) + figures
        panels = "".join(
            _panel(run, kind, step, uri) for kind, step, uri in sorted(run.panels, key=_panel_order)
        )
        if not figures and not panels:
            continue
        parts.append(f"<h3>{escape(run.name)}</h3><p class='soft'>{escape(_facts(run))}</p>")
        parts.append(f'<div class="figures">{figures}</div>' if figures else "")
        parts.append(f'<div class="panels">{panels}</div>' if panels else "")
    return section("pretraining", "What pretraining did", "", "".join(parts))


def collection(runs: Sequence[PretrainRun]) -> str:
    """What the encoders were trained on, source by source."""
    parts = []
    for run in runs:
        found = _training(run)
        sources = [s for s in found.get("sources") or [] if isinstance(s, dict)]
        if not sources:
            continue
        rows = [_source_row(source) for source in sources]
        total = sum(int(finite(s.get("count", 0)) or 0) for s in sources)
        heads = [("Source", ""), ("Modality", ""), ("Licence", ""), ("Images", "n")]
        caption = f"{escape(run.name)} <span>{total:,} images of {_plural(len(sources), 'source')}</span>"
        parts.append(table(caption, heads, rows, note=_held_out(run)))
    lead = "Only what the manifest of the shards says; test data of the tasks above must not be among it."
    return section("collection", "What it was trained on", lead, "".join(parts))


def environment(evaluations: Sequence[Evaluation], runs: Sequence[PretrainRun]) -> str:
    """Versions, devices, commands and configurations, folded away."""
    parts = []
    for run in runs:
        rows = flat({k: v for k, v in run.environment.items() if k not in ("command", "commands")})
        inside = pairs_table(f"Environment of {run.name}", rows)
        if run.config:
            inside += _commands(
                run.environment, [f"medloom pretrain {run.name}.yaml data.shards=SHARDS out=RUN"]
            )
            inside += f"<p>{escape(run.name)}.yaml:</p><pre>{escape(shown(run.config))}</pre>"
        elif inside:
            inside += _commands(run.environment, [])
        parts.append(_fold(f"Pretraining run {run.name}", inside))
    for evaluation in evaluations:
        found = evaluation.summary.get("environment")
        found = found if isinstance(found, dict) else {}
        rows = flat({k: v for k, v in found.items() if k not in ("command", "commands")})
        inside = pairs_table(f"Environment of {evaluation.task}", rows)
        inside += _commands(found, _again(evaluation)) if inside else ""
        parts.append(_fold(f"Evaluation of {evaluation.task} ({evaluation.protocol})", inside))
    return section("environment", "How to make this again", "", "".join(parts))


def last(run: PretrainRun, key: str) -> float:
    """Last finite value of a metric; nan without one."""
    values = [finite(row.get(key)) for row in run.rows]
    return next((v for v in reversed(values) if v == v), float("nan"))


def _curve(run: PretrainRun, title: str, digits: int, keys: dict[str, str]) -> str:
    key = next((key for key in keys if any(key in row for row in run.rows)), "")
    x = [finite(row.get("step")) for row in run.rows]
    series = Series("", x, [finite(row.get(key)) for row in run.rows])
    return _figure(
        title, keys.get(key, ""), line_chart([series], label=f"{run.name}, {title}", digits=digits)
    )


def _probe_chart(run: PretrainRun, kind: str) -> str:
    """The probes of one kind in one chart, at most five of them, each named by its data set."""
    prefix, (title, note) = f"probe/{kind}_", _PROBES[kind]
    probes = sorted({key for row in run.rows for key in row if key.startswith(prefix)})
    x = [finite(row.get("step")) for row in run.rows]
    names = [key.removeprefix(prefix) for key in probes[:5]]
    series = [
        Series(name if len(probes) > 1 else "", x, [finite(r.get(key)) for r in run.rows], f"series-{i}")
        for i, (key, name) in enumerate(zip(probes, names, strict=False))
    ]
    if len(names) == 1:
        title = f"{title}: {names[0].replace('_', ' ')}"
    return _figure(title, note, line_chart(series, label=f"{run.name}, {title}"))


def _figure(title: str, note: str, chart: str) -> str:
    if not chart:
        return ""
    return (
        f"<figure><figcaption><b>{escape(title)}</b> <span>{escape(note)}</span></figcaption>{chart}</figure>"
    )


def _panel(run: PretrainRun, kind: str, step: int, uri: str) -> str:
    title, note = _PANELS.get(kind, (kind.capitalize(), ""))
    alt = f"{run.name}, {title.lower()} at step {step}: {note}"
    caption = f"<b>{escape(title)}</b> <span>at step {step:,}: {escape(note)}</span>"
    image = f'<img src="{uri}" alt="{escape(alt, quote=True)}">'
    return f"<figure><figcaption>{caption}</figcaption>{image}</figure>"


def _panel_order(panel: tuple[str, int, str]) -> tuple[int, str]:
    kinds = list(_PANELS)
    return (kinds.index(panel[0]) if panel[0] in kinds else len(kinds), panel[0])


def _facts(run: PretrainRun) -> str:
    found, objective = _training(run), _training(run).get("objective")
    name = objective.get("name") if isinstance(objective, dict) else objective
    architecture = run.encoder.get("architecture")
    encoder = architecture.get("name") if isinstance(architecture, dict) else architecture
    samples = finite(found.get("samples"))
    if samples != samples:
        samples = last(run, "samples")
    facts = [
        f"{name} on {encoder}" if name and encoder else str(name or encoder or ""),
        f"{run.encoder.get('ndim')}D" if run.encoder.get("ndim") else "",
        f"{int(last(run, 'step')):,} steps" if run.rows else "",
        f"{int(samples):,} samples" if samples == samples else "",
        f"{number(last(run, 'samples_per_s'), 0)} samples/s" if run.rows else "",
        f"{100 * last(run, 'data_wait'):.0f} % of the time waiting for data" if run.rows else "",
    ]
    return " · ".join(fact for fact in facts if fact and "nan" not in fact)


def _source_row(source: dict[str, Any]) -> str:
    modalities = source.get("modalities") or source.get("modality") or "–"
    words = ", ".join(str(m) for m in modalities) if isinstance(modalities, dict | list) else str(modalities)
    count = finite(source.get("count"))
    cells = [words, str(source.get("licence") or "unknown")]
    return (
        f'<tr><th scope="row">{escape(str(source.get("id") or source.get("dataset") or "–"))}</th>'
        + "".join(f"<td>{escape(cell)}</td>" for cell in cells)
        + f'<td class="n">{f"{int(count):,}" if count == count else "–"}</td></tr>'
    )


def _held_out(run: PretrainRun) -> str:
    found = run.encoder.get("held_out")
    if not isinstance(found, dict) or not found:
        return "The encoder does not say what was held out."
    rules = found.get("rules") or []
    named = ", ".join(_rule(rule) for rule in rules) or "nothing"
    excluded = found.get("excluded")
    counts = (
        [f"{v} by {k.replace('_', ' ')}" for k, v in sorted(excluded.items()) if v]
        if isinstance(excluded, dict)
        else []
    )
    text = f"Held out before training: {named}."
    if counts:
        text += f" Images left out: {', '.join(counts)}."
    unchecked = found.get("not_checked")
    if unchecked:
        text += f" Not checked: {', '.join(unchecked) if isinstance(unchecked, list) else unchecked}."
    return text


def _rule(rule: Any) -> str:
    if not isinstance(rule, dict):
        return str(rule)
    splits = rule.get("splits")
    return f"{rule.get('dataset')} ({', '.join(splits)})" if splits else str(rule.get("dataset"))


def _commands(found: dict[str, Any], otherwise: Sequence[str]) -> str:
    """The recorded commands, or those that follow from what was recorded; capitals stand for own folders."""
    commands = found.get("commands") or found.get("command") or otherwise
    commands = [commands] if isinstance(commands, str) else commands
    return f"<pre>{escape(shown(chr(10).join(str(c) for c in commands)))}</pre>" if commands else ""


def _again(evaluation: Evaluation) -> list[str]:
    summary = evaluation.summary
    settings = " ".join(
        f"{key}={summary[key]}" for key in ("seed", "fraction", "steps") if summary.get(key) is not None
    )
    tune = f"medloom finetune {evaluation.task} --encoder ENCODER --protocol {evaluation.protocol} {settings}"
    return [f"{tune.rstrip()} --out RUN", f"medloom evaluate RUN --split {summary.get('split', 'test')}"]


def _fold(title: str, inside: str) -> str:
    return f"<details><summary>{escape(title)}</summary>{inside}</details>" if inside else ""


def _training(run: PretrainRun) -> dict[str, Any]:
    found = run.encoder.get("training")
    return found if isinstance(found, dict) else {}


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
