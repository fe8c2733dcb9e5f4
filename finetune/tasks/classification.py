"""Classification of whole images: one class of several for each image.

An image is squashed to the encoder's training size, so that the whole field of view is seen; in training a
box of half to all of its area is taken first. The loss weights classes inversely to their frequency,
because the metrics (macro AUC, balanced accuracy) count classes alike; the same holds for the logistic
regression.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from ...data.draws import uniform
from ...pretrain.encoders.base import Encoder
from ..augment import augment
from ..data import Case
from ..heads import Classifier, LinearClassifier, summary
from ..metrics import CLASSIFICATION
from .base import Task, resized


class Classification(Task):
    """See the module docstring."""

    kind = "classification"
    criterion = "auc"

    def network(self, encoder: Encoder, *, linear: bool) -> nn.Module:
        """A linear probe (filled by `protocols.fit_logistic`) or a trainable classifier."""
        if linear:
            return LinearClassifier(encoder, self.record.outputs)
        return Classifier(encoder, self.record.outputs, self.config.head.dropout)

    def example(self, position: int) -> dict[str, Tensor]:
        """image [C, *size], label, position."""
        case = self.case_at(position)
        if self.plan.ndim == 2:
            pixels = self.data.shards.read_resized(case.ref, self._box(case, position), self.plan.patch)
        else:
            pixels = resized(self.data.image(case), self.plan.patch)
        return {
            "image": torch.from_numpy(self.normalised(case, pixels)),
            "label": torch.tensor(case.label),
            "position": torch.tensor(position),
        }

    def _box(self, case: Case, position: int) -> tuple[float, float, float, float]:
        """Box (y0, x0, y1, x1) of a drawn share of the area, the sides' ratio within 4/5 and 5/4."""
        height, width = case.shape
        u = uniform(self.config.seed, "finetune.box", [position], 4)[0]
        low, high = self.config.augment.crop_scale
        area, ratio = low + (high - low) * u[0], (5 / 4) ** (2 * u[1] - 1)
        h = min(1.0, (area * ratio) ** 0.5)
        w = min(1.0, area / h)
        y, x = u[2] * (1 - h), u[3] * (1 - w)
        return y * height, x * width, min((y + h) * height, height), min((x + w) * width, width)

    def loss(self, network: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        """Cross-entropy, classes weighted by inverse frequency, labels smoothed."""
        image, _ = augment(
            batch["image"], None, batch["position"], self.config.augment,
            seed=self.config.seed, flips=self.record.flips,
        )  # fmt: skip
        weight = torch.from_numpy(self.class_weights()).to(image.device)
        return functional.cross_entropy(
            network(image), batch["label"], weight=weight, label_smoothing=self.config.optim.label_smoothing
        )

    def class_weights(self) -> np.ndarray:
        """float32 [classes], mean 1 over the training cases (scikit-learn's "balanced")."""
        labels = [case.label for case in self.cases["train"]]
        counts = np.bincount(labels, minlength=self.record.outputs)
        return (len(labels) / (len(counts) * np.maximum(counts, 1))).astype(np.float32)

    def validate(self, network: nn.Module, device: torch.device) -> dict[str, float]:
        """Macro AUC, balanced accuracy and log loss of the validation cases."""
        cases = self.cases["val"]
        return scores(self.predict(network, cases, device), np.array([case.label for case in cases]))

    def whole(self, case: Case) -> Tensor:
        """The image as it is scored: [C, *size] normalised."""
        if self.plan.ndim == 2:
            height, width = case.shape
            pixels = self.data.shards.read_resized(case.ref, (0, 0, height, width), self.plan.patch)
        else:
            pixels = resized(self.data.image(case), self.plan.patch)
        return torch.from_numpy(self.normalised(case, pixels))

    def predict(self, network: nn.Module, cases: Sequence[Case], device: torch.device) -> np.ndarray:
        """Probabilities float64 [N, classes]."""
        rows = [
            torch.softmax(network(images).float(), dim=1).cpu().double()
            for images in self._evaluated(network, cases, device)
        ]
        return torch.cat(rows).numpy()

    def features(self, encoder: Encoder, cases: Sequence[Case], device: torch.device) -> np.ndarray:
        """Frozen descriptors float32 [N, 2E]: pooled and mean tokens."""
        rows = [summary(encoder(images)).float().cpu() for images in self._evaluated(encoder, cases, device)]
        return torch.cat(rows).numpy()

    def _evaluated(self, network: nn.Module, cases: Sequence[Case], device: torch.device):
        """Batches of whole images, network in evaluation mode and without gradients."""
        training = network.training
        network.eval()
        try:
            with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                for start in range(0, len(cases), self.plan.batch):
                    part = [self.whole(case) for case in cases[start : start + self.plan.batch]]
                    yield torch.stack(part).to(device)
        finally:
            network.train(training)


def scores(probabilities: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Macro AUC, balanced accuracy, log loss (of probabilities [N, classes] and labels [N])."""
    picked = probabilities[np.arange(len(labels)), labels]
    auc = float(np.asarray(CLASSIFICATION["auc"](labels, probabilities)))
    return {
        "auc": auc if np.isfinite(auc) else 0.5,  # one class only in validation: no information
        "balanced_accuracy": float(np.asarray(CLASSIFICATION["balanced_accuracy"](labels, probabilities))),
        "log_loss": float(-np.log(np.clip(picked, 1e-12, 1)).mean()),
    }
