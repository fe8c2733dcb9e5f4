"""Files with a canary in every place that can hold text: DICOM attributes, headers, tags, comments, names."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import tifffile
from PIL import Image as Pillow
from PIL import PngImagePlugin
from pydicom import uid
from pydicom.datadict import DicomDictionary, RepeatersDictionary
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.tag import Tag

from .canary_search import CANARY, DATE, NUMBER

# What the picture itself is made of; the forms below put canaries here too, one at a time.
NEEDED = frozenset({
    "SOPClassUID", "Modality", "ImageType", "SeriesInstanceUID", "SOPInstanceUID", "SpecificCharacterSet",
    "PixelSpacing", "ImagePositionPatient", "ImageOrientationPatient", "InstanceNumber", "NumberOfFrames",
    "PhotometricInterpretation", "RescaleSlope", "RescaleIntercept", "SliceThickness", "SpacingBetweenSlices",
    "PixelData", "FloatPixelData", "DoubleFloatPixelData", "BurnedInAnnotation", "PixelDataProviderURL",
    # sequences that the reader follows
    "PerFrameFunctionalGroupsSequence", "SharedFunctionalGroupsSequence", "ModalityLUTSequence",
})  # fmt: skip
WORDS = {
    "AE": 16, "CS": 16, "SH": 16, "LO": 64, "PN": 64, "LT": 900, "ST": 900, "UT": 900, "UC": 900, "UR": 900,
}  # fmt: skip


def text(tag: int, vr: str) -> object:
    """A canary that fits in an attribute, None when it holds numbers only."""
    where = f"{CANARY}{tag:08X}"
    if vr in WORDS:
        return where[: WORDS[vr]]
    fixed = {"UI": f"1.2.{NUMBER}.{tag}", "DA": DATE, "DT": f"{DATE}120000", "TM": "120000", "AS": "077Y"}
    if vr in fixed:
        return fixed[vr]
    if vr in ("DS", "IS"):
        return NUMBER
    if vr in ("OB", "OW", "UN", "OB or OW", "OL", "OD", "OF", "OV"):
        return (where * 2).encode()
    return None


def put(dataset: Dataset, tag: int, vr: str, depth: int = 0) -> None:
    """Add an attribute with a canary; a sequence holds items with canaries, two levels down."""
    if vr == "SQ":
        value: object = Sequence([_item(tag, depth)]) if depth < 2 else None
    else:
        value = text(tag, vr)
    if value is not None:
        dataset[tag] = DataElement(tag, "OB" if vr == "OB or OW" else vr, value)


def _item(tag: int, depth: int) -> Dataset:
    item = Dataset()
    inner = (
        (0x00100010, "PN"), (0x00080050, "SH"), (0x00080104, "LO"), (0x0040A123, "PN"), (0x0040A160, "UT"),
        (0x00081155, "UI"), (0x00400275, "SQ"), (0x00081115, "SQ"),
    )  # fmt: skip
    for inner_tag, vr in inner:
        put(item, inner_tag, vr, depth + 1)
    return item


def fill(dataset: Dataset) -> int:
    """Put a canary in every attribute of pydicom's dictionary that can hold one; returns how many."""
    for tag, (vr, _, _, _, keyword) in DicomDictionary.items():
        if tag >> 16 > 2 and keyword not in NEEDED and tag not in dataset:
            put(dataset, tag, vr)
    for mask, (vr, _, _, _, _) in RepeatersDictionary.items():
        if mask.startswith(("50", "60", "0020", "7F")):  # curves, overlays, source images, variable pixels
            for number in ("00", "02", "1E"):
                put(dataset, int(mask.replace("xx", number).replace("x", "1"), 16), vr)
    for group in (0x0009, 0x0029, 0x2001, 0x7FE1):
        block = dataset.private_block(group, f"{CANARY} CREATOR", create=True)
        for offset, vr in enumerate(("LO", "PN", "UN", "OB", "UT", "SQ", "DA", "UI")):
            value = Sequence([_item(group, 1)]) if vr == "SQ" else text(group, vr)
            block.add_new(offset, vr, value)
    return len(list(dataset.iterall()))


