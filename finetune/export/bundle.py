"""An arm as a MONAI bundle: network, configuration and scripts that run where medloom is not installed.

`python -m monai.bundle run --config_file configs/inference.json --input IMAGES` inside the folder writes
label maps on the grids of the images (or a table). The normalisation that was trained with cannot be said in
MONAI's transforms (it is by statistics of the foreground), so that code of medloom lies in `scripts/`, copied
and not written again. The network is a program of torch.export (.pt2), not TorchScript, which torch has
given up.
"""

from __future__ import annotations

import inspect
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...data import normalise
from ...data.atomic import replacing, write_json, write_text
from ...data.ingest import preprocess
from ...data.shards import pictures
from ..tasks import base
from ..windows import OVERLAP, SIGMA
from . import inference
from .contract import contract
from .graph import Graph, compared

MODEL = "model.pt2"
_CONTRACT = "$@bundle_root + '/configs/preprocessing.json'"
_HEADER = (
    '"""Copied from medloom {version} (Apache-2.0) at export."""\n\nfrom __future__ import annotations\n\n'
)


def export_bundle(graph: Graph, folder: Path) -> dict[str, Any]:
    """Write the bundle; returns the check of its network against torch.

    Raises:
        ConfigError: the stored program computes something else than torch.
    """
    for name in ("configs", "models", "scripts", "docs"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    model = folder / "models" / MODEL
    with replacing(model) as temporary:
        torch.export.save(graph.program, temporary)
    loaded = inference.Network(str(model))

    def infer(x: np.ndarray) -> np.ndarray:
        return loaded(torch.from_numpy(x)).numpy()

    difference = compared(graph, infer, MODEL)
    said = contract(graph, "torch", difference)
    for name, text in _scripts().items():
        write_text(folder / "scripts" / name, text)
    write_json(folder / "configs" / "preprocessing.json", said)
    write_json(folder / "configs" / "inference.json", _inference(graph))
    write_json(folder / "configs" / "metadata.json", _metadata(graph))
    write_text(folder / "docs" / "README.md", _readme(graph))
    licence = Path(__file__).resolve().parents[2] / "LICENSE"
    if licence.is_file():
        shutil.copyfile(licence, folder / "scripts" / "LICENSE")
    return said["check"]


def _scripts() -> dict[str, str]:
    """Files of `scripts/`: medloom's own code with its imports turned to one another."""
    header = _HEADER.format(version=version("medloom"))
    words = {
        "from ..errors import ReadError\n": "class ReadError(ValueError):\n    pass\n\n\n",
        "from ..sample import Modality\n": 'class Modality:\n    CT = "ct"\n    CBCT = "cbct"\n\n\n',
    }
    resizing = [inspect.getsource(one) for one in (pictures.resize, pictures.planes_of, pictures._planes)]
    resampling = f"_SMOOTH = {base._SMOOTH!r}\n\n\n{inspect.getsource(base.resized)}"
    modules = {
        "from ...data.ingest.preprocess import": "from .describe import",
        "from ...data.normalise import": "from .normalise import",
        "from ...data.shards.pictures import": "from .pictures import",
        "from ..tasks.base import": "from .resampling import",
    }
    return {
        "__init__.py": _turned(inspect.getsource(inference), modules),
        "describe.py": _turned(inspect.getsource(preprocess), words),
        "normalise.py": inspect.getsource(normalise),
        "pictures.py": header
        + "from collections.abc import Sequence\n\nimport numpy as np\nfrom PIL import Image as Pillow\n\n\n"
        + "\n\n".join(resizing),
        "resampling.py": header
        + "from collections.abc import Sequence\nfrom typing import Any\n\nimport numpy as np\nimport torch\n"
        + "from torch.nn import functional\n\n"
        + resampling,
    }


def _turned(text: str, words: dict[str, str]) -> str:
    for old, new in words.items():
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    return text


def _inference(graph: Graph) -> dict[str, Any]:
    """configs/inference.json."""
    plan = graph.task.plan
    volume = plan.ndim == 3
    prepared = {"_target_": "scripts.Preparedd", "keys": ["image"], "contract": "@contract"}
    loaded: list[dict[str, Any]] = [{"_target_": "scripts.Loadedd", "keys": ["image"]}]
    if volume:
        loaded = [
            {"_target_": "LoadImaged", "keys": "image", "image_only": True},
            {"_target_": "EnsureChannelFirstd", "keys": "image"},
            {"_target_": "Orientationd", "keys": "image", "axcodes": "RAS"},
        ]
    found: dict[str, Any] = {
        "imports": ["$import scripts", "$import torch"],
        "bundle_root": ".",
        "input": "$@bundle_root + '/images'",
        "output_dir": "$@bundle_root + '/eval'",
        "device": "$torch.device('cuda' if torch.cuda.is_available() else 'cpu')",
        "contract": f"$scripts.read_contract({_CONTRACT.removeprefix('$')})",
        "files": f"$scripts.find(@input, {plan.ndim})",
        "network": {
            "_target_": "scripts.Network",
            "path": f"$@bundle_root + '/models/{MODEL}'",
            "device": "@device",
        },
        "preprocessing": {"_target_": "Compose", "transforms": [*loaded, prepared]},
        "inferer": {"_target_": "SimpleInferer"},
        "postprocessing": None,
    }
    if graph.dense:
        found["inferer"] = {
            "_target_": "SlidingWindowInferer", "roi_size": list(plan.patch), "sw_batch_size": plan.batch,
            "overlap": OVERLAP, "mode": "gaussian", "sigma_scale": SIGMA, "device": "cpu",
            "sw_device": "@device",
        }  # fmt: skip
        found["postprocessing"] = {"_target_": "Compose", "transforms": _postprocessing(volume)}
    found["run"] = [
        "$scripts.run(@files, @preprocessing, @inferer, @network, @postprocessing, @device, @output_dir, "
        "@contract)"
    ]
    return found


def _postprocessing(volume: bool) -> list[dict[str, Any]]:
    restored = {"_target_": "scripts.Restoredd", "keys": ["pred"], "contract": "@contract"}
    if not volume:
        return [
            restored,
            {"_target_": "scripts.PictureSavedd", "keys": ["pred"], "output_dir": "@output_dir"},
        ]
    return [
        restored,
        {"_target_": "Invertd", "keys": "pred", "transform": "@preprocessing", "orig_keys": "image",
         "nearest_interp": False},
        {"_target_": "SaveImaged", "keys": "pred", "output_dir": "@output_dir", "output_postfix": "seg",
         "output_ext": ".nii.gz", "output_dtype": "uint8", "resample": False,
         "separate_folder": False, "print_log": False},
    ]  # fmt: skip


def _metadata(graph: Graph) -> dict[str, Any]:
    """configs/metadata.json in the form of MONAI's schema of bundles."""
    import monai

    task, plan = graph.task, graph.task.plan
    names = {str(index): name for index, name in enumerate(task.record.names)}
    shape = list(plan.patch)
    return {
        "schema": "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/"
        "meta_schema_20240725.json",
        "version": "0.1.0",
        "changelog": {"0.1.0": "exported by medloom"},
        "monai_version": monai.__version__,
        "pytorch_version": torch.__version__.split("+")[0],
        "numpy_version": np.__version__,
        "required_packages_version": {"nibabel": version("nibabel"), "pillow": version("pillow")},
        "name": f"medloom {task.record.name}",
        "task": f"{task.record.kind}: {', '.join(task.record.names)}",
        "description": task.record.note or f"A {task.record.kind} network that medloom fine-tuned.",
        "authors": "exported by medloom",
        "copyright": "that of the weights' owner",
        "intended_use": "research; not a medical device",
        "network_data_format": {
            "inputs": {
                "image": {
                    "type": "image", "format": "magnitude", "modality": task.record.source.get("modality"),
                    "num_channels": plan.channels, "spatial_shape": shape, "dtype": "float32",
                    "value_range": [], "is_patch_data": graph.dense,
                    "channel_def": {str(index): "image" for index in range(plan.channels)},
                }
            },
            "outputs": {
                "pred": {
                    "type": "probabilities", "format": "segmentation" if graph.dense else "classification",
                    "num_channels": task.record.outputs, "spatial_shape": shape if graph.dense else [],
                    "dtype": "float32", "value_range": [0, 1], "is_patch_data": graph.dense,
                    "channel_def": names,
                }
            },
        },
    }  # fmt: skip


def _readme(graph: Graph) -> str:
    record = graph.task.record
    answer = "label maps `NAME_seg`" if graph.dense else "`predictions.csv`"
    return (
        f"# {record.name}\n\n{record.note}\n\nRun in this folder, with MONAI, torch, nibabel and Pillow:\n\n"
        "```\npython -m monai.bundle run --config_file configs/inference.json \\\n"
        "  --input IMAGES --output_dir OUT\n"
        "```\n\nThe command needs `fire` (`pip install fire`); from Python: "
        "`monai.bundle.run(config_file=..., input=..., output_dir=...)`.\n\n"
        f"`IMAGES` is a file or a folder; {answer} are written to `OUT`. For research; not a medical "
        "device.\n"
    )
