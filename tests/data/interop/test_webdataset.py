"""Shards that others wrote with webdataset become ours, through the same gate as any build."""

from __future__ import annotations

import io
import json
import logging
from pathlib import Path

import numpy as np
import pytest
import webdataset
from medloom.data.errors import CollectionError, ConfigError
from medloom.data.layouts.webdataset import expand
from medloom.data.normalise import intensity
from medloom.data.readers.jpeg import strip
from medloom.data.shards.check import check

from .foreign import PATIENT, as_json, contents, nifti, npy, picture, run_import, samples, write_tar


def test_what_webdataset_writes_is_imported(tmp_path: Path) -> None:
    jpegs = [picture(n, "JPEG") for n in range(6)]
    (tmp_path / "wds").mkdir()
    for shard in range(2):
        with webdataset.TarWriter(str(tmp_path / "wds" / f"train-{shard:03d}.tar")) as sink:
            for n in range(3 * shard, 3 * shard + 3):
                sink.write(
                    {
                        "__key__": f"{PATIENT}/{PATIENT}_{n}",
                        "jpg": jpegs[n],
                        "cls": n % 2,
                        "json": {"patient": f"{PATIENT}{n // 2}", "age": 30 + n, "note": PATIENT},
                    }
                )
    options = ["options.subject=patient", "options.labels=[age]", "classes=[benign,malign]"]
    result = run_import(tmp_path / "wds", out=tmp_path / "out", overrides=options, licence="CC0-1.0")
    assert not result.failures
    found = samples(tmp_path / "out")
    assert sorted(sample.jpeg for sample in found) == sorted(strip(data, "") for data in jpegs)
    assert sorted(sample.meta["labels"]["age"] for sample in found) == list(range(30, 36))
    assert {sample.meta["labels"]["class"] for sample in found} == {"benign", "malign"}
    assert {sample.meta["split"] for sample in found} == {"train"}
    assert len({sample.meta["subject"] for sample in found}) == 3
    assert {sample.meta["licence"] for sample in found} == {"CC0-1.0"}
    assert PATIENT.encode() not in contents(tmp_path / "out")
    assert check(tmp_path / "out") == []


def members_of_everything() -> list[tuple[str, bytes]]:
    """A shard with one of each, and awkward ones."""
    grey = np.random.default_rng(9).integers(0, 60000, (30, 26)).astype(np.uint16)
    volume = np.random.default_rng(8).integers(-900, 900, (16, 18, 20)).astype(np.int16)
    pair = io.BytesIO()
    np.savez(pair, image=grey, mask=(grey > 99).astype(np.uint8))
    tiff = io.BytesIO()
    import tifffile

    tifffile.imwrite(tiff, grey)
    return [
        ("a.PNG", picture(1)), ("a.JSON", as_json(age=1)),
        ("b.image.nii.gz", nifti(volume)), ("b.label.nii.gz", nifti((volume > 0).astype(np.uint8))),
        ("deep/er/c.npy", npy(volume)), ("deep/er/c.json", as_json(spacing=[2.5, 0.5, 0.5])),
        ("d.npz", pair.getvalue()),
        ("e.tif", tiff.getvalue()), ("e.cls", b" 7\n"), ("e.txt", b"free text"), ("e.pyd", b"\x80\x04."),
        ("f.left.jpg", picture(2, "JPEG")), ("f.right.jpg", picture(3, "JPEG")),
        ("g.json", as_json(age=2)),
        ("__meta__", b"x"), (".hidden.png", picture(4)),
        ("../../h.png", picture(5)), ("/etc/i.png", picture(6)), ("./j.png", picture(7)),
    ]  # fmt: skip


