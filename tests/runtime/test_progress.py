"""Log lines while patches are computed."""

import pytest

from milcore.runtime.progress import PatchProgress


def test_patches_per_second_and_the_time_left_count_computed_patches_only(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """1,000 patches, 200 of them skipped: 120 computed in 6 s are 20/s, and 680 are left, 34 s of work."""
    clock = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    lines = PatchProgress("encode", 1000)
    lines.show(0, 200)
    clock[0] = 103.0
    lines.show(60, 0)
    assert capsys.readouterr().err == "", "a line every five seconds, not more"
    clock[0] = 106.0
    lines.show(60, 0)
    assert capsys.readouterr().err == "encode: 320/1000 patches, 20/s, 0:34 min to go\n"
    clock[0] = 161.0
    lines.show(1, 0)
    assert capsys.readouterr().err == "encode: 321/1000 patches, 1.98/s, 5:42 min to go\n"
