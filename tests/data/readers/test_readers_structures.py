"""DICOM SEG, RTSTRUCT and .seg.nrrd: each voxel as independent readers and plain geometry say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
import pytest
from matplotlib.path import Path as Outline
from medloom.data.errors import ReadError
from medloom.data.readers import read, read_named_label_map
from medloom.data.readers.anatomy import allowed
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import RTStructureSetStorage, generate_uid

AXIAL = (1.0, 0, 0, 0, 1, 0)
FEET_FIRST = (-1.0, 0, 0, 0, 1, 0)  # normal points to the feet
SAGITTAL = (0.0, 1, 0, 0, 0, -1)
OBLIQUE = tuple(
    np.linalg.qr(np.array([[0.9, 0.1, 0.3], [0.2, 0.8, 0.1], [0.1, 0.3, 0.9]]))[0][:, :2].T.ravel()
)
TURNS = pytest.mark.parametrize(
    "turn", [AXIAL, FEET_FIRST, SAGITTAL, OBLIQUE], ids=["axial", "feet", "sagittal", "oblique"]
)
SHAPE = (6, 40, 50)
GAP, DOWN, ACROSS = 2.5, 0.7, 1.1  # of the fixture `series`
ORIGIN = np.array([-10.0, 20, 30])


def balls() -> tuple[np.ndarray, np.ndarray]:
    z, y, x = np.indices(SHAPE)
    first = ((z - 2) / 2.4) ** 2 + ((y - 15) / 9) ** 2 + ((x - 20) / 12) ** 2 < 1
    second = ((z - 4) / 1.5) ** 2 + ((y - 30) / 6) ** 2 + ((x - 38) / 8) ** 2 < 1
    return first, second & ~first


def places(turn, index: np.ndarray) -> np.ndarray:
    """LPS mm of (slice, row, column) of the fixture's series."""
    columns, rows = np.array(turn[:3]), np.array(turn[3:])
    steps = np.array([np.cross(columns, rows) * GAP, rows * DOWN, columns * ACROSS])
    return ORIGIN + np.asarray(index) @ steps


def in_series(image, labels: np.ndarray, turn) -> np.ndarray:
    """Labels on the image's grid, looked up at the centre of each voxel of the series [D, H, W]."""
    index = np.indices(SHAPE).reshape(3, -1).T
    ras = places(turn, index) * [-1, -1, 1]
    found = np.linalg.inv(image.affine) @ np.vstack([ras.T, np.ones(len(ras))])
    d, h, w = np.rint(found[:3]).astype(int)
    return labels[d, h, w].reshape(SHAPE)


@pytest.fixture
def drawn(tmp_path: Path, series, volume):
    """The paths of a series in a given orientation, and its image."""

    def make_one(turn=AXIAL):
        paths = series(tmp_path / "series", volume(SHAPE), orientation=turn,
                       FrameOfReferenceUID=generate_uid(entropy_srcs=["frame"]), StudyID="1",
                       PatientBirthDate="", PatientSex="", StudyDate="", StudyTime="", AccessionNumber="",
                       ReferringPhysicianName="", SeriesNumber=1)  # fmt: skip
        (image,) = read(paths)
        return paths, image

    return make_one


# ---- DICOM SEG, written by highdicom


