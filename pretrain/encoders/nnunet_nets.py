"""Parts of dynamic-network-architectures, the networks of nnU-Net, with an error for users without it."""

from __future__ import annotations

import importlib
from typing import Any

from ...data.errors import ConfigError


def nnunet_part(encoder: str, module: str, name: str) -> Any:
    """`name` of dynamic_network_architectures.`module`, for the encoder of that name.

    Raises:
        ConfigError: the package is not installed, with the command that installs it.
    """
    try:
        return getattr(importlib.import_module(f"dynamic_network_architectures.{module}"), name)
    except ImportError as error:
        raise ConfigError(
            f"encoder {encoder} needs the networks of nnU-Net ({error}): pip install 'medloom[nnunet]'"
        ) from error