def dicom(pixels: np.ndarray, number: int = 0, *, series: str = "1", full: bool = True) -> FileDataset:
    """A CT slice [H, W] (or a colour loop [F, H, W, 3] of ultrasound) full of canaries."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = uid.CTImageStorage
    meta.MediaStorageSOPInstanceUID = f"1.2.{NUMBER}.{series}.{number + 1}"
    for name in ("SourceApplicationEntityTitle", "SendingApplicationEntityTitle", "ImplementationVersionName",
                 "ReceivingApplicationEntityTitle"):  # fmt: skip
        setattr(meta, name, f"{CANARY}META")
    meta.PrivateInformationCreatorUID = f"1.2.{NUMBER}.9"
    meta.PrivateInformation = f"{CANARY} in the meta header".encode()
    preamble = (CANARY * 16).encode()
    dataset = FileDataset("", {}, file_meta=meta, preamble=preamble)
    dataset.SpecificCharacterSet = "ISO_IR 192"
    dataset.SOPClassUID, dataset.SOPInstanceUID = uid.CTImageStorage, meta.MediaStorageSOPInstanceUID
    dataset.SeriesInstanceUID, dataset.Modality = f"1.2.{NUMBER}.{series}", "CT"
    dataset.ImageType = ["ORIGINAL", "PRIMARY", f"{CANARY}TYPE"]
    colour = pixels.ndim > 2
    dataset.Rows, dataset.Columns = pixels.shape[-3:-1] if colour else pixels.shape
    dataset.SamplesPerPixel = 3 if colour else 1
    dataset.PhotometricInterpretation = "RGB" if colour else "MONOCHROME2"
    if colour:
        dataset.NumberOfFrames, dataset.PlanarConfiguration, dataset.Modality = len(pixels), 0, "US"
    else:
        dataset.ImageOrientationPatient, dataset.PixelSpacing = [1, 0, 0, 0, 1, 0], [1, 1]
        dataset.ImagePositionPatient, dataset.SliceThickness = [0, 0, 2 * number], 2
    dataset.InstanceNumber = number + 1
    dataset.BitsAllocated = dataset.BitsStored = 8 * pixels.dtype.itemsize
    dataset.HighBit, dataset.PixelRepresentation = dataset.BitsStored - 1, 0
    dataset.PixelData = pixels.tobytes()
    if full:
        fill(dataset)
    return dataset


def write_dicom(path: Path, dataset: FileDataset) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pydicom.dcmwrite(path, dataset, enforce_file_format=True)


def write_dicom_tree(root: Path) -> int:
    """A series, a loop, and one file for every needed attribute with a canary in it; returns attributes."""
    generator = np.random.default_rng(0)
    patient = root / f"{CANARY}^Erika"
    volume = generator.integers(0, 2000, (4, 24, 20)).astype(np.uint16)
    filled = 0
    for number, pixels in enumerate(volume):
        dataset = dicom(pixels, number)
        filled = len(list(dataset.iterall()))
        write_dicom(patient / f"IM.{CANARY}{number}.dcm", dataset)
    loop = generator.integers(0, 255, (2, 24, 20, 3)).astype(np.uint8)
    write_dicom(patient / f"{CANARY}-loop.dcm", dicom(loop, series="2"))
    for number, keyword in enumerate(sorted(NEEDED - {"PixelData", "SOPInstanceUID", "SeriesInstanceUID"})):
        dataset = dicom(volume[0], series=str(100 + number), full=False)
        dataset.PatientID = f"{CANARY}ID"
        tag = Tag(keyword)
        word = f"{CANARY}{keyword}"[:60]
        kind = "SQ" if keyword.endswith("Sequence") else "OF" if keyword.endswith("PixelData") else "LO"
        value = {"SQ": Sequence([_item(tag, 0)]), "OF": (word * 8).encode()[:64]}.get(kind, word)
        dataset[tag] = DataElement(tag, kind, value)
        write_dicom(patient / f"{CANARY}-{keyword}.dcm", dataset)
    burned = dicom(volume[0], series="98", full=False)
    burned.PatientID, burned.BurnedInAnnotation = f"{CANARY}ID", "YES"
    write_dicom(patient / f"{CANARY}-burned.dcm", burned)
    report = dicom(volume[0], series="99", full=False)
    report.Modality, report.Rows, report.PatientID = f"{CANARY}SR", 0, CANARY
    write_dicom(patient / f"{CANARY}-report.dcm", report)
    whole = (patient / f"IM.{CANARY}0.dcm").read_bytes()
    for share in (0.3, 0.97):
        (patient / f"{CANARY}-cut{share}.dcm").write_bytes(whole[: int(len(whole) * share)])
    (patient / f"notes.{CANARY}").write_text(CANARY)
    return filled


def write_nifti(root: Path) -> None:
    """Volumes with text in every field and extension, a pair, a mask, and damaged ones; their table."""
    root.mkdir(parents=True)
    generator = np.random.default_rng(1)
    rows = ["path,mask,subject,split"]
    for number in range(3):
        kind = nibabel.Nifti1Pair if number == 2 else nibabel.Nifti1Image
        picture = kind(generator.integers(0, 900, (20, 22, 24)).astype(np.int16), np.eye(4))
        for field in ("descrip", "aux_file", "db_name", "intent_name", "data_type"):
            picture.header[field] = f"{CANARY}{field}"[: picture.header[field].dtype.itemsize].encode()
        for code in ("comment", "dicom", "xcede"):
            extension = nibabel.nifti1.Nifti1Extension(
                nibabel.nifti1.extension_codes.code[code], CANARY.encode()
            )
            if code != "dicom":
                picture.header.extensions.append(extension)
        name = f"{CANARY}_{number}.{'hdr' if number == 2 else 'nii.gz'}"
        nibabel.save(picture, root / name)
        label = nibabel.Nifti1Image((np.asarray(picture.dataobj) > 500).astype(np.uint8), np.eye(4))
        label.header["descrip"] = CANARY.encode()
        nibabel.save(label, root / f"{CANARY}_{number}_seg.nii.gz")
        rows.append(f"{name},{CANARY}_{number}_seg.nii.gz,{CANARY}{number},train")
    whole = (root / f"{CANARY}_0.nii.gz").read_bytes()
    (root / f"{CANARY}_cut.nii.gz").write_bytes(whole[: len(whole) // 2])
    rows.append(f"{CANARY}_cut.nii.gz,,{CANARY}9,train")
    rows.append(f"{CANARY}_missing.nii.gz,,{CANARY}8,train")
    (root / "manifest.csv").write_text("\n".join(rows) + "\n")


def write_pictures(root: Path) -> None:
    """Pictures with text in every tag, chunk and segment, whole and cut, in folders that are labels."""
    (root / "nevus").mkdir(parents=True)
    (root / f"{CANARY}label").mkdir()  # a folder that is not a declared class
    generator = np.random.default_rng(2)
    for name, make in PICTURES.items():
        pixels = generator.integers(0, 255, (48, 40, 3), np.uint8)
        data = make(pixels)
        assert CANARY.encode() in data or zlib_holds(data), name
        (root / "nevus" / f"{CANARY}-{name}").write_bytes(data)
        (root / "nevus" / f"{CANARY}-cut-{name}").write_bytes(data[: len(data) * 2 // 3])
    (root / f"{CANARY}label" / f"{CANARY}.png").write_bytes(
        _png(generator.integers(0, 9, (9, 9, 3), np.uint8))
    )
    (root / f"notes.{CANARY}").write_text(CANARY)


def zlib_holds(data: bytes) -> bool:
    """Whether a stream of zlib in `data` holds the canary."""
    places = (
        place for place in range(len(data) - 2) if data[place : place + 2] in (b"\x78\x9c", b"\x78\xda")
    )
    return any(CANARY.encode() in zlib.decompressobj().decompress(data[place:]) for place in places)


def _exif() -> Pillow.Exif:
    exif = Pillow.Exif()
    for tag in (0x010E, 0x010F, 0x0110, 0x0131, 0x013B, 0x013C, 0x8298, 0x9C9C):
        exif[tag] = f"{CANARY}{tag:04X}"
    exif.get_ifd(0x8769)[0x9286] = f"{CANARY}comment".encode()
    exif.get_ifd(0x8825)[0x001D] = f"{CANARY}gps"
    return exif


def _saved(pixels: np.ndarray, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    Pillow.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def _jpeg(pixels: np.ndarray, **options: object) -> bytes:
    note = f"{CANARY}".encode()
    data = _saved(pixels, "JPEG", exif=_exif(), comment=note, icc_profile=note * 9, xmp=note * 3, **options)
    # IPTC, a maker's segment and a reserved one, then bytes after the end.
    extra = b"".join(
        struct.pack(">BBH", 0xFF, marker, 2 + len(body)) + body
        for marker, body in ((0xED, b"Photoshop 3.0\0" + note), (0xE9, note))
    )
    return data[:2] + extra + data[2:] + note


def _png(pixels: np.ndarray) -> bytes:
    info = PngImagePlugin.PngInfo()
    info.add_text("Author", f"{CANARY}tEXt")
    info.add_text("Comment", f"{CANARY}zTXt" * 20, zip=True)
    info.add_itxt("Description", f"{CANARY}iTXt", lang="en", tkey=CANARY)
    info.add_itxt("XML:com.adobe.xmp", f"{CANARY}xmp" * 20, zip=True)
    return _saved(pixels, "PNG", pnginfo=info, exif=_exif(), icc_profile=CANARY.encode() * 9)


def _tiff(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    tags = [
        (tag, "s", 0, f"{CANARY}{tag}", True) for tag in (269, 271, 272, 285, 315, 316, 337, 33432, 65000)
    ]
    tags += [(tag, "B", len(CANARY), CANARY.encode(), True) for tag in (700, 33723, 34377, 34675, 50839)]
    tifffile.imwrite(
        buffer, pixels, photometric="rgb", description=f"{CANARY}description", software=f"{CANARY}software",
        datetime="1918:11:27 00:00:00", extratags=tags, metadata=None,
    )  # fmt: skip
    return buffer.getvalue()


def _gif(pixels: np.ndarray) -> bytes:
    return _saved(pixels, "GIF", comment=CANARY.encode())


def _webp(pixels: np.ndarray) -> bytes:
    note = CANARY.encode()
    return _saved(pixels, "WEBP", lossless=True, exif=_exif(), xmp=note, icc_profile=note * 9)


def _pnm(pixels: np.ndarray) -> bytes:
    height, width = pixels.shape[:2]
    return f"P6\n# {CANARY}\n{width} {height}\n255\n".encode() + pixels.tobytes()


PICTURES: dict[str, Callable[[np.ndarray], bytes]] = {
    "a.jpg": _jpeg,
    "b.jpg": lambda pixels: _jpeg(pixels, progressive=True),
    "c.png": _png,
    "d.tif": _tiff,
    "e.gif": _gif,
    "f.webp": _webp,
    "g.ppm": _pnm,
}


def write_volumes(root: Path) -> None:
    """MetaImage and NRRD with free fields."""
    root.mkdir(parents=True)
    voxels = np.random.default_rng(3).integers(0, 900, (12, 14, 16)).astype("<i2")
    meta = (
        f"ObjectType = Image\nComment = {CANARY}\nPatientName = {CANARY}\nNDims = 3\nDimSize = 16 14 12\n"
        "ElementSpacing = 1 1 2\nTransformMatrix = 1 0 0 0 1 0 0 0 1\nOffset = 0 0 0\nElementType = "
        "MET_SHORT\nBinaryDataByteOrderMSB = False\nElementDataFile = LOCAL\n"
    )
    (root / f"{CANARY}.mha").write_bytes(meta.encode() + voxels.tobytes())
    nrrd = (
        f"NRRD0004\n# {CANARY}\ntype: int16\ndimension: 3\ncontent: {CANARY}\nsizes: 16 14 12\n"
        "space: left-posterior-superior\nspace directions: (1,0,0) (0,1,0) (0,0,2)\nspace origin: (0,0,0)\n"
        f"endian: little\nencoding: raw\nPatientName:={CANARY}\n\n"
    )
    (root / f"{CANARY}.nrrd").write_bytes(nrrd.encode() + voxels.tobytes())
    rows = [f"{CANARY}.mha,{CANARY}A", f"{CANARY}.nrrd,{CANARY}B"]
    (root / "manifest.csv").write_text("path,subject\n" + "\n".join(rows) + "\n")


COLLECTION = f"""
name: canaries
salt: a salt for these tests
sources:
- {{dataset: slices, layout: dicom_tree, root: dicom-{CANARY}, licence: CC0-1.0}}
- {{dataset: volumes, layout: table, root: nifti-{CANARY}, modality: mri, organ: brain, licence: CC0-1.0,
   options: {{mask: mask, subject: subject, split: split}}}}
- {{dataset: pictures, layout: image_folder, root: pictures-{CANARY}, modality: dermoscopy, organ: skin,
   classes: [nevus], licence: CC0-1.0}}
- {{dataset: others, layout: table, root: others-{CANARY}, modality: ct, licence: CC0-1.0,
   options: {{subject: subject}}}}
"""


def write_collection(folder: Path) -> tuple[Path, int]:
    """All of it below `folder`; returns the YAML and the number of DICOM attributes that were filled."""
    filled = write_dicom_tree(folder / f"dicom-{CANARY}")
    write_nifti(folder / f"nifti-{CANARY}")
    write_pictures(folder / f"pictures-{CANARY}")
    write_volumes(folder / f"others-{CANARY}")
    path = folder / "collection.yaml"
    path.write_text(COLLECTION)
    return path, filled


def sources(folder: Path) -> Iterator[Path]:
    """Every file of the collection."""
    yield from (path for path in sorted(folder.rglob("*")) if path.is_file())