def write_seg(
    path: Path, paths: list[Path], masks: list[np.ndarray], kind: str = "BINARY", **options
) -> Path:
    hd = pytest.importorskip("highdicom", reason="writes the segmentations; pip install 'medloom[formats]'")
    from pydicom.sr.codedict import codes

    sources = [pydicom.dcmread(p) for p in paths]
    sources.sort(key=lambda d: np.dot(np.cross(*np.reshape(d.ImageOrientationPatient, (2, 3)).astype(float)),
                                      np.array(d.ImagePositionPatient, float)))  # fmt: skip
    labels = ["Liver", "Tumour of Mustermann", "Left kidney"][: len(masks)]
    types = [codes.SCT.Liver, codes.SCT.Neoplasm, codes.SCT.Kidney]
    descriptions = [
        hd.seg.SegmentDescription(
            segment_number=number + 1, segment_label=label, segmented_property_category=codes.SCT.Organ,
            segmented_property_type=types[number], algorithm_type=hd.seg.SegmentAlgorithmTypeValues.MANUAL,
        )
        for number, label in enumerate(labels)
    ]  # fmt: skip
    stacked = np.stack(masks, axis=-1)
    if kind == "LABELMAP":
        stacked = sum((number + 1) * mask.astype(np.uint8) for number, mask in enumerate(masks))
    seg = hd.seg.Segmentation(
        source_images=sources, pixel_array=stacked if kind != "BINARY" else stacked.astype(np.uint8),
        segmentation_type=hd.seg.SegmentationTypeValues[kind], segment_descriptions=descriptions,
        series_instance_uid=generate_uid(), series_number=2, sop_instance_uid=generate_uid(),
        instance_number=1,
        manufacturer="x", manufacturer_model_name="x", software_versions="x", device_serial_number="x",
        **options,
    )  # fmt: skip
    seg.save_as(path)
    return path


@TURNS
@pytest.mark.parametrize("kind", ["BINARY", "LABELMAP"])
def test_segments_lie_where_they_were_drawn(tmp_path: Path, drawn, turn, kind: str) -> None:
    paths, image = drawn(turn)
    first, second = balls()
    path = write_seg(tmp_path / "seg.dcm", paths, [first, second], kind)
    labels, names = read_named_label_map(path, image)
    assert labels.dtype == np.uint8 and labels.shape == image.array.shape[1:]
    assert np.array_equal(in_series(image, labels, turn), first + 2 * second)
    assert names == {1: "liver", 2: "neoplasm"}  # the label that names a person stays, the code does not


def test_highdicom_reads_the_same_segments(tmp_path: Path, drawn) -> None:
    hd = pytest.importorskip("highdicom", reason="the independent reader; pip install 'medloom[formats]'")
    paths, image = drawn(AXIAL)
    path = write_seg(tmp_path / "seg.dcm", paths, list(balls()))
    labels, _ = read_named_label_map(path, image)
    oracle = hd.seg.segread(path).get_volume(combine_segments=True)
    for index in np.argwhere(oracle.array)[::37]:
        lps = oracle.map_indices_to_reference(index[None])[0]
        d, h, w = np.rint(np.linalg.inv(image.affine) @ [-lps[0], -lps[1], lps[2], 1])[:3].astype(int)
        assert labels[d, h, w] == oracle.array[tuple(index)]
    assert np.count_nonzero(labels) == np.count_nonzero(oracle.array)


def test_fractions_count_from_a_half(tmp_path: Path, drawn) -> None:
    paths, image = drawn(AXIAL)
    fraction = np.zeros(SHAPE)
    fraction[2, 5:9, 5:9], fraction[3, 5:9, 5:9] = 0.45, 0.55
    path = write_seg(tmp_path / "seg.dcm", paths, [fraction], "FRACTIONAL", max_fractional_value=200)
    labels, _ = read_named_label_map(path, image)
    assert np.array_equal(in_series(image, labels, AXIAL), fraction > 0.5)


def test_overlaps_are_explained_or_decided_by_the_declared_classes(tmp_path: Path, drawn) -> None:
    paths, image = drawn(AXIAL)
    organ, _ = balls()
    lesion = organ & (np.indices(SHAPE)[2] > 24)
    path = write_seg(tmp_path / "seg.dcm", paths, [organ, lesion])
    with pytest.raises(
        ReadError, match=rf"'liver' and 'neoplasm' overlap in {lesion.sum()} voxels"
    ) as caught:
        read_named_label_map(path, image)
    assert "Mustermann" not in str(caught.value)
    for classes, expected in (
        ({1: "liver", 2: "Neoplasm"}, 1 * organ + lesion),
        ({2: "liver", 1: "neoplasm"}, 2 * organ),
        ({5: "liver"}, 5 * organ),
        ({1: "spleen", 7: "neoplasm"}, 7 * lesion),
    ):
        labels, names = read_named_label_map(path, image, classes=classes)
        assert np.array_equal(in_series(image, labels, AXIAL), expected) and names == classes
    with pytest.raises(
        ReadError, match=r"none of its 2 structures \('liver', 'neoplasm'\) is in mask_classes"
    ):
        read_named_label_map(path, image, classes={1: "spleen"})
    labels, _ = read_named_label_map(path, image, values={1: 0, 2: 3})
    assert np.array_equal(in_series(image, labels, AXIAL), 3 * lesion)
    labels, _ = read_named_label_map(path, image, values="nonzero")
    assert np.array_equal(in_series(image, labels, AXIAL), organ)
    with pytest.raises(ReadError, match="not in mask_values"):
        read_named_label_map(path, image, values={1: 1})


