"""What is known of a device and its links: the shipped table of data-sheet figures, or a file of your own."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

from ...data.config import CONFIGS, read_yaml, structured
from ...data.errors import ConfigError, nearest

TABLE = CONFIGS / "plan" / "devices.yaml"


@dataclass(kw_only=True)
class Device:
    """One device. Rates are by 10^12 operations and 10^9 bytes a second, in one direction."""

    name: str = ""
    source: str = "own figures"
    bf16_tflops: float = 0.0  # dense
    fp32_tflops: float = 0.0
    memory_gb: float = 0.0
    memory_gb_s: float = 0.0
    watts: float = 0.0
    link_gb_s: float = 0.0  # between the devices of a node, for each of them
    network_gb_s: float = 0.0  # between nodes, for each device
    link_us: float = 3.0
    network_us: float = 8.0
    efficiency: float = 0.8  # share of a link's rate that a collective reaches
    overlap: float = 0.8  # share of the computing time beside which it can run
    host_gb_s: float = 25.0

    def peak(self, precision: str) -> float:
        """Operations a second in Lightning's precision."""
        half = precision.split("-")[0] in ("bf16", "16")
        return 1e12 * (self.bf16_tflops if half else self.fp32_tflops)

    @property
    def bytes(self) -> float:
        """Of its memory."""
        return 1e9 * self.memory_gb


def load_device(name_or_file: str) -> Device:
    """A device of the table by its name, or the one that a YAML file describes (the same keys).

    Raises:
        ConfigError: unknown name, unreadable file, unknown key, a rate that is not above 0.
    """
    if name_or_file.endswith((".yaml", ".yml")):
        device = structured(Device, Path(name_or_file))
        device.name = device.name or Path(name_or_file).stem
    else:
        table = read_yaml(TABLE)
        known = table["devices"]
        if name_or_file not in known:
            raise ConfigError(
                f"--device {name_or_file}: unknown{nearest(name_or_file, set(known))}; or a YAML file with "
                f"the keys of {TABLE.name}"
            )
        device = structured(
            Device, {**table["defaults"], **known[name_or_file], "name": name_or_file}, where=str(TABLE)
        )
    wrong = [f.name for f in fields(device) if f.type == "float" and getattr(device, f.name) < 0]
    rates = ("memory_gb", "memory_gb_s", "link_gb_s", "network_gb_s", "efficiency", "host_gb_s")
    wrong += [name for name in rates if not getattr(device, name) > 0]
    if wrong:
        raise ConfigError(f"{name_or_file}: {', '.join(wrong)} must be above 0")
    return device
