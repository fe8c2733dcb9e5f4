"""Generated images with structure of their own, and collections of them."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
from medloom.data.collection import Collection
from PIL import Image as Pillow
from scipy.ndimage import gaussian_filter

NAME = "Mustermann"


def field(seed: int, shape: tuple[int, ...] = (160, 200)) -> np.ndarray:
    """Shapes of several sizes, uint8: as unlike another seed's as two lungs of two persons."""
    rng = np.random.default_rng(seed)
    total = sum(
        size * gaussian_filter(rng.normal(size=shape), size, mode="wrap") for size in (3, 6, 14)
    )  # the larger the shapes, the stronger
    low, high = total.min(), total.max()
    return ((total - low) / (high - low) * 255).astype(np.uint8)


@pytest.fixture
def image() -> Callable[..., np.ndarray]:
    """`image(seed, shape)`."""
    return field


@pytest.fixture
def collection(tmp_path: Path) -> Callable[..., Collection]:
    """`collection({"a": {"name.png": array}}, held_out="[...]")`: files under a person's name, and the YAML.

    2D arrays are written as the suffix says, 3D arrays as NIfTI.
    """

    def make(sources: dict[str, dict[str, np.ndarray]], held_out: str = "[]", more: str = "") -> Collection:
        blocks = []
        for dataset, files in sources.items():
            folder = tmp_path / "in" / dataset
            folder.mkdir(parents=True, exist_ok=True)
            rows = ["path,subject,split"]
            for name, array in files.items():
                name, _, split = name.partition(" ")
                path = folder / f"{NAME}_{name}"
                if array.ndim == 3:
                    nibabel.save(nibabel.Nifti1Image(array.transpose(2, 1, 0), np.eye(4)), path)
                elif not path.exists():
                    Pillow.fromarray(array).save(path)
                subject = split.partition(":")[2] or name
                rows.append(f"{path.name},{subject},{split.partition(':')[0]}")
            (folder / "manifest.csv").write_text("\n".join(rows) + "\n")
            blocks.append(
                f"  - {{dataset: {dataset}, layout: table, root: {dataset}, modality: x-ray, "
                "licence: CC0-1.0, options: {subject: subject, split: split}}"
            )
        path = tmp_path / "collection.yaml"
        head = f"""
            name: small
            root: in
            salt: a-salt-for-tests
            held_out: {held_out}
            sources:
            """
        path.write_text(textwrap.dedent(head) + "\n".join(blocks) + "\n" + more)
        return Collection.load(path)

    return make