def test_a_segmentation_of_another_series_is_refused(tmp_path: Path, drawn) -> None:
    paths, image = drawn(AXIAL)
    path = write_seg(tmp_path / "seg.dcm", paths, list(balls()))
    for shift, reason in ((1.2, "off the image's grid"), (250.0, "reaches beyond the image")):
        image.affine = image.affine.copy()
        image.affine[:3, 3] += [0, 0, shift]
        with pytest.raises(ReadError, match=rf"seg\.dcm: frame \d+ is not on the image's grid: .*{reason}"):
            read_named_label_map(path, image)
        image.affine[:3, 3] -= [0, 0, shift]
    image.affine = image.affine @ np.diag([1, 2.0, 1, 1])
    with pytest.raises(ReadError, match="another size or direction"):
        read_named_label_map(path, image)


# ---- RTSTRUCT


def write_rtstruct(path: Path, regions: dict[str, list[tuple[str, np.ndarray]]]) -> Path:
    """Regions of contours (type, points [N, 3] in LPS mm)."""
    from pydicom.dataset import FileDataset, FileMetaDataset

    meta = FileMetaDataset()
    meta.TransferSyntaxUID = "1.2.840.10008.1.2.1"
    meta.MediaStorageSOPClassUID = RTStructureSetStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    dataset = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.SOPClassUID, dataset.SOPInstanceUID = RTStructureSetStorage, meta.MediaStorageSOPInstanceUID
    dataset.Modality, dataset.PatientID = "RTSTRUCT", "P-17"
    names, contours = [], []
    for number, (name, outlines) in enumerate(regions.items(), 1):
        item, region = Dataset(), Dataset()
        item.ROINumber, item.ROIName = number, name
        region.ReferencedROINumber = number
        region.ContourSequence = Sequence()
        for kind, points in outlines:
            contour = Dataset()
            contour.ContourGeometricType, contour.NumberOfContourPoints = kind, len(points)
            contour.ContourData = [f"{value:.4f}" for value in np.asarray(points).ravel()]
            region.ContourSequence.append(contour)
        names.append(item), contours.append(region)
    dataset.StructureSetROISequence, dataset.ROIContourSequence = Sequence(names), Sequence(contours)
    dataset.save_as(path, enforce_file_format=True)
    return path


def ring(row: float, column: float, radius: float, count: int = 40) -> np.ndarray:
    angle = np.linspace(0, 2 * np.pi, count, endpoint=False) + 0.05
    return np.column_stack([row + radius * np.sin(angle), column + radius * 1.2 * np.cos(angle)])


def on_slice(turn, slice_: float, outline: np.ndarray) -> np.ndarray:
    return places(turn, np.column_stack([np.full(len(outline), slice_), outline]))


def inside(outline: np.ndarray) -> np.ndarray:
    """Centres of pixels [H, W] in an outline, by matplotlib."""
    rows, columns = np.indices(SHAPE[1:])
    return (
        Outline(outline).contains_points(np.column_stack([rows.ravel(), columns.ravel()])).reshape(SHAPE[1:])
    )


@TURNS
def test_contours_are_filled_where_they_lie(tmp_path: Path, drawn, turn) -> None:
    _, image = drawn(turn)
    rings = {1: ring(15.2, 20.1, 9.3), 2: ring(16.4, 21.7, 11.1), 3: ring(15.1, 22.2, 6.2)}
    path = write_rtstruct(tmp_path / "rt.dcm", {
        "Liver": [("CLOSED_PLANAR", on_slice(turn, number, outline)) for number, outline in rings.items()],
    })  # fmt: skip
    expected = np.zeros(SHAPE, bool)
    for number, outline in rings.items():
        expected[number] = inside(outline)
    labels, names = read_named_label_map(path, image)
    assert expected.sum() > 500 and names == {1: "liver"}
    assert np.array_equal(in_series(image, labels, turn), expected)


