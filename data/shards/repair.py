"""Mend a folder of shards: plan from what `check` finds, then do it, losing nothing that is not replaced.

What is used, in this order: the right bytes under another name in the same folder (renamed, swapped, or left
by an interrupted repair); the shard itself, where only tar headers or padding are hit; another folder or URL;
the receipts of the build, so that the next build makes just these shards again; and, if allowed, dropping
what is lost. Every file is verified by its SHA-256 before it takes the place of a bad one. Everything may be
killed and run again.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from ..atomic import TEMPORARY
from ..errors import MedloomError, ShardError
from ..ingest.recover import measure, recover
from ..ingest.summary import source_entry
from ..ingest.units import UNITS, Receipt
from ..locks import locked
from . import index as indexing
from .check import INDEX, RECORD, STRAY, Fault, Findings, Progress, examine
from .copies import MARK, Source, fetch, partial_of, settle, take, write
from .damage import mended
from .index import file_sha256, index_path
from .manifest import MANIFEST, Manifest, ShardEntry, SourceEntry
from .salvage import ASIDE, DROPPED, record, salvage, set_aside

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Step:
    """One thing to do; `do` is manifest, index, take, restore, copy, rebuild, drop, aside, sweep or leave."""

    do: str
    file: str
    wrong: str  # in words
    how: str  # in words
    entry: ShardEntry | None = None
    path: Path | None = None


@dataclass(slots=True)
class Plan:
    """What a repair would do, and with which manifest."""

    folder: Path
    manifest: Manifest
    steps: list[Step] = field(default_factory=list)
    source: Source | None = None

    def of(self, *kinds: str) -> list[Step]:
        """Steps of these kinds."""
        return [step for step in self.steps if step.do in kinds]


def plan(
    folder: str | Path,
    source: str | None = None,
    *,
    rebuildable: bool = False,
    drop: bool = False,
    workers: int = 1,
    progress: Progress | None = None,
) -> Plan:
    """What would mend the folder. Changes nothing.

    Args:
        source: path or URL of another folder of the same shards.
        rebuildable: give shards that no copy is found for to the next build, by removing their receipts.
        drop: take what cannot be mended out of the manifest.

    Raises:
        ShardError: the folder holds no shards, or `source` is no folder of shards.
    """
    folder = Path(folder)
    other = Source(source) if source else None
    if other is not None:
        other.manifest()
    findings = examine(folder, progress, workers=workers)
    steps, manifest, findings = _manifest_step(folder, findings, other, workers)
    result = Plan(folder, manifest, steps, other)
    wrong = [entry for entry in manifest.shards if findings.sha256.get(entry.file) != entry.sha256]
    held = _held(folder, findings, wrong)
    by_file: dict[str, Fault] = {}
    for fault in findings.faults:
        by_file.setdefault(fault.shard, fault)
    receipts = _receipts(folder)
    for entry in wrong:
        fault = by_file.get(entry.file)
        reason = fault.reason.partition(";")[0] if fault else "is not the shard that the manifest means"
        words = f"{fault.member} {reason}" if fault and fault.member else reason
        result.steps.append(_shard_step(result, entry, words, held, receipts, rebuildable, drop))
    bad = {entry.file for entry in wrong}
    for entry in manifest.shards:
        index = index_path(folder / entry.file).name
        if entry.file not in bad and index in by_file:
            result.steps.append(
                Step("index", index, "is lost or does not fit", "make it from the tar", entry)
            )
    result.steps += _other_steps(folder, manifest, findings)
    return result


def _manifest_step(
    folder: Path, findings: Findings, other: Source | None, workers: int
) -> tuple[list[Step], Manifest, Findings]:
    """What is to be done for the manifest, the one to go by, and what the shards are by themselves."""
    faults = [f for f in findings.faults if f.shard == MANIFEST and f.kind == RECORD]
    if not faults and findings.manifest is not None:
        return [], findings.manifest, findings
    alone = findings
    if findings.manifest is not None:
        alone = examine(folder, workers=workers, trusted=False)
    tars = {tar.name for tar in folder.glob("[!.]*.tar")}
    if other is not None and tars <= {entry.file for entry in other.manifest().shards}:
        manifest, how = other.manifest(), f"take the manifest of {other.name}"
    else:
        damaged = {fault.shard for fault in alone.faults if fault.kind != INDEX}
        sound = {file: digest for file, digest in alone.sha256.items() if file not in damaged}
        manifest, sure = recover(folder, sound)
        how = f"write it from receipts and shards ({sure}); running the build again gives it exactly"
    return [Step("manifest", MANIFEST, faults[0].reason.partition(";")[0], how)], manifest, alone


def _held(folder: Path, findings: Findings, wrong: list[ShardEntry]) -> dict[str, Path]:
    """SHA-256 -> file of the folder that holds these bytes, for shards whose own file does not."""
    wanted = {entry.sha256 for entry in wrong}
    held = {digest: folder / file for file, digest in findings.sha256.items() if digest in wanted}
    sizes = {entry.bytes for entry in wrong}
    for path in folder.iterdir():
        candidate = path.name.startswith(MARK) or (path.suffix == ".tar" and path.name not in findings.sha256)
        if candidate and path.is_file() and path.stat().st_size in sizes:
            digest = file_sha256(path)
            if digest in wanted:
                held.setdefault(digest, path)
    return held


def _shard_step(
    made: Plan,
    entry: ShardEntry,
    wrong: str,
    held: dict[str, Path],
    receipts: dict[str, Path],
    rebuildable: bool,
    drop: bool,
) -> Step:
    tar = made.folder / entry.file
    if entry.sha256 in held:
        path = held[entry.sha256]
        return Step("take", entry.file, wrong, f"its bytes are in {path.name}", entry, path)
    if _mends(tar, entry):
        return Step("restore", entry.file, wrong, "write headers and padding as they were", entry)
    if made.source is not None and made.source.has(entry):
        return Step("copy", entry.file, wrong, f"copy from {made.source.name}", entry)
    receipt = receipts.get(entry.file)
    if rebuildable and receipt is not None:
        how = f"remove {UNITS}/{receipt.name}; then: {_command(made)}"
        return Step("rebuild", entry.file, wrong, how, entry, receipt)
    if drop:
        return Step(
            "drop", entry.file, wrong, f"keep its intact samples, list the others in {DROPPED}", entry
        )
    ways = ["--from a folder or URL that has it"]
    if made.source is not None:
        ways = [f"{made.source.name} does not have it (another build?); --from another place"]
    if receipt is not None:
        ways.append(f"--rebuildable, then `{_command(made)}`")
    return Step("leave", entry.file, wrong, "; ".join([*ways, "--drop to go on without it"]), entry)


def _command(made: Plan) -> str:
    return f"medloom shards build {made.manifest.name} --out {made.folder}"


def _mends(tar: Path, entry: ShardEntry) -> bool:
    """Whether canonical headers and padding give the shard its SHA-256 back."""
    try:
        index = indexing.load(index_path(tar))
        if index.tar_bytes != entry.bytes or not tar.is_file():
            return False
        digest = hashlib.sha256()
        for piece in mended(tar, index):
            digest.update(piece)
    except (ShardError, OSError):
        return False
    return digest.hexdigest() == entry.sha256


def _receipts(folder: Path) -> dict[str, Path]:
    """Shard -> receipt of the unit that wrote it."""
    found = {}
    for path in (folder / UNITS).glob("*.json"):
        receipt = Receipt.load(path)
        if receipt is not None:
            found |= {entry.file: path for entry in receipt.shards.values()}
    return found


def _other_steps(folder: Path, manifest: Manifest, findings: Findings) -> Iterator[Step]:
    known = {entry.file for entry in manifest.shards}
    known |= {Path(name).with_suffix(".idx").name for name in known}
    for path in sorted(folder.iterdir()):
        if path.name.startswith(TEMPORARY) and not path.name.startswith(MARK):
            yield Step("sweep", path.name, "was left by a killed build", "delete it")
        elif path.suffix in (".tar", ".idx") and path.name not in known and not path.name.startswith("."):
            yield Step("aside", path.name, "is not in the manifest", f"move it to {ASIDE}/", path=path)
    files = known | {MANIFEST}
    for fault in findings.faults:
        if fault.kind not in (STRAY, INDEX) and fault.shard not in files:
            yield Step("leave", fault.shard, fault.reason, "running the build again writes it anew")
        elif fault.kind == "twice":
            yield Step("leave", fault.shard, fault.reason, "build again: one image was stored twice")


def apply(made: Plan, progress: Progress | None = None) -> list[tuple[Step, str]]:
    """Do what the plan says; returns the steps that remain, with the reason. One that fails never ends it.

    Raises:
        ShardError: another build or repair works in the folder, or nothing would be left.
    """
    folder, remain = made.folder, [(step, step.how) for step in made.of("leave")]
    total = sum(step.entry.bytes for step in made.of("take", "restore", "copy") if step.entry)
    done = 0

    def tick(count: int) -> None:
        nonlocal done
        done += count
        if progress is not None:
            progress(min(done, total), total, "copy | ")

    with locked(folder, "a build or a repair is"):
        if made.of("manifest"):
            if (folder / MANIFEST).is_file():
                (folder / ASIDE).mkdir(exist_ok=True)
                shutil.copyfile(folder / MANIFEST, folder / ASIDE / MANIFEST)
            made.manifest.save(folder)
        for step in made.of("take"):  # second names for all first: two that were swapped need each other
            if step.entry and step.path:
                take(step.path, step.entry, folder)
        for step in made.of("take", "restore", "copy", "index", "rebuild", "aside", "sweep"):
            try:
                _do(made, step, tick)
            except (MedloomError, OSError) as error:
                remain.append((step, str(error)))
            if step.do == "rebuild":
                remain.append((step, step.how))
        if made.of("drop"):
            _drop(made)
    return remain


def _do(made: Plan, step: Step, tick: Callable[[int], None]) -> None:
    folder, entry = made.folder, step.entry
    if step.do == "take" and entry:
        settle(folder, entry)
        tick(entry.bytes)
    elif step.do == "restore" and entry:
        partial, tar = partial_of(folder, entry), folder / entry.file
        partial.unlink(missing_ok=True)
        index = indexing.load(index_path(tar))
        if not write(partial, entry, lambda _: mended(tar, index), tick):
            raise ShardError(f"{tar}: changed while it was mended; run the same command again")
        settle(folder, entry)
    elif step.do == "copy" and entry and made.source:
        fetch(made.source, entry, folder, tick)
    elif step.do == "index" and entry:
        indexing.rebuild(folder / entry.file, sha256=entry.sha256)
    elif step.do == "rebuild" and step.path:
        step.path.unlink(missing_ok=True)
    elif step.do == "aside" and step.path and step.path.is_file():
        set_aside(folder, step.path, step.path.name)
    elif step.do == "sweep":
        (folder / step.file).unlink(missing_ok=True)


def _drop(made: Plan) -> None:
    """Take lost samples out of shards and manifest; the manifest is written last."""
    folder, changed = made.folder, {}
    dropped = list(made.manifest.build.get("dropped", []))
    receipts = _receipts(folder)
    for step in made.of("drop"):
        assert step.entry is not None
        left = salvage(folder, step.entry)
        record(folder, left.lost)
        changed[step.file] = left.entry
        dropped.append({"shard": step.file, "samples": len(left.lost), "of": step.entry.count})
        if step.file in receipts:  # it tells of a shard that is no more; the next build makes it again
            receipts[step.file].unlink(missing_ok=True)
    known = _parts(folder)
    sources = [s for old in made.manifest.sources if (s := _without(folder, old, changed, known))]
    if not sources:
        raise ShardError(f"{folder}: nothing would be left of it; build it again, or copy it again")
    build = made.manifest.build | {"dropped": dropped}
    replace(made.manifest, sources=tuple(sources), build=build).save(folder)


def _parts(folder: Path) -> dict[str, tuple[ShardEntry, dict]]:
    loaded = (Receipt.load(path) for path in (folder / UNITS).glob("*.json"))
    return {e.sha256: (e, r.summary[kind]) for r in loaded if r for kind, e in r.shards.items()}


def _without(
    folder: Path,
    source: SourceEntry,
    changed: dict[str, ShardEntry | None],
    known: dict[str, tuple[ShardEntry, dict]],
) -> SourceEntry | None:
    """The row of a source after a drop; counts come from receipts where they fit, else from the shards."""
    if not any(entry.file in changed for entry in source.shards):
        return source
    entries = [e for old in source.shards if (e := changed.get(old.file, old)) is not None]
    parts = [known.get(e.sha256) or measure(folder / e.file, e.sha256) for e in entries]
    return source_entry(source.id, parts, source.licence, source.label_kinds) if parts else None
