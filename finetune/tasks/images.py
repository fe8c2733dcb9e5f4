"""Tasks that say one thing of a whole image: a class, several findings, a grade, a number.

An image is squashed to the encoder's training size, so that the whole field of view is seen; in training a
box of half to all of its area is taken first. Kinds differ in what they predict, how it is learnt and how it
is measured; they share the networks, the reading of images and the frozen features.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ...data.draws import uniform
from ...pretrain.encoders.base import Encoder
from ..augment import augment
from ..data import Case
from ..features import frozen
from ..heads import Classifier, FrozenProbe, LinearClassifier
from ..probes import Attentive, LinearProbe, Neighbours
from .base import Task, resized

_ROWS = 1024  # cases whose cached features are in memory at a time


class WholeImages(Task):
    """Tasks whose example is a whole image and whose target is `target`."""

    @abstractmethod
    def target(self, case: Case) -> np.ndarray:
        """What is to be predicted of a case; an array of the same shape for all cases."""

    def example(self, position: int) -> dict[str, Tensor]:
        """image [C, *size], target, position."""
        case = self.case_at(position)
        if self.plan.ndim == 2:
            pixels = self.data.shards.read_resized(case.ref, self._box(case, position), self.plan.patch)
        else:
            pixels = resized(self.data.image(case), self.plan.patch)
        return {
            "image": torch.from_numpy(self.normalised(case, pixels)),
            "target": torch.as_tensor(self.target(case)),
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

    def augmented(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Images of a training batch, turned, scaled and changed in intensity: [B, C, *size]."""
        image, _ = augment(
            batch["image"], None, batch["position"], self.config.augment,
            seed=self.config.seed, flips=self.record.flips,
        )  # fmt: skip
        return image

    def truth(self, cases: Sequence[Case]) -> np.ndarray:
        """Targets [N, ...]."""
        return np.stack([self.target(case) for case in cases])

    def whole(self, case: Case) -> Tensor:
        """The image as it is scored: [C, *size] normalised."""
        return torch.from_numpy(self.resampled(case, self.plan.patch))

    def features(self, probe: FrozenProbe, cases: Sequence[Case], device: torch.device) -> np.ndarray:
        """What a probe reads of frozen features, float32 [N, ...], from the cache where there is one."""

        def compute(part: Sequence[Case]) -> np.ndarray:
            rows = [probe.described(x).float().cpu() for x in self.evaluated(probe, part, device)]
            return torch.cat(rows).numpy()

        return frozen(self, probe.reads, probe.encoder, cases, device.type, compute)

    def evaluated(self, network: nn.Module, cases: Sequence[Case], device: torch.device) -> Iterator[Tensor]:
        """Batches of whole images, network in evaluation mode and without gradients while they are used."""
        training = network.training
        network.eval()
        try:
            with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                for start in range(0, len(cases), self.plan.batch):
                    part = [self.whole(case) for case in cases[start : start + self.plan.batch]]
                    yield torch.stack(part).to(device)
        finally:
            network.train(training)

    def picture(self, path: Path, case: Case, prediction: np.ndarray) -> None:
        """The image itself: what is said of it stands in the caption."""
        from ..overlays import classification_overlay

        classification_overlay(path, case, self.image(case))


class ImageTask(WholeImages):
    """What is abstract here, and `rows` and `set_metrics`, is a kind's own."""

    heads = ("full", "linear", "attentive", "logistic", "knn")

    @property
    def outputs(self) -> int:
        """Numbers that the network puts out for an image."""
        return self.record.outputs

    @abstractmethod
    def criterion_of(self, logits: Tensor, target: Tensor) -> Tensor:
        """Training loss of [B, outputs] and the batch's targets [B, ...]."""

    @abstractmethod
    def activate(self, logits: Tensor) -> Tensor:
        """What is scored and written: probabilities, or numbers in the label's unit; [B, K]."""

    @abstractmethod
    def scores(self, predicted: np.ndarray, target: np.ndarray) -> dict[str, float]:
        """Scores of [N, K] against [N, ...]; holds `criterion`, and `log_loss` where there is one."""

    @abstractmethod
    def fitted(self, x: np.ndarray, target: np.ndarray, strength: float) -> tuple[np.ndarray, np.ndarray]:
        """A regularised linear model without steps: weight [outputs, F] and bias [outputs] of the outputs.

        Args:
            x: standardised features [N, F] of the training cases.
            target: their targets [N, ...].
            strength: C of scikit-learn, the inverse of the penalty.
        """

    @abstractmethod
    def certain(self, target: np.ndarray) -> np.ndarray:
        """Targets [N, ...] as predictions that are sure of them, float64 [N, K]: a neighbour's vote."""

    def network(self, encoder: Encoder, head: str) -> nn.Module:
        """A trainable layer on the descriptor, or a probe of frozen features."""
        if head == "logistic":
            return LinearClassifier(encoder, self.outputs)
        if head == "linear":
            return LinearProbe(encoder, self.outputs)
        if head == "attentive":
            return Attentive(encoder, self.outputs, self.config.probe.heads)
        if head == "knn":
            return Neighbours(encoder)
        return Classifier(encoder, self.outputs, self.config.head.dropout)

    def loss(self, network: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        """Augment, predict, compare."""
        return self.criterion_of(network(self.augmented(batch)), batch["target"])

    def validate(self, network: nn.Module, device: torch.device) -> dict[str, float]:
        """`scores` of the validation cases."""
        cases = self.cases["val"]
        return self.scores(np.stack(list(self.predictions(network, cases, device))), self.truth(cases))

    def predictions(
        self, network: nn.Module, cases: Sequence[Case], device: torch.device, *, mirror: bool = False
    ) -> Iterator[np.ndarray]:
        """What `activate` gives, float64 [K] a case; `mirror` is of no use here."""
        read = self.reader(network)
        if isinstance(network, FrozenProbe) and self.config.features and self.corrupt is None:
            network.eval()
            for start in range(0, len(cases), _ROWS):
                rows = torch.from_numpy(self.features(network, cases[start : start + _ROWS], device))
                with torch.no_grad():
                    for part in rows.split(self.plan.batch):
                        yield from read(network.answer(part.to(device)).float()).double().cpu().numpy()
            return
        for images in self.evaluated(network, cases, device):
            yield from read(network(images).float()).double().cpu().numpy()

    def reader(self, network: nn.Module) -> Callable[[Tensor], Tensor]:
        """From what the network puts out to what is scored: `activate`, unless it is that already."""
        settled = isinstance(network, FrozenProbe) and network.settled
        return (lambda outputs: outputs) if settled else self.activate


def logistic_weights(x: np.ndarray, positive: np.ndarray, strength: float) -> tuple[np.ndarray, float]:
    """Logistic regression of one yes or no: weight [F] and bias; the log odds where all answers are alike."""
    from sklearn.linear_model import LogisticRegression

    if len(np.unique(positive)) < 2:
        share = (positive.sum() + 0.5) / (len(positive) + 1)
        return np.zeros(x.shape[1]), float(np.log(share / (1 - share)))
    model = LogisticRegression(C=strength, max_iter=2000).fit(x, positive)
    return model.coef_[0], float(model.intercept_[0])
