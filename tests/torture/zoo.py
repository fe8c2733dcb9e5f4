"""All rows of the zoo."""

from __future__ import annotations

from . import (
    forms_dicom,
    forms_dicom_objects,
    forms_dicom_pixels,
    forms_dicom_syntaxes,
    forms_nifti,
    forms_others,
    forms_picture,
    forms_tiff,
)
from .form import Form

MODULES = (
    forms_nifti,
    forms_dicom,
    forms_dicom_pixels,
    forms_dicom_objects,
    forms_dicom_syntaxes,
    forms_picture,
    forms_tiff,
    forms_others,
)
FORMS: list[Form] = [form for module in MODULES for form in module.FORMS]