def test_every_kind_of_member(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "medloom")
    write_tar(tmp_path / "wds" / "s.tar", members_of_everything())
    result = run_import(
        tmp_path / "wds", out=tmp_path / "out", modality="mri", overrides=["options.spacing=spacing"]
    )
    assert not result.failures
    found = samples(tmp_path / "out")
    assert len(found) == 10
    volumes = [sample for sample in found if sample.meta["ndim"] == 3]
    assert {tuple(sample.meta["spacing"]) for sample in volumes} == {(1.0, 1.0, 1.0), (2.5, 0.5, 0.5)}
    bare = next(sample for sample in volumes if sample.meta["affine"] is None)
    assert bare.meta["orientation"] is None
    assert bare.image.shape == (1, 16, 18, 20)
    masked = [sample for sample in found if sample.mask is not None]
    assert sorted(sample.mask.shape for sample in masked) == [(20, 18, 16), (30, 26)]
    assert [s.meta["labels"] for s in found if s.meta["labels"]] == [{"class": "7"}]
    assert "1 pyd" in caplog.text
    assert "fields not kept" in caplog.text
    assert "free text" not in caplog.text
    assert not (tmp_path / "h.png").exists()


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:xz"])
def test_the_bytes_depend_on_nothing_but_the_samples(tmp_path: Path, mode: str, files_of) -> None:
    for number in range(3):
        members = [(f"{n}.png", picture(n + 10 * number)) for n in range(5)]
        write_tar(tmp_path / "wds" / f"{number}.tar", members, mode)
    built = []
    for workers in (1, 2):
        out = tmp_path / f"out{workers}"
        run_import(tmp_path / "wds", out=out, workers=workers)
        built.append(files_of(out))
    assert built[0] == built[1]
    again = files_of(tmp_path / "out1")
    run_import(tmp_path / "wds", out=tmp_path / "out1")
    assert files_of(tmp_path / "out1") == again


def test_damaged_shards_are_listed_and_the_rest_is_kept(tmp_path: Path) -> None:
    wds = tmp_path / "wds"
    whole = write_tar(wds / f"{PATIENT}.tar", [(f"{n}.png", picture(n)) for n in range(8)])
    whole.write_bytes(whole.read_bytes()[: 4 * 2048 + 700])  # four members of 2048 bytes, and a bit
    write_tar(wds / "double.tar", [("k.png", picture(20)), ("k.png", picture(21)), ("m.png", picture(22))])
    write_tar(wds / "empty.tar", [])
    (wds / "zero.tar").touch()
    write_tar(wds / "bad.tar", [("x.png", picture(1)[:90]), ("y.json", b"{broken"), ("y.png", picture(2))])
    result = run_import(wds, out=tmp_path / "out", dataset="w")
    reasons = sorted(failure.reason for failure in result.failures)
    assert len(reasons) == 5
    for words in (
        "cut short",
        "is twice in its tar",
        "0 bytes",
        "json cannot be read",
        "truncated or corrupt",
    ):
        assert any(words in reason for reason in reasons), (words, reasons)
    lines = (tmp_path / "out" / "failures.jsonl").read_text()
    assert PATIENT not in lines
    assert len(lines.splitlines()) == 5
    assert result.manifest.count == 4 + 2
    names = {json.loads(line)["key"] for line in lines.splitlines()}
    assert len(names) == 5


def test_options_choose_members_and_fields(tmp_path: Path) -> None:
    members = []
    for n in range(4):
        members += [
            (f"{n}.t1.npy", npy(np.full((9, 30, 31), n, np.int16) + np.arange(31, dtype=np.int16))),
            (f"{n}.t2.npy", npy(np.zeros((9, 30, 31), np.int16))),
            (f"{n}.tumour.npy", npy(np.ones((9, 30, 31), np.int8))),
            (f"{n}.json", as_json(site="x", fold="valid" if n else "training", who=f"s{n}", visit=3)),
        ]
    write_tar(tmp_path / "s.tar", members)
    options = [
        "options.image=[t1.npy]", "options.mask=tumour.npy", "options.axes=WHD", "options.subject=who",
        "options.study=visit", "options.split=fold", "options.label=site", "options.normalised=true",
        "mask_classes={1: tumour}",
    ]  # fmt: skip
    run_import(tmp_path / "s.tar", out=tmp_path / "out", dataset="w", modality="ct", overrides=options)
    found = samples(tmp_path / "out")
    assert [sample.image.shape for sample in found] == [(1, 31, 30, 9)] * 4
    assert {sample.mask.shape for sample in found} == {(31, 30, 9)}
    assert found[0].meta["mask"]["classes"] == {"1": "tumour"}
    assert sorted(sample.meta["split"] for sample in found) == ["train", "val", "val", "val"]
    assert {sample.meta["labels"]["class"] for sample in found} == {"x"}
    assert all(sample.meta["study"] for sample in found)
    for sample in found:
        assert sample.meta["stats"]["foreground"]["rule"] == "otsu"
        np.testing.assert_array_equal(intensity(sample.meta).apply(sample.image), sample.image)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["options.subject=who"], "no subject: field who is missing"),
        (["options.image=[mask.png]"], "has no member mask.png, only png"),
        (["options.subject_pattern='x(y)z'"], "does not match"),
    ],
)
def test_a_sample_that_does_not_fit_the_options_is_refused(
    tmp_path: Path, options: list[str], words: str
) -> None:
    write_tar(tmp_path / "s.tar", [("a.png", picture(0)), ("a.json", as_json(age=3))])
    with pytest.raises(CollectionError, match=words):
        run_import(tmp_path / "s.tar", out=tmp_path / "out", dataset="w", overrides=options)


