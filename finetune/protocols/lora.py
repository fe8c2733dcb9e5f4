"""Low-rank adapters: the encoder's weights stay, small matrices beside its attention layers are trained.

LoRA (Hu et al., arXiv 2106.09685) by peft, on every linear layer of the attention blocks. When the arm is
done the adapters are merged into the weights, so that what is saved is the plain network: it is evaluated,
exported and used without peft and at the same cost; the adapters alone, a few per cent of the size, lie
beside it in adapters.safetensors. A ViT-S with rank 8 trains 0.2 million of its 22 million weights.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import nn

from ...data.atomic import replacing
from ...data.errors import ConfigError
from ...pretrain.encoders.base import Encoder
from ..config import FinetuneConfig
from .base import Outcome, Protocol, Session
from .gradient import optimise
from .phases import together

ADAPTERS = "adapters.safetensors"
_PROJECTIONS = ("qkv", "q_proj", "k_proj", "v_proj", "proj")


class Lora(Protocol):
    """Adapters and head are trained at `optim.head_lr`, by the schedule of `full`."""

    name = "lora"

    def fit(self, network: nn.Module, session: Session) -> Outcome:
        encoder = network.get_submodule("encoder")
        assert isinstance(encoder, Encoder)
        adapters = inject(encoder, session.task.config)
        outcome = optimise(network, session, pretrained=True, phases=together, added=list(adapters.values()))
        if outcome.finished:
            _save(session, adapters)
            merge(encoder)
            outcome.facts["adapters"] = sum(p.numel() for p in adapters.values())
        return outcome


def inject(encoder: Encoder, config: FinetuneConfig) -> dict[str, nn.Parameter]:
    """Put adapters beside the attention layers and freeze everything else; returns the adapters by name.

    Raises:
        ConfigError: an encoder without attention, a rank below 1, or peft is not installed.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise ConfigError("protocol=lora needs peft: pip install 'medloom[lora]'") from error
    targets = _attention_layers(encoder)
    if not targets:
        raise ConfigError(
            f"protocol=lora: encoder {encoder.config.name} has no attention to adapt: choose protocol=full"
        )
    if config.lora.rank < 1:
        raise ConfigError(f"lora.rank: {config.lora.rank}: give at least 1")
    for module in encoder.modules():
        if hasattr(module, "qkv_bias_separate"):  # Eva otherwise reads the weight past the adapter
            cast(Any, module).qkv_bias_separate = True
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed + 2)
        section = LoraConfig(
            r=config.lora.rank, lora_alpha=cast(int, config.lora.alpha), lora_dropout=config.lora.dropout,
            target_modules=targets,
        )  # fmt: skip
        inject_adapter_in_model(section, encoder)
    new = set(encoder.added())
    adapters = {name: p for name, p in encoder.named_parameters() if p.requires_grad and p not in new}
    for parameter in new:
        parameter.requires_grad_(True)
    return adapters


def merge(encoder: Encoder) -> None:
    """Add what the adapters learnt to the weights and take the adapters out, in place."""
    from peft.tuners.lora.layer import LoraLayer

    for name, module in list(encoder.named_modules()):
        if isinstance(module, LoraLayer):
            cast(Any, module).merge()
            parent, _, child = name.rpartition(".")
            setattr(encoder.get_submodule(parent), child, module.get_base_layer())
    encoder.requires_grad_(True)


def _attention_layers(encoder: Encoder) -> list[str]:
    """Names of the linear layers inside modules called `attn`."""
    return [
        name
        for name, module in encoder.named_modules()
        if isinstance(module, nn.Linear)
        and name.split(".")[-2:-1] == ["attn"]
        and name.rpartition(".")[2] in _PROJECTIONS
    ]


def _save(session: Session, adapters: dict[str, nn.Parameter]) -> None:
    from safetensors.torch import save_file

    lora = session.task.config.lora
    tensors = {name: p.detach().cpu().contiguous() for name, p in adapters.items()}
    with replacing(session.folder / ADAPTERS) as temporary:
        save_file(tensors, temporary, metadata={"rank": str(lora.rank), "alpha": str(lora.alpha)})
