"""Where heads and scores are computed: in float64, which not every device has."""

from __future__ import annotations

import torch


def device_with_float64(device: torch.device) -> torch.device:
    """The device itself, or the CPU where it has no float64, as Apple's GPUs have none."""
    return torch.device("cpu") if device.type == "mps" else device
