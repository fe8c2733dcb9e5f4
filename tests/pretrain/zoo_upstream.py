"""States as the authors of the zoo's encoders publish them: of the classes they train, under their names.

`BUILDERS` gives the published state of a record at its full size; the functions above it build the classes in
any size, so that features can be compared as well as names.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

State = dict[str, Tensor]


class Hollow(TorchFunctionMode):
    """Within it parameters have shapes and no values: networks of gigabytes are built in a moment."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.empty:
            kwargs["device"] = "meta"
        return func(*args, **kwargs)


def published(model: nn.Module, kind: str) -> State:
    """State of a model of transformers under the names of its published files."""
    state = dict(model.state_dict())
    for new, old in _TRANSFORMERS[kind]:
        state = {name.replace(new, old): tensor for name, tensor in state.items()}
    return state


# Version 5 of transformers has other names in memory than in files; version 4 has those of the files.
_ATTENTION = [
    (".attention.q_proj.", ".attention.attention.query."),
    (".attention.k_proj.", ".attention.attention.key."),
    (".attention.v_proj.", ".attention.attention.value."),
    (".attention.o_proj.", ".attention.output.dense."),
]
_TRANSFORMERS: dict[str, list[tuple[str, str]]] = {
    "dinov2": _ATTENTION,
    "vit": [
        *_ATTENTION,
        (".mlp.fc1.", ".intermediate.dense."),
        (".mlp.fc2.", ".output.dense."),
        ("layers.", "encoder.layer."),
    ],
    "clip": [],
}


def dinov2(**sizes: Any) -> nn.Module:
    from transformers import Dinov2Config, Dinov2Model

    return Dinov2Model(Dinov2Config(**sizes))


def vit(**sizes: Any) -> nn.Module:
    from transformers import ViTConfig, ViTModel

    return ViTModel(ViTConfig(**sizes))


def clip(**sizes: Any) -> nn.Module:
    from transformers import CLIPConfig, CLIPModel

    text = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    return CLIPModel(CLIPConfig(vision_config=sizes, text_config=text))


def timm_state(model: str, prefix: str = "", **arguments: Any) -> State:
    import timm

    network = timm.create_model(model, **arguments)
    return {prefix + name: tensor for name, tensor in network.state_dict().items()}


def mae_state() -> State:
    """MAE's class: timm's names, and a decoder."""
    state = timm_state("vit_large_patch16_224", num_classes=0)
    return state | {"mask_token": torch.zeros(1, 1, 512), "decoder_embed.weight": torch.zeros(512, 1024),
                    "decoder_blocks.0.norm1.weight": torch.zeros(512)}  # fmt: skip


def uni2h() -> State:
    """The arguments of UNI2-h's page."""
    import timm

    return timm_state(
        "vit_giant_patch14_224", img_size=224, patch_size=14, depth=24, num_heads=24, init_values=1e-5,
        embed_dim=1536, mlp_ratio=2.66667 * 2, num_classes=0, no_embed_class=True,
        mlp_layer=timm.layers.SwiGLUPacked, act_layer=nn.SiLU, reg_tokens=8, dynamic_img_size=True,
    )  # fmt: skip


def three_dino(dim: int = 1024, depth: int = 24, heads: int = 16, cells: int = 343) -> State:
    """DINOv2's names in chunks of blocks, a Conv3d patch embedding, heads beside the backbone."""
    state = timm_state("vit_large_patch16_224", num_classes=0, init_values=1e-5, embed_dim=dim,
                       depth=depth, num_heads=heads)  # fmt: skip
    named: State = {}
    for name, tensor in state.items():
        first, _, rest = name.partition(".")
        if first == "blocks":
            number = int(rest.partition(".")[0])
            name = f"blocks.{number // max(1, depth // 4)}.{rest}"
        named[f"backbone.{name}"] = tensor
    named["backbone.patch_embed.proj.weight"] = torch.randn(dim, 1, 16, 16, 16)
    named["backbone.pos_embed"] = torch.randn(1, 1 + cells, dim)
    named["backbone.mask_token"] = torch.zeros(1, dim)
    return named | {"dino_head.mlp.0.weight": torch.zeros(8, 8), "ibot_head.mlp.0.weight": torch.zeros(8, 8)}


def monai_vit(**sizes: Any) -> nn.Module:
    from monai.networks.nets.vit import ViT

    return ViT(in_channels=1, patch_size=(16, 16, 16), proj_type="conv", pos_embed_type="learnable",
               classification=False, **sizes)  # fmt: skip


def swin_unetr(**sizes: Any) -> nn.Module:
    from monai.networks.nets.swin_unetr import SwinUNETR

    return SwinUNETR(in_channels=1, out_channels=2, **sizes)


def pretext_names(state: Mapping[str, Tensor]) -> State:
    """SwinUNETR's transformer under the names of the script that pretrained it."""
    named = {
        f"module.{name.removeprefix('swinViT.').replace('.mlp.linear', '.mlp.fc')}": tensor
        for name, tensor in state.items() if name.startswith("swinViT.")
    }  # fmt: skip
    return named | {"module.rotation_head.weight": torch.zeros(4, 4), "module.norm.weight": torch.zeros(4)}


