"""Fetching as a whole: from an address to a collection that builds, whatever happens in between."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
from medloom.data.catalog import Dataset
from medloom.data.catalog.vocabulary import Access
from medloom.data.collection import Collection, scan
from medloom.data.config import find_config, read_yaml
from medloom.data.errors import ConfigError, ReadError, StoreError
from medloom.data.fetch import digests
from medloom.data.fetch.extract import MARKER
from medloom.data.fetch.fetch import Options, fetch
from medloom.data.fetch.plan import Part, Plan, plan
from medloom.data.ingest.build import build
from medloom.data.sample import Modality
from medloom.data.shards.reader import Shards

from . import sets
from .sets import QUICK, SPLEEN, names


def built(collection: Path, out: Path) -> Shards:
    result = build(Collection.load(collection), out, workers=0)
    assert not result.failures
    return Shards.open(out)


# ---- the Decathlon and MedMNIST


@pytest.mark.parametrize("identifier", sorted(sets.built_in().msd))
def test_each_decathlon_task_is_fetched_and_builds(site, tmp_path, identifier):
    catalog = sets.built_in()
    task = catalog.msd[identifier]
    sets.msd_tar(site.folder / f"{task.folder}.tar", task)
    catalog = sets.served(catalog, site.folder, site.url)
    found = fetch(plan(catalog, identifier), tmp_path / "data", QUICK)
    assert (found.images, found.refused) == (sets.TRAIN + sets.TEST, 0)
    assert names(found.folder / task.folder)[:2] == [MARKER, "dataset.json"]
    assert not [name for name in names(found.folder) if "._" in name or name.endswith(".tar")]
    shards = built(found.collection, tmp_path / "shards")
    assert len(shards) == sets.TRAIN + sets.TEST
    samples = [shards.sample(ref) for ref in shards.refs()]
    channels = len(sets.CHANNELS[task.task_id])
    assert {sample.image.shape for sample in samples} == {(channels, 10, 12, 14)}
    assert sum(sample.mask is not None for sample in samples) == sets.TRAIN
    meta = samples[0].meta
    assert (meta["dataset"], meta["licence"]) == (identifier, "CC-BY-SA-4.0")
    assert meta["modality"] == str(catalog[identifier].modalities[0])
    assert meta["organ"] == str(catalog[identifier].organs[0])


CHOSEN = [
    ("pathmnist", 28),
    ("pathmnist", 64),
    ("chestmnist", 224),
    ("retinamnist", 128),
    ("organmnist3d", 64),
]


@pytest.mark.parametrize(("identifier", "size"), CHOSEN)
def test_medmnist_is_fetched_and_builds(site, tmp_path, identifier, size):
    catalog = sets.built_in()
    known = catalog.medmnist[identifier]
    name = identifier if size == 28 else f"{identifier}_{size}"
    sets.medmnist_npz(site.folder / f"{name}.npz", known, size)
    catalog = sets.served(catalog, site.folder, site.url)
    found = fetch(plan(catalog, identifier, size), tmp_path / "data", QUICK)
    assert found.folder == tmp_path / "data" / name
    assert (found.images, found.refused) == (12, 0)
    shards = built(found.collection, tmp_path / "shards")
    samples = [shards.sample(ref) for ref in shards.refs()]
    assert len(samples) == 12
    assert {sample.image.shape[-1] for sample in samples} == {size}
    assert samples[0].meta["licence"] == known.licence
    assert samples[0].meta["modality"] == str(known.modality)


def test_every_set_of_the_table_has_a_plan():
    catalog = sets.built_in()
    for item in catalog.medmnist.values():
        for size in item.sizes:
            (part,) = plan(catalog, item.id, size).parts
            assert part.md5 == item.md5[size] and part.url.startswith("https://zenodo.org/")
    for task in catalog.msd.values():
        (part,) = plan(catalog, task.dataset).parts
        assert len(part.md5 or "") == 32 and part.folder == task.folder
    with pytest.raises(ConfigError, match="organmnist3d comes in 28, 64"):
        plan(catalog, "organmnist3d", 224)
    with pytest.raises(ConfigError, match="belongs to the sets of MedMNIST"):
        plan(catalog, SPLEEN, 64)


def test_task_records_look_where_the_files_are_put():
    catalog, looked = sets.built_in(), 0
    for identifier in [*catalog.msd, *catalog.medmnist]:
        try:
            record = read_yaml(find_config("tasks", identifier))
        except ConfigError:  # not every set has a record
            continue
        wanted = plan(catalog, identifier)
        inner = f"/{wanted.parts[0].folder}" if wanted.layout == "msd" else ""
        assert record["source"]["root"] == f"{wanted.folder}{inner}", identifier
        assert record["source"]["layout"] == wanted.layout
        looked += 1
    assert looked >= 10


# ---- killed, repeated, together


def test_a_second_run_does_nothing_again(spleen, site, tmp_path):
    first = fetch(plan(spleen, SPLEEN), tmp_path / "data", QUICK)
    before = {path: path.stat().st_mtime_ns for path in first.folder.rglob("*")}
    asked = len(site.seen)
    (first.folder / "Task09_Spleen" / "cache.npy").write_bytes(b"another program's")
    again = fetch(plan(spleen, SPLEEN), tmp_path / "data", QUICK)
    assert again.kept and again.images == first.images and len(site.seen) == asked
    assert all(path.stat().st_mtime_ns == then for path, then in before.items() if path.is_file())


def test_the_users_collection_is_not_written_over(spleen, tmp_path):
    first = fetch(plan(spleen, SPLEEN), tmp_path / "data", QUICK)
    text = first.collection.read_text().replace("organ: spleen", "organ: abdomen")
    first.collection.write_text(text)
    fetch(plan(spleen, SPLEEN), tmp_path / "data", QUICK)
    assert first.collection.read_text() == text


def test_lost_files_are_said_and_the_folder_is_fetched_again_when_removed(spleen, tmp_path):
    folder = fetch(plan(spleen, SPLEEN), tmp_path / "data", QUICK).folder
    (folder / "Task09_Spleen" / "labelsTr" / "spleen_000.nii.gz").unlink()
    with pytest.raises(ConfigError, match=r"is not as Task09_Spleen.tar was unpacked .* remove it"):
        fetch(plan(spleen, SPLEEN), tmp_path / "data", QUICK)
    shutil.rmtree(folder / "Task09_Spleen")
    assert fetch(plan(spleen, SPLEEN), tmp_path / "data", QUICK).images == 5


def test_a_folder_in_the_way_is_left_alone(spleen, site, tmp_path):
    mine = tmp_path / "data" / SPLEEN / "Task09_Spleen"
    mine.mkdir(parents=True)
    (mine / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match="in the way"):
        fetch(plan(spleen, SPLEEN), tmp_path / "data", QUICK)
    assert names(mine) == ["notes.txt"] and site.seen == []


CODE = """
import sys
from pathlib import Path
from medloom.data.fetch.fetch import Options, fetch
from medloom.data.fetch.plan import Part, Plan
from medloom.data.catalog import load
url, md5, to = sys.argv[1:]
fetch(Plan(load(())["msd-task09-spleen"], "here", (Part("Task09_Spleen.tar", url, md5),), "msd"), Path(to))
"""


def test_killed_at_any_moment_and_continued(site, tmp_path):
    """Kills at moments spread over download, verification and unpacking; the last run finishes."""
    catalog = sets.built_in()
    path = sets.msd_tar(site.folder / "Task09_Spleen.tar", catalog.msd[SPLEEN], filler=4_000_000)
    task = sets.served(catalog, site.folder, site.url).msd[SPLEEN]
    site.pause, folder = 0.003, tmp_path / "data" / "here"
    arguments = [sys.executable, "-c", CODE, task.url_aws, task.archive_md5, str(tmp_path / "data")]
    part = folder / "Task09_Spleen.tar.part"

    def has(share: float) -> bool:
        with contextlib.suppress(FileNotFoundError):
            return part.stat().st_size > share * path.stat().st_size
        return (folder / "Task09_Spleen.tar").exists()

    moments = {
        "locked": lambda: folder.exists(),
        "a third": lambda: has(0.3),
        "two thirds": lambda: has(0.6),
        "downloaded": lambda: (folder / "Task09_Spleen.tar").exists(),
        "unpacking": lambda: any(folder.glob(".partial-Task09_Spleen/*")),
        "unpacked": lambda: (folder / "Task09_Spleen").exists(),
    }
    killed = []
    for name, moment in moments.items():
        child = subprocess.Popen(arguments)
        while child.poll() is None and not moment():
            time.sleep(0.0005)
        killed += [name] if child.poll() is None else []
        child.send_signal(signal.SIGKILL)
        child.wait()
    assert {"locked", "a third", "two thirds"} <= set(killed)  # the later moments are short
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(scan(Collection.load(folder / "collection.yaml")).records) == 5
    assert [name for name in names(folder) if "/" not in name] == ["collection.yaml"]
    starts = [int(wanted[6:-1] or 0) if wanted else 0 for _, wanted, _ in site.seen]
    assert starts == sorted(starts) and starts[-1] > 0.3 * path.stat().st_size  # continued, not begun again


def _one(catalog_url: str, md5: str, to: str, queue) -> None:
    wanted = Plan(sets.built_in()[SPLEEN], SPLEEN, (Part("Task09_Spleen.tar", catalog_url, md5),), "msd")
    queue.put(fetch(wanted, Path(to), QUICK).images)


def test_two_processes_at_once_fetch_it_once(spleen, site, tmp_path):
    task = spleen.msd[SPLEEN]
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    site.pause = 0.001
    arguments = (task.url_aws, task.archive_md5, str(tmp_path / "data"), queue)
    children = [context.Process(target=_one, args=arguments) for _ in range(2)]
    for child in children:
        child.start()
    found = [queue.get(timeout=60) for _ in children]
    for child in children:
        child.join()
    assert found == [5, 5]
    assert site.gets("Task09_Spleen.tar") == 1


def test_archives_are_kept_when_asked_and_then_not_fetched_again(spleen, site, tmp_path):
    keep = Options(keep_archives=True, patience=QUICK.patience)
    folder = fetch(plan(spleen, SPLEEN), tmp_path / "data", keep).folder
    assert (folder / "Task09_Spleen.tar").exists()
    shutil.rmtree(folder / "Task09_Spleen")
    fetch(plan(spleen, SPLEEN), tmp_path / "data", keep)
    assert site.gets("Task09_Spleen.tar") == 1
    fetch(plan(spleen, SPLEEN), tmp_path / "data", QUICK)
    assert [name for name in names(folder) if "/" not in name] == ["collection.yaml"]


# ---- faults of the host


def test_a_wrong_digest_is_refused_and_nothing_is_unpacked(spleen, site, tmp_path):
    path = site.folder / "Task09_Spleen.tar"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(StoreError, match=r"MD5 .*, the catalogue says .*, twice.*report-error"):
        fetch(plan(spleen, SPLEEN), tmp_path / "data", QUICK)
    assert names(tmp_path / "data") == []


def test_a_hostile_archive_leaves_only_itself(site, tmp_path):
    with zipfile.ZipFile(site.folder / "a.zip", "w") as archive:
        archive.writestr("../../evil.txt", "x")
    wanted = plan_of(site, "a.zip")
    with pytest.raises(ReadError, match="leads out of its folder"):
        fetch(wanted, tmp_path / "data", QUICK)
    assert names(tmp_path / "data") == ["our-set/.a.zip.json", "our-set/a.zip"]
    assert not (tmp_path / "evil.txt").exists()


def test_no_message_names_a_signature(site, tmp_path, caplog):
    wanted = plan_of(site, "missing.zip?signature=secret")
    with pytest.raises(StoreError) as caught:
        fetch(wanted, tmp_path / "data", QUICK)
    assert "secret" not in f"{caught.value}{caplog.text}"


# ---- files without a published digest


def plan_of(site, *files: str, **facts) -> Plan:
    """The plan of an own record whose files lie on the loopback."""
    from medloom.data.catalog import Catalog

    facts.setdefault("modalities", (Modality.DERMOSCOPY,))
    urls = tuple(f"{site.url}/{file}" for file in files)
    dataset = Dataset(id="our-set", name="Ours", access=Access.OPEN, download=urls, **facts)
    return plan(Catalog([dataset]), "our-set")


def test_the_first_digest_is_noted_and_expected_ever_after(site, tmp_path):
    sets.zip_of(site.folder / "a.zip", ["set/nevus/1.png", "set/melanoma/2.png"])
    first = fetch(plan_of(site, "a.zip"), tmp_path / "data", QUICK)
    shutil.rmtree(first.folder)
    fetch(plan_of(site, "a.zip"), tmp_path / "elsewhere", QUICK)
    sets.zip_of(site.folder / "a.zip", ["set/nevus/1.png", "set/melanoma/3.png"])
    with pytest.raises(StoreError, match=r"SHA256 .*, the first fetch of .* says .*--accept-changed"):
        fetch(plan_of(site, "a.zip"), tmp_path / "data", QUICK)
    meant = Options(accept_changed=True, patience=QUICK.patience)
    fetch(plan_of(site, "a.zip"), tmp_path / "data", meant)
    shutil.rmtree(first.folder)
    fetch(plan_of(site, "a.zip"), tmp_path / "data", QUICK)  # the new one is the expected one now


def test_a_data_file_is_not_read_again_until_it_changes(site, tmp_path, monkeypatch):
    catalog = sets.built_in()
    sets.medmnist_npz(site.folder / "pathmnist.npz", catalog.medmnist["pathmnist"], 28)
    catalog = sets.served(catalog, site.folder, site.url)
    wanted = plan(catalog, "pathmnist")
    folder = fetch(wanted, tmp_path, QUICK).folder
    read = []
    real = digests.digests_of
    monkeypatch.setattr(digests, "digests_of", lambda path: read.append(path.name) or real(path))
    fetch(wanted, tmp_path, QUICK)
    assert read == [] and site.gets("pathmnist.npz") == 1
    os.utime(folder / "pathmnist.npz")
    fetch(wanted, tmp_path, QUICK)
    assert read == ["pathmnist.npz"]
    (folder / "pathmnist.npz").write_bytes(b"PK\x03\x04 not it")
    with pytest.raises(StoreError, match=r"pathmnist.npz: MD5 .* move it away"):
        fetch(wanted, tmp_path, QUICK)