def test_holes_islands_keyholes_and_xor(tmp_path: Path, drawn) -> None:
    _, image = drawn(AXIAL)
    outer, hole, island, beside = ring(20, 25, 15), ring(20, 25, 10), ring(20, 25, 4), ring(20, 34, 15)
    inner = hole[::-1]
    keyhole = np.vstack([outer, outer[:1], inner, inner[:1]])
    solid, empty, middle = inside(outer), inside(hole), inside(island)
    cases = {
        "nested": ([island, outer, hole], "CLOSED_PLANAR", (solid & ~empty) | middle),
        "keyhole": ([keyhole], "CLOSED_PLANAR", solid & ~empty),
        "overlapping": ([outer, beside], "CLOSED_PLANAR", solid | inside(beside)),
        "xor": ([outer, beside], "CLOSEDPLANAR_XOR", solid ^ inside(beside)),
    }
    for name, (outlines, kind, expected) in cases.items():
        path = write_rtstruct(tmp_path / f"{name}.dcm", {
            "Body": [(kind, on_slice(AXIAL, 3, outline)) for outline in outlines]
        })  # fmt: skip
        labels, _ = read_named_label_map(path, image)
        found = in_series(image, labels, AXIAL)[3].astype(bool)
        # A centre on the edge of a keyhole may fall on either side.
        assert np.count_nonzero(found ^ expected) <= (2 if name == "keyhole" else 0), name
        assert np.count_nonzero(labels) == np.count_nonzero(found)


def test_regions_go_by_declared_name_and_others_stay(tmp_path: Path, drawn) -> None:
    _, image = drawn(AXIAL)
    path = write_rtstruct(tmp_path / "rt.dcm", {
        "BODY Mustermann": [("CLOSED_PLANAR", on_slice(AXIAL, 2, ring(20, 25, 18)))],
        "Kidney_L": [("CLOSED_PLANAR", on_slice(AXIAL, 2, ring(20, 25, 8)))],
        "Iso": [("POINT", places(AXIAL, [[2, 20, 25]]))],
        "Mustermann": [],
    })  # fmt: skip
    labels, names = read_named_label_map(path, image, classes={3: "kidney l", 4: "spleen"})
    assert np.array_equal(in_series(image, labels, AXIAL)[2], 3 * inside(ring(20, 25, 8)))
    assert names == {3: "kidney l", 4: "spleen"}
    with pytest.raises(ReadError, match=r"number 1 and 'kidney l' overlap") as caught:
        read_named_label_map(path, image)
    assert "Mustermann" not in str(caught.value)


def test_contours_of_another_series_are_refused(tmp_path: Path, drawn) -> None:
    _, image = drawn(AXIAL)
    outline = ring(20, 25, 8)
    tilted = np.column_stack([2 + outline[:, 0] / 20, outline])
    for points, reason in (
        (on_slice(AXIAL, 2.4, outline), r"0\.40 of a slice off the nearest"),
        (on_slice(AXIAL, 9, outline), "outside of the image"),
        (places(AXIAL, tilted), "oblique to the image's axes"),
    ):
        path = write_rtstruct(tmp_path / "rt.dcm", {"Liver": [("CLOSED_PLANAR", points)]})
        with pytest.raises(ReadError, match=rf"rt\.dcm: region 1 has a contour .*{reason}"):
            read_named_label_map(path, image)
    path = write_rtstruct(tmp_path / "rt.dcm", {"Liver": [("POINT", places(AXIAL, [[2, 20, 25]]))]})
    with pytest.raises(ReadError, match="a RTSTRUCT without a closed structure"):
        read_named_label_map(path, image)