def ct_fm(**sizes: Any) -> nn.Module:
    from monai.networks.nets.segresnet_ds import SegResEncoder

    return SegResEncoder(in_channels=1, **sizes)


def monai_resnet(depth: int, **options: Any) -> nn.Module:
    from monai.networks.nets import resnet

    return getattr(resnet, f"resnet{depth}")(
        n_input_channels=1, feed_forward=False, conv1_t_stride=2, **options
    )


def resenc_unet(**changes: Any) -> nn.Module:
    """nnU-Net's ResEnc-L as nnssl's registry builds it, with its decoder."""
    from dynamic_network_architectures.architectures.unet import ResidualEncoderUNet

    features = changes.get("features", [32, 64, 128, 256, 320, 320])
    blocks = changes.get("blocks", [1, 3, 4, 6, 6, 6])
    stages = len(features)
    return ResidualEncoderUNet(
        input_channels=1, n_stages=stages, features_per_stage=features, conv_op=nn.Conv3d,
        kernel_sizes=[[3, 3, 3]] * stages, strides=[[1, 1, 1], *[[2, 2, 2]] * (stages - 1)],
        n_blocks_per_stage=blocks, num_classes=1, n_conv_per_stage_decoder=[1] * (stages - 1),
        conv_bias=True, norm_op=nn.InstanceNorm3d, norm_op_kwargs={"eps": 1e-5, "affine": True},
        nonlin=nn.LeakyReLU, nonlin_kwargs={"inplace": True},
    )  # fmt: skip


def primus(**changes: Any) -> nn.Module:
    from dynamic_network_architectures.architectures.primus import Primus

    sizes = {"embed_dim": 864, "eva_depth": 16, "eva_numheads": 12, "input_shape": (160, 160, 160), **changes}
    return Primus(
        input_channels=1, num_classes=1, patch_embed_size=(8, 8, 8), init_values=0.1,
        scale_attn_inner=True, **sizes,
    )  # fmt: skip


def _medicalnet(depth: int) -> State:
    short = {18: "A", 34: "A"}.get(depth, "B")
    state = monai_resnet(depth, shortcut_type=short, bias_downsample=False).state_dict()
    return {f"module.{name}": tensor for name, tensor in state.items()}


_LARGE = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16}
BUILDERS: dict[str, Callable[[], State]] = {
    "rad-dino": lambda: published(dinov2(image_size=518, patch_size=14), "dinov2"),
    "rad-dino-maira-2": lambda: published(dinov2(image_size=518, patch_size=14), "dinov2"),
    "phikon-v2": lambda: published(dinov2(image_size=224, patch_size=16, **_LARGE), "dinov2"),
    "phikon": lambda: published(vit(), "vit"),
    "plip": lambda: published(clip(patch_size=32), "clip"),
    "biomedclip": lambda: timm_state("vit_base_patch16_224", "visual.trunk.", num_classes=0)
    | {"visual.head.proj.weight": torch.zeros(2), "text.transformer.embeddings.word": torch.zeros(2)},
    "retfound": mae_state,
    "retfound-oct": mae_state,
    "uni": lambda: timm_state("vit_large_patch16_224", num_classes=0, init_values=1e-5),
    "uni2-h": uni2h,
    "h-optimus-0": lambda: timm_state("vit_giant_patch14_reg4_dinov2", num_classes=0, img_size=224),
    "3dino": three_dino,
    "brainiac": lambda: {f"backbone.{name}": tensor for name, tensor in monai_vit(
        img_size=(96, 96, 96), hidden_size=768, mlp_dim=3072).state_dict().items()},
    "voco-b": lambda: dict(swin_unetr(feature_size=48, use_v2=True).state_dict()),
    "voco-l": lambda: dict(swin_unetr(feature_size=96, use_v2=True).state_dict()),
    "voco-h": lambda: dict(swin_unetr(feature_size=192, use_v2=True).state_dict()),
    "swinunetr-ssl": lambda: pretext_names(swin_unetr(feature_size=48).state_dict()),
    "ct-fm": lambda: dict(ct_fm(init_filters=32, blocks_down=(1, 2, 2, 4, 4)).state_dict()),
    **{f"medicalnet-resnet{depth}": (lambda depth=depth: _medicalnet(depth)) for depth in (10, 18, 34, 50)},
    "fmcib": lambda: dict(monai_resnet(50, widen_factor=2, bias_downsample=True).state_dict()),
    **{f"openmind-resencl-{method}": (lambda: dict(resenc_unet().state_dict()))
       for method in ("mae", "simclr", "voco", "swinunetr")},
    "openmind-primusm-mae": lambda: dict(primus().state_dict()) | {"mask_token": torch.zeros(1, 1, 864)},
}  # fmt: skip
