"""The allow-list: which DICOM attributes leave a file as facts, and what each may say.

A name on the list is not enough, since any text attribute may hold a person's name where somebody typed it in
the wrong field. So what leaves is a number inside a plausible range, a word of a closed vocabulary, or the
maker and model family that the text contains, in our spelling. The price: a scanner that is not listed here
has no maker in the shards. Everything else (descriptions, protocol names, dates, UIDs, private attributes,
sequences, overlays, curves) stays in the file.
"""

from __future__ import annotations

import re
from typing import Any

from . import dicom_fields as fields

# Attribute -> lowest and highest number that is believed.
_NUMBERS: dict[str, tuple[float, float]] = {
    "SliceThickness": (0, 1000), "SpacingBetweenSlices": (-1000, 1000),  # mm
    "KVP": (1, 1000), "MagneticFieldStrength": (0, 30),  # kV, T
    "RepetitionTime": (0, 100_000), "EchoTime": (0, 10_000), "InversionTime": (0, 100_000),  # ms
    "FlipAngle": (0, 360), "BitsStored": (1, 64),
}  # fmt: skip

# Attribute -> the only words that pass. Source: defined terms of DICOM PS3.3 and PS3.16 annex L, as stated.
_WORDS: dict[str, frozenset[str]] = {
    "BodyPartExamined": frozenset({
        "ABDOMEN", "ABDOMENPELVIS", "ANKLE", "AORTA", "ARM", "BLADDER", "BRAIN", "BREAST", "CAROTID",
        "CERVIX", "CHEST", "CHESTABDOMEN", "CHESTABDPELVIS", "CLAVICLE", "COCCYX", "COLON", "CSPINE",
        "CTSPINE", "EAR",
        "ELBOW", "ESOPHAGUS", "EXTREMITY", "EYE", "FEMUR", "FINGER", "FOOT", "GALLBLADDER", "HAND", "HEAD",
        "HEADNECK", "HEART", "HIP", "HUMERUS", "JAW", "KIDNEY", "KNEE", "LEG", "LIVER", "LSPINE", "LSSPINE",
        "LUNG", "MEDIASTINUM", "NECK", "NECKCHEST", "NECKCHESTABDOMEN", "NECKCHESTABDPELV", "ORBIT", "OVARY",
        "PANCREAS", "PELVIS", "PROSTATE", "RECTUM", "RIB", "SHOULDER", "SKULL", "SPINE", "SPLEEN", "SSPINE",
        "STERNUM", "STOMACH", "TESTIS", "THIGH", "THORAX", "THYROID", "TLSPINE", "TOE", "TSPINE", "UTERUS",
        "WHOLEBODY", "WRIST",
    }),
    "ConvolutionKernel": frozenset({
        "STANDARD", "SOFT", "DETAIL", "BONE", "BONEPLUS", "EDGE", "LUNG", "CHEST", "ULTRA", "SMOOTH", "SHARP",
    }),
    "ScanningSequence": frozenset({"SE", "IR", "GR", "EP", "RM"}),
    "MRAcquisitionType": frozenset({"2D", "3D"}),
    "ViewPosition": frozenset({"AP", "PA", "LL", "RL", "LLD", "RLD", "LLO", "RLO", "CC", "MLO", "ML", "LM",
                               "XCCL", "XCCM", "LATERAL", "OBLIQUE"}),
    "ImageLaterality": frozenset("LRUB"),
    "Laterality": frozenset("LRUB"),
    "PhotometricInterpretation": frozenset({
        "MONOCHROME1", "MONOCHROME2", "PALETTE COLOR", "RGB", "YBR_FULL", "YBR_FULL_422", "YBR_PARTIAL_420",
        "YBR_PARTIAL_422", "YBR_ICT", "YBR_RCT",
    }),
    "LossyImageCompression": frozenset({"00", "01"}),
    "BurnedInAnnotation": frozenset({"YES", "NO"}),
    "RecognizableVisualFeatures": frozenset({"YES", "NO"}),
    "Units": frozenset({"CNTS", "NONE", "CM2", "PCNT", "CPS", "BQML", "MGMINML", "UMOLMINML", "MLMING", "MLG",
                        "1CM", "UMOLML", "PROPCNTS", "PROPCPS", "MLMINML", "MLML", "GML", "STDDEV"}),
}  # fmt: skip