@pytest.mark.parametrize("axes", ["DH", "HWX", "HHW"])
def test_wrong_axes_are_refused_at_once(tmp_path: Path, axes: str) -> None:
    write_tar(tmp_path / "s.tar", [("a.png", picture(0))])
    with pytest.raises(ConfigError, match="expected letters of CDHW"):
        run_import(tmp_path / "s.tar", out=tmp_path / "out", overrides=[f"options.axes={axes}"])


def test_axes_that_cannot_be_told_are_asked_for(tmp_path: Path) -> None:
    write_tar(tmp_path / "s.tar", [("a.npy", npy(np.zeros((3, 64, 3), np.uint8))), ("b.png", picture(1))])
    result = run_import(tmp_path / "s.tar", out=tmp_path / "out", dataset="w")
    assert [f.reason.split(": ", 1)[1] for f in result.failures] == [
        "what the axes of shape (3, 64, 3) are cannot be told; name them, e.g. axes: CDHW"
    ]


def test_sources_are_folders_braces_and_lists(tmp_path: Path) -> None:
    for number in range(4):
        write_tar(tmp_path / f"w/part-{number:02d}.tar", [("a.png", picture(number))])
    listing = tmp_path / "list.txt"
    listing.write_text(f"# shards\n{tmp_path}/w/part-00.tar\n{tmp_path}/w/part-03.tar\n")
    for number, (source, count) in enumerate(
        [
            (tmp_path / "w", 4),
            (f"{tmp_path}/w/part-{{01..02}}.tar", 2),
            (f"{tmp_path}/w/part-*.tar", 4),
            (listing, 2),
        ]
    ):
        result = run_import(source, out=tmp_path / f"out{number}", dataset="w")
        assert result.manifest.count == count
    with pytest.raises(CollectionError, match=r"part-09\.tar: no such file"):
        run_import(f"{tmp_path}/w/part-{{08..09}}.tar".replace("08", "09"), out=tmp_path / "no")
    with pytest.raises(CollectionError, match="not a file of this machine"):
        run_import("s3://bucket/part-00.tar", out=tmp_path / "no")


def test_braces_are_those_of_the_shell() -> None:
    assert expand("a-{08..11}.tar") == ["a-08.tar", "a-09.tar", "a-10.tar", "a-11.tar"]
    assert expand("{train,val}-{0..1}") == ["train-0", "train-1", "val-0", "val-1"]
    assert expand("plain.tar") == ["plain.tar"]


def test_our_own_shards_are_not_imported(tmp_path: Path) -> None:
    write_tar(tmp_path / "w.tar", [("a.png", picture(0))])
    run_import(tmp_path / "w.tar", out=tmp_path / "out")
    with pytest.raises(CollectionError, match="shards of medloom already"):
        run_import(tmp_path / "out", out=tmp_path / "again", kind="webdataset")


def test_a_table_may_address_members(tmp_path: Path) -> None:
    from medloom.data.collection import Collection
    from medloom.data.ingest.build import build

    write_tar(tmp_path / "s.tar", [("a.png", picture(0)), ("b.png", picture(1))])
    (tmp_path / "t.csv").write_text("name,label\na,x\nb,y\nc,z\n")
    path = tmp_path / "c.yaml"
    path.write_text(
        "name: t\nsalt: a-salt-for-tests\nsources:\n- dataset: t\n  layout: table\n  modality: oct\n"
        "  options: {file: t.csv, path: 's.tar::{name}.png', label: label}\n"
    )
    result = build(Collection.load(path), tmp_path / "out")
    assert sorted(s.meta["labels"]["class"] for s in samples(tmp_path / "out")) == ["x", "y"]
    assert [failure.reason for failure in result.failures] == ["file is missing"]
