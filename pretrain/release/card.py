"""The model card: README.md of an artefact, written from encoder.json alone.

Whoever finds the weights without their makers must learn from it what they are, what they take, what they
have seen and under which licences, how good they are and how sure that is, and what they are not for. The
choice: no free text, so that the card cannot say what the record does not; a section whose facts are missing
says so. `card_sections.py` has the tables.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...data.atomic import write_text
from ..artefact import CARD, MODELING, RECORD, read_record
from .card_sections import compute, data, held_out, input_contract, licences, limits, scores

HUB_LICENCES = {  # ids of the hub by the names used here
    "apache-2.0": "apache-2.0", "mit": "mit", "cc0-1.0": "cc0-1.0", "cc-by-4.0": "cc-by-4.0",
    "cc-by-sa-4.0": "cc-by-sa-4.0", "cc-by-nc-4.0": "cc-by-nc-4.0", "cc-by-nc-sa-4.0": "cc-by-nc-sa-4.0",
}  # fmt: skip


def write_card(folder: Path) -> Path:
    """Write README.md of an artefact."""
    path = Path(folder) / CARD
    write_text(path, card(read_record(Path(folder) / RECORD), standalone=_standalone(Path(folder))))
    return path


def card(record: Mapping[str, Any], *, standalone: str = "") -> str:
    """The text of the card.

    Args:
        record: encoder.json with `release`, `licences`, `scores` and `compute`, as `push` writes them.
        standalone: a Python snippet that uses the files beside it without medloom; empty: there is none.
    """
    release = record.get("release") or {}
    name = release.get("name") or "encoder"
    sections = [
        _front(record),
        f"# {name.rpartition('/')[2]}",
        _what(record),
        "## Use",
        _use(record, name, standalone),
        "## Input",
        input_contract(record),
        "## Training data",
        data(record),
        "## Licences",
        licences(record),
        "## Held out, and leakage",
        held_out(record),
        "## Scores",
        scores(record),
        "## Compute",
        compute(record),
        "## Limits",
        limits(record),
        "## Proof",
        _proof(record),
        "## Cite",
        _cite(record, name),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _front(record: Mapping[str, Any]) -> str:
    """The YAML that the hub reads."""
    release = record.get("release") or {}
    stated = str(release.get("licence") or "")
    known = HUB_LICENCES.get(stated.lower())
    licence = [f"license: {known}"] if known else ["license: other", f"license_name: {_slug(stated)}"]
    library = "timm" if record.get("timm") else "medloom"
    tags = ["medical-imaging", "self-supervised-learning", "medloom", f"{record['ndim']}d"]
    objective = ((record.get("training") or {}).get("objective") or {}).get("name")
    lines = [
        "---", *licence, f"library_name: {library}", "pipeline_tag: image-feature-extraction",
        "tags:", *(f"- {tag}" for tag in [*tags, *([objective] if objective else [])]), "---",
    ]  # fmt: skip
    return "\n".join(lines)


def _what(record: Mapping[str, Any]) -> str:
    training = record.get("training") or {}
    method = (training.get("objective") or {}).get("name", "an unknown method")
    architecture = record["architecture"]
    model = architecture["args"].get("model")
    patch = "×".join(map(str, record["patch_size"]))
    channels = record["in_channels"]
    return (
        f"A {record['ndim']}D encoder of medical images, pretrained with {method}: "
        f"`{architecture['name']}`{f' (`{model}`)' if model else ''}, "
        f"{_millions(record['parameters'])} parameters, patch {patch}, "
        f"{channels} channel{'s' * (channels != 1)} in, {record['embed_dim']} features out. It turns "
        "an image into one vector (`pooled`) and a vector for each patch (`tokens`), for probing, retrieval "
        "and fine-tuning. It gives no diagnosis and has no head."
    )


def _use(record: Mapping[str, Any], name: str, standalone: str) -> str:
    where = f"hf-hub:{name}" if "/" in name else "FOLDER"
    parts = [
        "With medloom, which checks hash and reference features and adapts channels and size:",
        _python(
            "from medloom.pretrain import load_encoder\n\n"
            f'encoder, report = load_encoder("{where}")\n'
            "features = encoder.eval()(images)  # normalised as below; .pooled, .tokens, .grid"
        ),
    ]
    if record.get("timm"):
        place = where if "/" in name else "local-dir:FOLDER"
        parts += [
            "Without medloom, by timm alone:",
            _python(f'import timm\n\nmodel = timm.create_model("{place}", pretrained=True).eval()'),
        ]
    if standalone:
        parts += ["Without medloom, from the files beside this card:", _python(standalone)]
    return "\n\n".join(parts)


def _standalone(folder: Path) -> str:
    """How the self-contained network beside the weights is used; empty where there is none."""
    if not (folder / MODELING).is_file():
        return ""
    return (
        'from modeling import load  # says what it needs\n\nmodel = load(".")\npooled, tokens = model(images)'
    )


def _proof(record: Mapping[str, Any]) -> str:
    gate = record.get("gate") or []
    rows = [f"| {check['name']} | {check['result']} | {_cell(check['detail'])} |" for check in gate]
    table = ["| check | result | detail |", "|---|---|---|", *rows]
    said = (
        f"Weights: {record['bytes']:,} bytes, SHA-256 `{record['sha256']}`. `reference.npz` holds the "
        "features of a generated image; `medloom weights verify FOLDER` computes them again. "
    )
    if not rows:
        return said + "The artefact did not pass a gate."
    return said + "\n".join(
        ["Before this release a process that had loaded nothing but these files found:", "", *table]
    )


def _cite(record: Mapping[str, Any], name: str) -> str:
    credit = (record.get("licences") or {}).get("credit") or []
    named = f"Name the sources, as their licences ask: {', '.join(credit)}.\n\n" if credit else ""
    short = name.rpartition("/")[2]
    key = "".join(c for c in short if c.isalnum()) or "encoder"
    return (
        f"{named}```bibtex\n@misc{{{key},\n  title = {{{short}: a pretrained encoder of medical images}},\n"
        f"  note = {{made with medloom; weights of SHA-256 {str(record['sha256'])[:12]}}},\n"
        + (f"  howpublished = {{\\url{{https://huggingface.co/{name}}}}}\n" if "/" in name else "")
        + "}\n```"
    )


def _millions(count: int) -> str:
    return f"{count / 1e6:.1f} million" if count >= 1e6 else f"{count:,}"


def _slug(text: str) -> str:
    return (
        "-".join("".join(c if c.isalnum() or c in ".-" else " " for c in text.lower()).split())
        or "not-stated"
    )


def _cell(text: str) -> str:
    return str(text).replace("|", "\\|").replace("\n", " ")


def _python(text: str) -> str:
    return f"```python\n{text}\n```"
