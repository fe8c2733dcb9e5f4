"""A pretrained encoder of MONAI's networks: `load(folder)`, then `pooled, tokens = model(images)`.

Needs MONAI, torch and safetensors, and encoder.json with encoder.safetensors in the folder. Images are float
[B, C, D, H, W] ([B, C, H, W] for a 2D network) with sides that are multiples of the patch, normalised as the
model card says. `pooled` is [B, E], `tokens` [B, N, E], row-major over (D, H, W). Names of the tensors are
MONAI's, so that a whole SwinUNETR, SegResNet or ResNet takes them too: `load_state_dict(..., strict=False)`.
Written by medloom (Apache-2.0), whose encoders swin3d, segresnet and resnet3d it computes.
"""

import json
from functools import partial
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor, nn

RESNETS = {
    10: ("basic", [1, 1, 1, 1]), 18: ("basic", [2, 2, 2, 2]), 34: ("basic", [3, 4, 6, 3]),
    50: ("bottleneck", [3, 4, 6, 3]), 101: ("bottleneck", [3, 4, 23, 3]),
    152: ("bottleneck", [3, 8, 36, 3]), 200: ("bottleneck", [3, 24, 36, 3]),
}  # fmt: skip


class Encoder(nn.Module):
    """The encoder of MONAI's network that `encoder.json` describes."""

    def __init__(self, name: str, arguments: dict[str, Any]) -> None:
        super().__init__()
        self.name, self.rescale = name, arguments.get("rescale")
        for part, module in PARTS[name](arguments).items():
            setattr(self, part, module)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if self.rescale is not None:  # another range of intensities, as the network was trained with
            x = x * self.rescale[0] + self.rescale[1]
            x = x.clamp(*self.rescale[2:]) if len(self.rescale) == 4 else x
        x = self._swin(x) if self.name == "swin3d" else self._convolve(x)
        tokens = x.flatten(2).transpose(1, 2)
        return tokens.mean(1), tokens

    def _swin(self, x: Tensor) -> Tensor:
        network: Any = self.swinViT
        x = network.patch_embed(x)
        for stage in range(1, 5):
            if hasattr(network, f"layers{stage}c") and len(getattr(network, f"layers{stage}c")):
                x = getattr(network, f"layers{stage}c")[0](x.contiguous())
            if len(getattr(network, f"layers{stage}")):
                x = getattr(network, f"layers{stage}")[0](x.contiguous())
        return network.proj_out(x, True)

    def _convolve(self, x: Tensor) -> Tensor:
        for module in self.children():
            for layer in module if isinstance(module, nn.ModuleList) else [module]:
                x = layer(x)
        return x


def swin(arguments: dict[str, Any]) -> dict[str, nn.Module]:
    """The Swin transformer of SwinUNETR."""
    from monai.networks.nets.swin_unetr import SwinTransformer

    network = SwinTransformer(
        in_chans=arguments["in_channels"], embed_dim=arguments["feature_size"],
        window_size=arguments["window"], patch_size=arguments["patch_size"], depths=arguments["depths"],
        num_heads=arguments["num_heads"], downsample=arguments.get("downsample", "merging"),
        spatial_dims=3, use_v2=arguments.get("residual", False),
    )  # fmt: skip
    return {"swinViT": network}


def segresnet(arguments: dict[str, Any]) -> dict[str, nn.Module]:
    """The downward half of SegResNet."""
    from monai.networks.nets.segresnet import SegResNet

    norm: Any = ("GROUP", {"num_groups": arguments["groups"]})
    network: Any = SegResNet(
        spatial_dims=arguments["ndim"], init_filters=arguments["filters"],
        in_channels=arguments["in_channels"], norm=norm if arguments.get("norm") != "batch" else "BATCH",
        blocks_down=tuple(arguments["blocks"]), blocks_up=(),
    )  # fmt: skip
    return {"convInit": network.convInit, "down_layers": network.down_layers}


def resnet(arguments: dict[str, Any]) -> dict[str, nn.Module]:
    """ResNet without its classifier."""
    from monai.networks.nets.resnet import ResNet

    block, layers = RESNETS[arguments["depth"]]
    network: Any = ResNet(
        block=block, layers=layers, block_inplanes=[64, 128, 256, 512], spatial_dims=arguments["ndim"],
        n_input_channels=arguments["in_channels"], conv1_t_stride=arguments["stem_stride"],
        shortcut_type=arguments["shortcut"], widen_factor=arguments["width"], feed_forward=False,
        bias_downsample=arguments["shortcut_bias"],
    )  # fmt: skip
    if arguments["dilated"]:  # as MedicalNet: the last two stages keep the resolution of the second
        dilate(network.layer3, 2)
        dilate(network.layer4, 4)
    parts = ("conv1", "bn1", "act", "maxpool", "layer1", "layer2", "layer3", "layer4")
    return {part: getattr(network, part) for part in parts}


def dilate(layer: nn.Module, rate: int) -> None:
    """A stage at the resolution of its input, its wide kernels dilated."""
    for module in layer.modules():
        held: Any = module
        shortcut = getattr(module, "downsample", None)
        if isinstance(shortcut, partial):
            held.downsample = partial(shortcut.func, **{**shortcut.keywords, "stride": 1})
        if isinstance(module, nn.Conv2d | nn.Conv3d):
            held.stride = (1,) * len(held.kernel_size)
            if max(held.kernel_size) > 1:
                held.dilation = held.padding = (rate,) * len(held.kernel_size)


PARTS = {"swin3d": swin, "segresnet": segresnet, "resnet3d": resnet}


def load(folder: str = ".") -> Encoder:
    """The encoder in a folder, ready for inference."""
    record = json.loads((Path(folder) / "encoder.json").read_text())
    model = Encoder(record["architecture"]["name"], record["architecture"]["args"])
    model.load_state_dict(load_file(Path(folder) / record["file"]))
    return model.eval()