# A Siemens (B30f, Br40d) or Toshiba kernel (FC08): too short and too regular to name anybody.
_KERNEL = re.compile(r"(?:[A-Z][a-z]?\d{2}[a-z]?|FC\d{2})")

# Attribute -> word in the text -> our spelling; the first that is found counts.
_NAMES: dict[str, dict[str, str]] = {
    "Manufacturer": {
        "siemens": "Siemens", "philips": "Philips", "toshiba": "Toshiba", "canon": "Canon", "ge med": "GE",
        "g.e. med": "GE", "ge health": "GE", "general electric": "GE", "hitachi": "Hitachi",
        "fujifilm": "Fujifilm", "united imaging": "United Imaging", "uih": "United Imaging",
        "neusoft": "Neusoft", "hologic": "Hologic", "lorad": "Hologic", "carestream": "Carestream",
        "kodak": "Kodak", "agfa": "Agfa", "konica": "Konica Minolta", "samsung": "Samsung",
        "medison": "Samsung Medison", "mindray": "Mindray", "esaote": "Esaote", "sonosite": "SonoSite",
        "supersonic": "SuperSonic Imagine", "acuson": "Siemens", "aloka": "Hitachi Aloka", "varian": "Varian",
        "elekta": "Elekta", "accuray": "Accuray", "shimadzu": "Shimadzu", "heidelberg": "Heidelberg",
        "topcon": "Topcon", "zeiss": "Zeiss", "optovue": "Optovue", "nidek": "Nidek", "olympus": "Olympus",
        "pentax": "Pentax", "leica": "Leica", "hamamatsu": "Hamamatsu", "aperio": "Aperio",
        "bruker": "Bruker", "swissray": "Swissray", "planmeca": "Planmeca", "sirona": "Sirona",
        "ziehm": "Ziehm", "medloom phantom": "medloom phantom",
    },
    "ManufacturerModelName": {name.lower(): name for name in (
        "SOMATOM", "MAGNETOM", "Avanto", "Aera", "Skyra", "Prisma", "Verio", "Vida", "Espree", "Symphony",
        "TrioTim", "Biograph", "Mammomat", "LightSpeed", "Optima", "Discovery", "Revolution", "BrightSpeed",
        "Signa", "LOGIQ", "Vivid", "Voluson", "Senographe", "MILLENNIUM", "Achieva", "Ingenia", "Intera",
        "Panorama", "Brilliance", "Ingenuity", "iCT", "Gemini", "EPIQ", "iU22", "CX50", "Aquilion", "Asteion",
        "Aplio", "Vantage", "Titan", "Supria", "SCENARIA", "ECHELON", "Selenia", "Lorad", "Cirrus",
        "Spectralis",
    )},
}  # fmt: skip

ALLOWED = frozenset({*_NUMBERS, *_WORDS, *_NAMES})
_YES_IF_ANY = ("BurnedInAnnotation", "RecognizableVisualFeatures")  # one slice is enough


def facts_of(datasets: list[Any]) -> dict[str, Any]:
    """What may leave the files of one image: plain JSON values of the first that says them.

    A yes to BurnedInAnnotation or RecognizableVisualFeatures in any file is a yes of the image.
    """
    found = {key: value for key in sorted(ALLOWED) if (value := _allowed(datasets[0], key)) is not None}
    for key in _YES_IF_ANY:
        if any(_allowed(dataset, key) == "YES" for dataset in datasets):
            found[key] = "YES"
    return found


def _allowed(dataset: Any, key: str) -> float | str | None:
    """The value of an attribute if it is one that may leave, else None."""
    if key in _NUMBERS:
        number = fields.numbers(dataset, key, 1)
        low, high = _NUMBERS[key]
        return float(f"{number[0]:.7g}") if number and low <= number[0] <= high else None
    text = fields.text(dataset, key)
    if key in _NAMES:
        return next((name for word, name in _NAMES[key].items() if _has(text.lower(), word)), None)
    word = text.upper() if key != "BodyPartExamined" else re.sub(r"[ _-]", "", text.upper())
    if word in _WORDS[key]:
        return word
    return text if key == "ConvolutionKernel" and _KERNEL.fullmatch(text) else None


def _has(text: str, word: str) -> bool:
    """Whether `word` stands in `text`, not as the tail of another word."""
    return re.search(rf"(?<![a-z]){re.escape(word)}", text) is not None
