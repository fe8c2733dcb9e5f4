"""The zoo as a table, for `medloom weights list --zoo` and docs/zoo.md."""

from __future__ import annotations

from collections.abc import Sequence

from .record import PREFIX, ZooRecord, records

_MARKED = {"upstream-class": "class", "keys-only": "names", "unchecked": "no"}


def rows() -> list[dict[str, str]]:
    """One row a record, in words."""
    return [
        {
            "name": record.name,
            "what it is": record.title,
            "network": network(record),
            "size": " × ".join(str(side) for side in record.input["crop"]),
            "licence": record.licence,
            "from": place(record),
            "checked": _MARKED[record.checked],
        }
        for record in records()
    ]


def network(record: ZooRecord) -> str:
    """Family of our encoder and, of timm, the model."""
    if record.download.timm:
        return record.download.timm.split(".")[0]
    return str(record.encoder.get("model") or record.encoder["name"])


def place(record: ZooRecord) -> str:
    """Where the file is, in words."""
    source = record.download
    if source.timm:
        return "timm"
    if source.hub:
        return f"{source.hub}{', gated' if source.gated else ''}"
    return "an address" if source.url else "by hand"


def markdown(table: Sequence[dict[str, str]]) -> str:
    """The table of docs/zoo.md."""
    lines = ["| " + " | ".join(table[0]) + " |", "|---" * len(table[0]) + "|"]
    lines += ["| " + " | ".join(row.values()) + " |" for row in table]
    return "\n".join(lines)


def facts(record: ZooRecord) -> list[tuple[str, str]]:
    """All of a record, as (word, text), empty ones left out."""
    modalities = ", ".join(record.input.get("modalities") or {})
    crop = " × ".join(str(side) for side in record.input["crop"])
    said = [
        ("network", network(record)),
        ("page", record.home),
        ("paper", record.paper),
        ("licence of the weights", record.licence),
        ("file", f"{place(record)} {record.download.file or record.download.timm or ''}".strip()),
        ("input", f"{record.input['channels']} × {crop}" + (f", {modalities}" if modalities else "")),
        ("intensity", record.intensity),
        ("trained on, as far as known", ", ".join(record.trained_on)),
        ("names checked", f"{record.checked}: {record.upstream}"),
        ("note", record.note),
        ("use", f"--encoder {record.name}, or {PREFIX}{record.name}@FILE"),
    ]
    return [(word, text) for word, text in said if text]
