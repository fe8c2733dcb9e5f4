"""data/layouts/bids.py: entities, sessions, masks of derivatives, and what of participants.tsv passes."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from medloom.data.errors import CollectionError, ConfigError
from medloom.data.sample import Modality

RNG = np.random.default_rng(0)
CANARY = "CANARY-Mustermann"


@pytest.fixture
def bids(tmp_path: Path, put: Callable) -> Path:
    for name in (
        "sub-01/ses-a/anat/sub-01_ses-a_T1w",
        "sub-01/ses-a/anat/sub-01_ses-a_FLAIR",
        "sub-01/ses-b/anat/sub-01_ses-b_T1w",
        "sub-01/ses-b/func/sub-01_ses-b_task-rest_bold",
        "sub-02/dwi/sub-02_dir-AP_dwi",
        "sub-02/fmap/sub-02_dir-AP_epi",
    ):
        put(tmp_path, f"{name}.nii.gz")
        put(tmp_path, f"{name}.json", data=json.dumps({"PatientName": CANARY}).encode())
    put(
        tmp_path,
        "sub-02/dwi/sub-02_dir-AP_dwi.bval",
        "code/x.nii.gz",
        "derivatives/p/sub-01/anat/sub-01_T1w.nii.gz",
    )
    put(tmp_path, "sub-02/eeg/sub-02_task-rest_eeg.edf", "sourcedata/sub-09/anat/sub-09_T1w.nii.gz")
    return tmp_path


def test_entities_become_subject_study_and_modality(bids: Path, scan: Callable) -> None:
    found = scan("bids", bids)
    assert not found.refused
    said = {
        name.rpartition("/")[2][:-7]: (r.subject, r.study, r.modality) for name, r in found.records.items()
    }
    assert said == {
        "sub-01_ses-a_T1w": ("01", "sub-01 ses-a", Modality.MRI),
        "sub-01_ses-a_FLAIR": ("01", "sub-01 ses-a", Modality.MRI),
        "sub-01_ses-b_T1w": ("01", "sub-01 ses-b", Modality.MRI),
        "sub-01_ses-b_task-rest_bold": ("01", "sub-01 ses-b", Modality.FMRI),
        "sub-02_dir-AP_dwi": ("02", None, Modality.DMRI),
    }


def test_datatypes_and_suffixes_can_be_chosen(bids: Path, scan: Callable) -> None:
    assert list(scan("bids", bids, options={"datatypes": ["fmap"]}).records) == [
        "sub-02/fmap/sub-02_dir-AP_epi.nii.gz"
    ]
    assert len(scan("bids", bids, options={"suffixes": ["T1w"]}).records) == 2
    assert {r.modality for r in scan("bids", bids, modality="ct").records.values()} == {Modality.CT}
    with pytest.raises(ConfigError, match="unknown 'anta'; did you mean anat"):
        scan("bids", bids, options={"datatypes": ["anta"]})


def test_microscopy_ct_and_pet_are_of_their_own_modality(
    tmp_path: Path, scan: Callable, put: Callable
) -> None:
    put(tmp_path, "sub-1/micr/sub-1_sample-A_BF.png", "sub-1/micr/sub-1_sample-A_TEM.ome.tif")
    put(tmp_path, "sub-1/pet/sub-1_trc-FDG_pet.nii.gz", "sub-1/ct/sub-1_CT.nii.gz")
    modalities = {r.modality for r in scan("bids", tmp_path).records.values()}
    assert modalities == {Modality.MICROSCOPY, Modality.EM, Modality.PET, Modality.CT}


def test_phases_and_masks_among_the_images_are_left_out_and_counted(
    tmp_path: Path, scan: Callable, put: Callable, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("part-mag_bold", "part-phase_bold", "T1w", "defacemask"):
        put(tmp_path, f"sub-1/{'func' if 'bold' in name else 'anat'}/sub-1_{name}.nii.gz")
    with caplog.at_level(logging.INFO):
        assert len(scan("bids", tmp_path).records) == 2
    assert "1 of part-phase" in caplog.text and "1 masks (defacemask)" in caplog.text


def test_names_that_are_not_bids_are_refused_alone(bids: Path, scan: Callable, put: Callable) -> None:
    put(
        bids,
        "sub-02/anat/T1.nii.gz",
        "sub-02/anat/sub-01_T1w.nii.gz",
        "sub-01/ses-a/anat/sub-01_ses-b_T2w.nii.gz",
    )
    put(bids, "sub-02/anat/sub-02_T2w.nii.gz", data=b"")
    found = scan("bids", bids)
    assert len(found.records) == 5
    assert found.refused["sub-02/anat/T1.nii.gz"].startswith("T1.nii.gz: expected a name such as")
    assert "lies in sub-02" in found.refused["sub-02/anat/sub-01_T1w.nii.gz"]
    assert "lies in ses-a" in found.refused["sub-01/ses-a/anat/sub-01_ses-b_T2w.nii.gz"]
    assert "0 bytes" in found.refused["sub-02/anat/sub-02_T2w.nii.gz"]


# ---- participants.tsv

TABLE = (
    "participant_id\tage\tsex\tgroup\tsurname\tdiagnosis\tset\n"
    f"sub-01\t61\tF\tpatient\t{CANARY}\tglioma\ttraining\n"
    f"02\tn/a\tM\tcontrol\t{CANARY}\tn/a\ttest\n"
)


def test_only_harmless_columns_pass_unless_they_are_named(bids: Path, scan: Callable, put: Callable) -> None:
    put(bids, "participants.tsv", data=TABLE.encode())
    labels = {r.subject: r.labels for r in scan("bids", bids).records.values()}
    assert labels == {
        "01": {"age": 61, "sex": "F", "group": "patient"},
        "02": {"sex": "M", "group": "control"},
    }
    options = {"labels": ["diagnosis"], "label": "group", "split": "set"}
    named = {r.subject: (r.labels, r.split) for r in scan("bids", bids, options=options).records.values()}
    assert named["01"] == ({"diagnosis": "glioma", "class": "patient"}, "train")
    assert named["02"] == ({"class": "control"}, "test")


@pytest.mark.parametrize(
    "column", ["surname", "patient_name", "DateOfBirth", "participant_id", "acq_date", "MRN"]
)
def test_a_column_that_may_identify_is_refused_by_its_name(bids: Path, scan: Callable, column: str) -> None:
    with pytest.raises(ConfigError, match="may identify a person"):
        scan("bids", bids, options={"labels": [column]})


def test_columns_and_tables_that_are_missing_stop_the_scan(bids: Path, scan: Callable, put: Callable) -> None:
    with pytest.raises(
        CollectionError, match=r"participants\.tsv: missing; options name its columns diagnosis"
    ):
        scan("bids", bids, options={"labels": ["diagnosis"]})
    put(bids, "participants.tsv", data=TABLE.encode())
    with pytest.raises(CollectionError, match="no column 'diagnose'; did you mean diagnosis"):
        scan("bids", bids, options={"label": "diagnose"})
    put(bids, "participants.tsv", data=TABLE.replace("training", "trian").encode())
    with pytest.raises(CollectionError, match=r"participants\.tsv line 2: unknown split 'trian'"):
        scan("bids", bids, options={"split": "set"})


# ---- masks


def masks(scan: Callable, root: Path, **options: object) -> dict[str, str | None]:
    found = scan("bids", root, options={"masks": "derivatives/labels", **options})
    assert not found.refused
    return {name.rpartition("/")[2][:-7]: r.mask and r.mask.name[:-7] for name, r in found.records.items()}


@pytest.mark.parametrize("mask", ["sub-1_T1w_seg-manual", "sub-1_T1w_label-SC_seg", "sub-1_T1w_desc-a_mask"])
def test_a_mask_that_begins_with_the_images_name_is_its_own(
    tmp_path: Path, scan: Callable, put: Callable, mask: str
) -> None:
    put(tmp_path, "sub-1/anat/sub-1_T1w.nii.gz", "sub-1/anat/sub-1_T2w.nii.gz")
    put(
        tmp_path, f"derivatives/labels/sub-1/anat/{mask}.nii.gz", f"derivatives/labels/sub-1/anat/{mask}.json"
    )
    assert masks(scan, tmp_path) == {"sub-1_T1w": mask, "sub-1_T2w": None}


def test_a_mask_with_the_images_entities_is_its_own(tmp_path: Path, scan: Callable, put: Callable) -> None:
    put(
        tmp_path, *(f"sub-1/anat/sub-1_run-{run}_T1w.nii.gz" for run in (1, 2)), "sub-1/anat/sub-1_T1w.nii.gz"
    )
    put(tmp_path, "derivatives/labels/sub-1/anat/sub-1_run-2_desc-lesion_mask.nii.gz")
    put(tmp_path, "derivatives/labels/sub-1/anat/sub-1_run-1_space-MNI152_mask.nii.gz")  # on another grid
    assert masks(scan, tmp_path) == {
        "sub-1_run-1_T1w": None,
        "sub-1_run-2_T1w": "sub-1_run-2_desc-lesion_mask",
        "sub-1_T1w": None,
    }


def test_of_several_images_the_space_or_an_option_says_which(
    tmp_path: Path, scan: Callable, put: Callable
) -> None:
    put(tmp_path, "sub-1/anat/sub-1_T1w.nii.gz", "sub-1/anat/sub-1_FLAIR.nii.gz")
    place = "derivatives/labels/sub-1/anat/sub-1"
    put(tmp_path, f"{place}_desc-lesion_mask.nii.gz")
    refused = scan("bids", tmp_path, options={"masks": "derivatives/labels"}).refused
    assert len(refused) == 2 and all(
        "could be of FLAIR or T1w; say of which" in why for why in refused.values()
    )
    lesion = {"sub-1_T1w": None, "sub-1_FLAIR": "sub-1_desc-lesion_mask"}
    assert masks(scan, tmp_path, mask_of="FLAIR") == lesion
    (tmp_path / f"{place}_desc-lesion_mask.nii.gz").rename(tmp_path / f"{place}_space-FLAIR_mask.nii.gz")
    assert masks(scan, tmp_path)["sub-1_FLAIR"] == "sub-1_space-FLAIR_mask"


def test_of_several_masks_entities_choose(tmp_path: Path, scan: Callable, put: Callable) -> None:
    put(tmp_path, "sub-1/anat/sub-1_T1w.nii.gz")
    for label in ("GM", "WM"):
        put(tmp_path, f"derivatives/labels/sub-1/anat/sub-1_label-{label}_mask.nii.gz")
    ((_, why),) = scan("bids", tmp_path, options={"masks": "derivatives/labels"}).refused.items()
    assert (
        why
        == "its mask could be sub-1_label-GM_mask or sub-1_label-WM_mask; choose with options.mask_entities"
    )
    assert masks(scan, tmp_path, mask_entities={"label": "WM"}) == {"sub-1_T1w": "sub-1_label-WM_mask"}
    with pytest.raises(CollectionError, match=r"no such folder \(options\.masks\)"):
        scan("bids", tmp_path, options={"masks": "derivatives/none"})


# ---- as a whole


def test_the_licence_comes_from_the_description_and_a_broken_one_stops_the_scan(
    bids: Path, scan: Callable, put: Callable
) -> None:
    put(bids, "dataset_description.json", data=b'{"Name": "x", "License": "CC0"}')
    assert {r.licence for r in scan("bids", bids).records.values()} == {"CC0"}
    assert {r.licence for r in scan("bids", bids, licence="PDDL").records.values()} == {"PDDL"}
    put(bids, "dataset_description.json", data=b"{")
    with pytest.raises(CollectionError, match=r"dataset_description\.json: cannot be read as JSON"):
        scan("bids", bids)


def test_a_folder_without_subjects_stops_the_scan(tmp_path: Path, scan: Callable) -> None:
    with pytest.raises(CollectionError, match=r"no folder sub-\*; layout bids expects"):
        scan("bids", tmp_path)


def test_nothing_of_sidecars_tables_or_names_reaches_the_shards(
    tmp_path: Path, put: Callable, scan: Callable
) -> None:
    from medloom.data.collection import Collection, SourceConfig, source_of_config
    from medloom.data.ingest.build import build

    root, out = tmp_path / "bids", tmp_path / "out"
    for subject in ("CANARYsub", "02"):
        stem = f"sub-{subject}/ses-CANARYses/anat/sub-{subject}_ses-CANARYses_T1w"
        put(
            root, f"{stem}.json", data=json.dumps({"PatientName": CANARY, "AcquisitionTime": CANARY}).encode()
        )
        array = RNG.integers(0, 900, (6, 7, 8)).astype(np.int16)
        nib.save(nib.Nifti1Image(array, np.eye(4)), root / f"{stem}.nii.gz")
    put(root, "participants.tsv", data=f"participant_id\tage\tname\nsub-02\t40\t{CANARY}\n".encode())
    put(root, "sub-02/ses-CANARYses/sub-02_ses-CANARYses_scans.tsv", data=CANARY.encode())
    put(root, "dataset_description.json", data=json.dumps({"Authors": [CANARY], "License": "CC0"}).encode())
    source = source_of_config(SourceConfig(dataset="d", layout="bids", root=str(root)), Path("/"), "s")
    result = build(Collection("all", root, (source,), (), "a salt of sixteen characters"), out)
    assert (result.manifest.count, result.failures) == (2, [])
    assert not [path for path in out.rglob("*") if path.is_file() and b"CANARY" in path.read_bytes()]


def test_the_real_spine_in_bids_has_its_masks(realdata: Path, tmp_path: Path, stored: Callable) -> None:
    source = realdata / "mr_spine_sct"
    for number, (image, mask) in enumerate((("t1w", "t1w_seg-manual"), ("t2", "t2_seg-manual")), 1):
        place = tmp_path / f"sub-{number}/anat/sub-{number}_{image.upper()}.nii.gz"
        label = (
            tmp_path / f"derivatives/labels/sub-{number}/anat/sub-{number}_{image.upper()}_seg-manual.nii.gz"
        )
        for path, target in (
            (place, source / f"images/{image}.nii.gz"),
            (label, source / f"masks/{mask}.nii.gz"),
        ):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.symlink_to(target)
    samples = stored("bids", tmp_path, options={"masks": "derivatives/labels"}, mask_values="nonzero")
    assert [sample.meta["mask"]["present"] for sample in samples] == [[1], [1]]
