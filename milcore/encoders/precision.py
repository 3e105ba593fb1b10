"""Processors with products in bf16, and those that only emulate them."""

import torch

from milcore.runtime.progress import log_line


def emulates_bf16(device: torch.device) -> bool:
    """True where a device has no bf16 products and emulates them, slower than fp32."""
    capabilities = torch.cpu.get_capabilities()
    return device.type == "cpu" and not any(capabilities.get(name) for name in ("amx_bf16", "avx512_bf16", "bf16"))


def warn_of_emulation(precision: str, device: torch.device) -> None:
    """Log a warning where precision bf16 would be emulated."""
    if precision == "bf16" and emulates_bf16(device):
        log_line(
            "warning: precision bf16: this CPU has no bf16 products and emulates them, many times slower than fp32"
        )
