"""A CPU that only emulates bf16 is told before hours are spent on it."""

import pytest
import torch

from milcore.encoders.precision import emulates_bf16, warn_of_emulation

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("capabilities", "emulates"),
    [
        ({"avx2": True, "avx512_bf16": False, "amx_bf16": False}, True),
        ({"avx512_bf16": True, "amx_bf16": False}, False),
        ({"amx_bf16": True}, False),
        ({"neon": True, "bf16": True}, False),  # ARM
    ],
)
def test_bf16_is_emulated_without_its_instructions(
    capabilities: dict[str, bool], emulates: bool, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert emulates_bf16(CPU) == emulates
    assert not emulates_bf16(torch.device("cuda"))
    warn_of_emulation("fp32", CPU)
    assert capfd.readouterr().err == ""
    warn_of_emulation("bf16", CPU)
    assert ("emulates them, many times slower than fp32" in capfd.readouterr().err) == emulates
