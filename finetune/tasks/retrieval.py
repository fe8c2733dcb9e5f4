"""Retrieval: images of the query's own class are to come first in a gallery, by the encoder's descriptors.

The gallery is the training cases, the queries are the scored ones, and the order is by cosine similarity of
the descriptors (pooled vector and mean token). `protocol=frozen` takes the encoder as it is and fits nothing.
Otherwise descriptors are trained as a normalised softmax over the classes (Zhai and Wu, arXiv 1811.12649), at
the temperature 0.05 of that paper, and the gallery is described anew at each validation. A query whose class
has no image in the gallery has no score and is counted as excluded.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from ...pretrain.encoders.base import Encoder
from ..data import Case
from ..heads import summary
from ..metrics import CaseRow
from ..metrics.retrieval import CUTOFFS, retrieval_value
from .images import WholeImages

_TEMPERATURE = 0.05
_CRITERION = "map@10"
_SHOWN = 5  # neighbours in predictions.csv and in a picture


@dataclass(frozen=True, slots=True)
class Ranking:
    """The gallery in the order of a query: the first `max(CUTOFFS)` places."""

    places: np.ndarray  # int [n], indices of the training cases
    relevant: np.ndarray  # bool [n]
    total: int  # relevant images in the gallery


class Embedder(nn.Module):
    """Encoder -> unit descriptors [B, 2E]. Holds the gallery's, and a direction of each class to train by."""

    gallery: Tensor

    def __init__(self, encoder: Encoder, classes: int, gallery: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.proxies = nn.Parameter(torch.randn(classes, 2 * encoder.embed_dim) * 0.02) if classes else None
        self.register_buffer("gallery", torch.zeros(gallery, 2 * encoder.embed_dim))

    def forward(self, x: Tensor) -> Tensor:
        """Descriptors of length 1 [B, 2E] of normalised images [B, C, *spatial]."""
        return functional.normalize(summary(self.encoder(x)).float(), dim=1)

    def logits(self, descriptors: Tensor) -> Tensor:
        """Similarity to each class over the temperature: [B, classes]."""
        assert self.proxies is not None
        return descriptors @ functional.normalize(self.proxies.float(), dim=1).T / _TEMPERATURE


class Retrieval(WholeImages):
    """See the module docstring."""

    kind = "retrieval"
    criterion = _CRITERION
    heads = ("full", "frozen")
    standalone = False  # the gallery is made of the training cases
    worst = _CRITERION

    @property
    def structures(self) -> list[str]:
        return [""]  # metrics are of a query

    def target(self, case: Case) -> np.ndarray:
        """Index of the class, int64."""
        return np.asarray(case.target[0], dtype=np.int64)

    def network(self, encoder: Encoder, head: str) -> nn.Module:
        classes = self.record.outputs if head == "full" else 0
        return Embedder(encoder, classes, len(self.cases["train"]))

    def loss(self, network: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        """Cross-entropy of the normalised softmax."""
        assert isinstance(network, Embedder)
        return functional.cross_entropy(network.logits(network(self.augmented(batch))), batch["target"])

    def validate(self, network: nn.Module, device: torch.device) -> dict[str, float]:
        """Describe the gallery, then the mean over validation queries."""
        assert isinstance(network, Embedder)
        network.gallery.copy_(torch.cat(list(self._described(network, self.cases["train"], device))))
        found = {_CRITERION: [], "recall@1": []}
        for ranking in self.predictions(network, self.cases["val"], device):
            for metric, values in found.items():
                values.append(retrieval_value(metric, ranking.relevant, ranking.total))
        return {name: float(np.nanmean(v)) if np.isfinite(v).any() else 0.0 for name, v in found.items()}

    def _described(self, network: nn.Module, cases: Sequence[Case], device: torch.device) -> Iterator[Tensor]:
        for images in self.evaluated(network, cases, device):
            yield network(images)

    def predictions(
        self, network: nn.Module, cases: Sequence[Case], device: torch.device, *, mirror: bool = False
    ) -> Iterator[Ranking]:
        """The gallery in the order of each case; `mirror` is of no use here."""
        assert isinstance(network, Embedder)
        held, most = self.truth(self.cases["train"]), max(CUTOFFS)
        queries = iter(cases)
        for descriptors in self._described(network, cases, device):
            similarity = (descriptors @ network.gallery.T).double().cpu().numpy()
            for row in similarity:
                same = held == self.target(next(queries))
                order = np.argsort(-row, kind="stable")[:most]
                yield Ranking(order, same[order], int(same.sum()))

    def rows(self, case: Case, prediction: Ranking) -> list[CaseRow]:
        """Every metric of the record; excluded where the gallery holds nothing relevant."""
        metrics = dict.fromkeys([*self.record.metrics, self.worst])
        if not prediction.total:
            return [CaseRow("", name, float("nan"), "excluded", "nothing_relevant") for name in metrics]
        return [
            CaseRow("", name, retrieval_value(name, prediction.relevant, prediction.total), "ok")
            for name in metrics
        ]

    def caption(self, case: Case, prediction: Ranking) -> dict[str, Any]:
        named = [self._class(place) for place in prediction.places[:_SHOWN]]
        return {"truth": self.record.classes[int(self.target(case))], "prediction": ", ".join(named)}

    def _class(self, place: int) -> str:
        return self.record.classes[int(self.target(self.cases["train"][place]))]

    def picture(self, path: Path, case: Case, prediction: Ranking) -> None:
        """The query, and the images that came first, framed green where they are relevant."""
        from ..overlays import retrieval_overlay

        first = [self.cases["train"][place] for place in prediction.places[:_SHOWN]]
        shown = [(case, self.image(case)), *((one, self.data.image(one)) for one in first)]
        retrieval_overlay(path, shown, [bool(one) for one in prediction.relevant[:_SHOWN]])
