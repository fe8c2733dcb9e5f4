"""What every encoder promises: `Features` out, a keep-index in, layer groups for layer-wise decay.

An encoder knows nothing of objectives and nothing of Lightning. It owns its configuration as a nested
dataclass (`ViT.Config`), whose fields are the YAML keys of the `encoder` section, and it is built from that
dataclass alone: the same dataclass, written to `encoder.json`, rebuilds it years later. The price is that
a field may only hold what OmegaConf and JSON both hold.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from torch import Tensor, nn

from ...data.errors import ConfigError
from .patches import Wanted


@dataclass(slots=True)
class Features:
    """What an encoder says about a batch.

    `tokens` are the patch tokens only, without class and register tokens, in row-major order of `grid`.
    `grid` is None when there is only a part of the tokens: with `keep`, tokens[:, i] belongs to the patch
    keep[:, i]. `pyramid` goes from fine to coarse for a convolutional network; for a plain
    transformer it holds four depths of one grid, the last being `tokens` themselves.
    """

    pooled: Tensor  # [B, E]
    tokens: Tensor  # [B, N, E]; of `some` what its `only` picks
    grid: tuple[int, ...] | None = None
    pyramid: list[Tensor] | None = None  # each [B, E_i, *grid_i]


class Hide(NamedTuple):
    """Tokens to be replaced behind the patch embedding, for objectives whose encoder sees all positions."""

    mask: Tensor  # bool [B, N] over the token grid, True where the token is replaced
    token: Tensor  # [1, 1, token_dim], what replaces it; positions are added to it as to any other token


class Encoder(nn.Module):
    """Base of the encoders. Subclasses set the attributes below in their constructor."""

    Config: ClassVar[type[Any]]

    config: Any
    embed_dim: int  # E of `pooled` and `tokens`
    patch_size: tuple[int, ...]  # pixels of one token, (H, W) or (D, H, W)
    ndim: int  # spatial axes: 2 or 3
    in_channels: int
    supports_keep: bool = False  # True: `keep` computes visible tokens only
    supports_hide: bool = False  # True: `hide` replaces tokens behind the patch embedding
    convolutional: bool = False  # True: can run under `encoders.sparse.sparse`, hidden places left out
    recompute: bool = False  # True: blocks are computed again in the backward pass, to save memory
    stem: str  # name of the weight [E, C, *kernel] that meets the input channels
    inner: str = ""  # prefix of our names that the artefact leaves out, so that a plain library reads it

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config

    @property
    def axes(self) -> tuple[int, ...]:
        """Numbers of spatial axes that the encoder takes."""
        return (self.ndim,)

    @property
    def stems(self) -> tuple[str, ...]:
        """Names of all weights that meet the input channels: `stem`, and others like it."""
        return (self.stem,)

    @property
    def token_dim(self) -> int:
        """Channels of a token behind the patch embedding, where `hide` replaces it."""
        return self.embed_dim

    def patch_of(self, ndim: int) -> tuple[int, ...]:
        """Pixels of one token of an image with `ndim` spatial axes."""
        return self.patch_size

    def forward(
        self, x: Tensor, keep: Tensor | None = None, pyramid: bool = False, hide: Hide | None = None
    ) -> Features:
        """Encode images [B, C, *spatial], float, normalised.

        Args:
            x: spatial sizes must be multiples of `patch_size`.
            keep: int64 [B, K], the patches to compute; only where `supports_keep`.
            pyramid: also return `Features.pyramid`; not together with `keep`.
            hide: tokens to replace; only where `supports_hide`, and not together with `keep`.

        Raises:
            ConfigError: sizes or channels that do not fit, keep or hide where it is not supported.
        """
        raise NotImplementedError

    def some(self, x: Tensor, only: Wanted, keep: Tensor | None = None, hide: Hide | None = None) -> Features:
        """What `forward(x, keep, hide=hide)` gives, with those `tokens` alone that `only` picks.

        Encoders that can leave out what nothing else needs do.
        """
        found = self(x, keep, hide=hide)
        return Features(found.pooled, only.pick(found.tokens))

    def embed(self, x: Tensor, keep: Tensor | None = None) -> Tensor:
        """What `forward(x, keep).pooled` is, [B, E], without computing what only other features need."""
        return self.some(x, Wanted.none(len(x), x.device), keep).pooled

    def last(self, x: Tensor, count: int) -> list[Features]:
        """Features behind each of the last `count` blocks; the last of them are the encoder's output.

        A plain transformer norms each as its output (DINOv2's `get_intermediate_layers`, arXiv 2304.07193);
        here blocks are the maps of the pyramid, with the mean of a map for `pooled`. Fewer where there are
        not so many.
        """
        found = self(x, pyramid=True)
        levels = (found.pyramid or [])[:-1][-(count - 1) :] if count > 1 else []
        cells = [level.flatten(2).transpose(1, 2) for level in levels]
        grids = [tuple(level.shape[2:]) for level in levels]
        return [*(Features(c.mean(dim=1), c, grid) for c, grid in zip(cells, grids, strict=True)), found]

    def layer_groups(self) -> list[list[tuple[str, nn.Parameter]]]:
        """Parameters by depth, from the input to the output: [embedding, block 0, ..., last norm].

        Every parameter is in exactly one group; names are those of `named_parameters`.
        """
        raise NotImplementedError

    def units(self) -> list[nn.Module]:
        """Modules that run as one, each called once in a pass: what sharded training gathers at a time.

        The rest (embeddings, norms) is gathered with the encoder itself.
        """
        return []

    def added(self) -> list[nn.Parameter]:
        """Parameters that no pretraining gave, which fine-tuning trains at the rate of a head."""
        return []

    def adopt(self, tensors: dict[str, Tensor], source: Encoder) -> list[str]:
        """Rename tensors of another family's encoder to this one's names, in place; returns what was done.

        Shapes are adapted afterwards (transfer.py); names are artefact names, without `inner`.
        """
        return []

    def to_file(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Tensors by artefact name, under the names that the library expects in a file."""
        return tensors

    def from_file(self, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """What `to_file` did, undone; tensors that already have their names are left alone."""
        return tensors

    def timm_config(self) -> dict[str, Any] | None:
        """config.json for `timm.create_model("local-dir:FOLDER")`; None when timm has no such network."""
        return None

    def grid(self, spatial: Sequence[int]) -> tuple[int, ...]:
        """Token grid of an image of `spatial` pixels. Raises ConfigError when a side is not a multiple."""
        name = getattr(self.config, "name", type(self).__name__)
        if len(spatial) not in self.axes:
            takes = " and ".join(f"{n}D" for n in self.axes)
            raise ConfigError(
                f"encoder {name} takes {takes} images, but these have {len(spatial)} axes "
                f"({'×'.join(map(str, spatial))}): choose a {len(spatial)}D encoder or a {takes} crop"
            )
        patch = self.patch_of(len(spatial))
        wrong = [s for s, p in zip(spatial, patch, strict=True) if s % p or s < p]
        if wrong:
            near = [max(p, round(s / p) * p) for s, p in zip(spatial, patch, strict=True)]
            raise ConfigError(
                f"image of {'×'.join(map(str, spatial))} is not a multiple of the patch "
                f"{'×'.join(map(str, patch))} of encoder {name}: crop {'×'.join(map(str, near))}"
            )
        return tuple(int(s) // p for s, p in zip(spatial, patch, strict=True))

    def check(
        self, x: Tensor, keep: Tensor | None = None, pyramid: bool = False, hide: Hide | None = None
    ) -> tuple[int, ...]:
        """Refuse what `forward` cannot take, and return the token grid."""
        grid = self.grid(x.shape[2:])
        if x.shape[1] != self.in_channels:
            raise ConfigError(
                f"encoder takes {self.in_channels} channels, the images have {x.shape[1]}: "
                f"set data.channels={self.in_channels} or encoder.in_channels={x.shape[1]}"
            )
        if keep is not None and not self.supports_keep:
            raise ConfigError(
                f"encoder {self.config.name} cannot compute a part of the tokens: mask its input"
            )
        if hide is not None and not self.supports_hide:
            raise ConfigError(f"encoder {self.config.name} has no tokens to replace: blank its input")
        if keep is not None and hide is not None:
            raise ConfigError("keep leaves tokens out and hide replaces them: give one of them")
        if keep is not None and pyramid:
            raise ConfigError("a pyramid needs all tokens: leave out keep or pyramid")
        return grid


def depths_of_pyramid(depth: int) -> list[int]:
    """Four block indices spread evenly over `depth` blocks, the last one included (UNETR's choice)."""
    return [max(0, round(depth * part / 4) - 1) for part in (1, 2, 3, 4)]