def test_damaged_objects_are_refused(tmp_path: Path, drawn) -> None:
    paths, image = drawn(AXIAL)
    for path in (
        write_seg(tmp_path / "seg.dcm", paths, list(balls())),
        write_rtstruct(
            tmp_path / "rt.dcm", {"Liver": [("CLOSED_PLANAR", on_slice(AXIAL, 2, ring(20, 25, 8)))]}
        ),
    ):
        data = path.read_bytes()
        path.write_bytes(data[: int(len(data) * 0.6)])
        with pytest.raises(ReadError, match=path.name):
            read_named_label_map(path, image)


# ---- 3D Slicer


def write_slicer(path: Path, layers: np.ndarray, segments: list[tuple[str, int, int]], origin) -> Path:
    """A .seg.nrrd of the axial series: layers [L, D, H, W], segments (name, layer, value)."""
    sitk = pytest.importorskip("SimpleITK", reason="writes the file; pip install 'medloom[formats]'")
    image = sitk.GetImageFromArray(np.moveaxis(layers, 0, -1) if len(layers) > 1 else layers[0],
                                   isVector=len(layers) > 1)  # fmt: skip
    image.SetSpacing((ACROSS, DOWN, GAP))
    image.SetOrigin(tuple(map(float, origin)))
    for number, (name, layer, value) in enumerate(segments):
        for key, word in (
            ("ID", f"Segment_{number}"),
            ("Name", name),
            ("Layer", layer),
            ("LabelValue", value),
        ):
            image.SetMetaData(f"Segment{number}_{key}", str(word))
    sitk.WriteImage(image, str(path), True)
    return path


def test_segments_of_slicer_with_layers_and_names(tmp_path: Path, drawn) -> None:
    _, image = drawn(AXIAL)
    first, second = balls()
    whole = np.stack([first + 2 * second, 1 * (first & (np.indices(SHAPE)[2] > 24))]).astype(np.uint8)
    one = write_slicer(tmp_path / "one.seg.nrrd", whole[:1], [("Liver", 0, 1), ("Erika", 0, 2)], ORIGIN)
    labels, names = read_named_label_map(one, image)
    assert np.array_equal(in_series(image, labels, AXIAL), whole[0]) and names == {1: "liver"}
    segments = [("liver", 0, 1), ("spleen", 0, 2), ("liver tumour", 1, 1)]
    two = write_slicer(tmp_path / "two.seg.nrrd", whole, segments, ORIGIN)
    with pytest.raises(ReadError, match="'liver' and 'liver tumour' overlap"):
        read_named_label_map(two, image)
    labels, _ = read_named_label_map(two, image, classes={1: "liver", 2: "liver tumour"})
    assert np.array_equal(in_series(image, labels, AXIAL), first + whole[1])


def test_segments_cut_to_their_box_go_back_to_their_place(tmp_path: Path, drawn) -> None:
    _, image = drawn(AXIAL)
    first, _ = balls()
    d, h, w = (slice(int(i.min()), int(i.max()) + 1) for i in np.nonzero(first))
    origin = places(AXIAL, [[d.start, h.start, w.start]])[0]
    layers = first[None, d, h, w].astype(np.uint8)
    path = write_slicer(tmp_path / "a.seg.nrrd", layers, [("liver", 0, 1)], origin)
    labels, _ = read_named_label_map(path, image)
    assert np.array_equal(in_series(image, labels, AXIAL), first)
    off = write_slicer(tmp_path / "b.seg.nrrd", layers, [("liver", 0, 1)], origin + np.array([0.4, 0, 0]))
    with pytest.raises(ReadError, match=r"b\.seg\.nrrd: not on the image's grid"):
        read_named_label_map(off, image)


@pytest.mark.parametrize(
    ("name", "leaves"),
    [("kidney_left", "kidney left"), ("vertebrae_L1", "vertebrae l1"), ("Lt Lung", "lt lung"),
     ("GTVp2", "gtvp2"), ("leftKidney", "left kidney"),
     ("Segment_3", "segment 3"), ("GTV Mustermann", None), ("Erika", None),
     ("liver 1961 03 12", None), ("liver 12 03", None), ("17", None), ("", None), ("лёгкое", None)],
)  # fmt: skip
def test_names_leave_when_they_are_made_of_anatomy(name: str, leaves: str | None) -> None:
    assert allowed(name) == leaves
