"""What a training run reads: one typed section, checked when it is built, every message with its mend."""

from __future__ import annotations

from dataclasses import dataclass, field

from .errors import ConfigError


@dataclass(kw_only=True)
class StreamConfig:
    """What a training run reads. Numbers are global unless they say otherwise."""

    shards: str = ""  # folder with manifest.json
    ndim: int = 2  # 2 reads the images, 3 the volumes; one step has one shape class on all ranks
    crop: list[int] = field(default_factory=lambda: [224, 224])  # output size in pixels, (H, W) or (D, H, W)
    batch_size: int = 256  # global: samples an optimiser step, over all ranks and accumulation
    channels: int | None = (
        None  # channels the encoder sees; None: 3 for images, 1 for volumes (`in_channels`)
    )
    crop_scale: list[float] = field(default_factory=lambda: [0.4, 1.0])  # 2D: share of the image's area
    aspect: list[float] = field(default_factory=lambda: [0.75, 4 / 3])  # 2D: width / height of the box
    foreground: float = 0.5  # 3D: share of the crops that are centred on a brick with tissue
    snap: int = 32  # 3D: origins are multiples of this many voxels where the volume is larger; 1: any origin
    alpha: float = 0.5  # a source of N samples is drawn with probability ~ N^alpha; 1: by size, 0: all alike
    window: int | None = None  # shards shuffled together; None: all of a source (right for local disks)
    weights: dict[str, float] = field(
        default_factory=dict
    )  # factor on the probability of a source or dataset
    seed: int = 0  # of the order, the crops and the views
    workers: int = 2  # loader processes a rank; 0 reads in the training process
    prefetch: int = 2  # batches a worker reads ahead
    sources: list[str] = field(default_factory=list)  # dataset or source ids to read; empty: all
    exclude: list[str] = field(default_factory=list)  # dataset or source ids to leave out
    failure_budget: int = 100  # unreadable samples of one source, in one worker, before the run stops

    @property
    def in_channels(self) -> int:
        """Channels of the image that the encoder sees: `channels`, or 3 for images and 1 for volumes."""
        return self.channels if self.channels is not None else (3 if self.ndim == 2 else 1)

    def check(self) -> None:
        """Refuse values that contradict each other. Raises ConfigError naming the key and the mend."""
        if self.ndim not in (2, 3):
            raise ConfigError(f"data.ndim is {self.ndim}: write 2 (images) or 3 (volumes)")
        if len(self.crop) != self.ndim or min(self.crop) < 1:
            example = "[224, 224]" if self.ndim == 2 else "[96, 96, 96]"
            raise ConfigError(f"data.crop {list(self.crop)} is no size in {self.ndim}D: write e.g. {example}")
        low, high = self.crop_scale if len(self.crop_scale) == 2 else (0.0, 0.0)
        if not 0 < low <= high <= 1:
            raise ConfigError(
                f"data.crop_scale {list(self.crop_scale)}: write two shares, 0 < low <= high <= 1"
            )
        low, high = self.aspect if len(self.aspect) == 2 else (0.0, 0.0)
        if not 0 < low <= high:
            raise ConfigError(f"data.aspect {list(self.aspect)}: write two ratios with 0 < low <= high")
        for name, least in (
            ("batch_size", 1),
            ("snap", 1),
            ("workers", 0),
            ("prefetch", 1),
            ("failure_budget", 0),
        ):
            if getattr(self, name) < least:
                raise ConfigError(f"data.{name} is {getattr(self, name)}: it must be at least {least}")
        if not 0 <= self.foreground <= 1:
            raise ConfigError(f"data.foreground is {self.foreground}: it is a share, 0 to 1")
        if not 0 <= self.alpha <= 1:
            raise ConfigError(
                f"data.alpha is {self.alpha}: it lies between 0 (all sources alike) and 1 (by size)"
            )
        if self.channels is not None and self.channels < 1:
            raise ConfigError(f"data.channels is {self.channels}: write at least 1, or leave it out")
        if self.window is not None and self.window < 1:
            raise ConfigError(
                f"data.window is {self.window}: write at least 1 shard, or leave it out for all"
            )
