"""finetune/heads.py: every encoder gives one answer an image."""

from __future__ import annotations

import pytest
import torch
from medloom.finetune.heads import Classifier, LinearClassifier
from medloom.pretrain.encoders import build_encoder

from .nets import ENCODERS


@pytest.mark.parametrize("name", ["vit", "convnext", "vit3d"])
@pytest.mark.parametrize("head", [Classifier, LinearClassifier])
def test_classification_logits(name: str, head: type) -> None:
    section, shape = ENCODERS[name]
    encoder = build_encoder(section)
    assert head(encoder, 4)(torch.randn(2, encoder.in_channels, *shape)).shape == (2, 4)
