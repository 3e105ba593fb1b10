"""Log lines while patches are computed."""

import builtins
import itertools

import pytest

from milcore.runtime.progress import EpochProgress, PatchProgress, log_line, printable, track


def test_patches_per_second_and_the_time_left_count_computed_patches_only(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """1,000 patches, 200 of them skipped: 60 computed 3 s after the first are 20/s, and 680 are left, 34 s of work."""
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
    assert capsys.readouterr().err == "encode: 321/1000 patches, 1.05/s, 10:46 min to go\n"


@pytest.mark.parametrize("wait_s", [0.0, 600.0])
def test_the_wait_for_workers_is_none_of_the_time_left(
    wait_s: float, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of 1,000 patches and of 100 slides a tenth a second, whenever the first tenth came: 8 tenths, 8 s left."""
    clock = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    monkeypatch.setattr("milcore.runtime.progress.SECONDS_BETWEEN_LINES", (0.5, 0.5))
    lines, slides = PatchProgress("encode", 1000), track(range(100), "ingest", 100)
    clock[0] += wait_s
    lines.show(100, 0)
    next(slides)
    clock[0] += 1.0
    lines.show(100, 0)
    for _ in range(10):  # the first of them counts the one before it
        clock[0] += 0.1
        next(slides)
    patches, *_, of_slides = capsys.readouterr().err.splitlines()
    assert patches == "encode: 200/1000 patches, 100/s, 0:08 min to go"
    assert "10/s" in of_slides
    assert of_slides.endswith("about 9 s left")


def test_hours_of_work_are_some_hundred_lines_and_the_first_and_last_epoch_are_among_them(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An epoch a second for three hours: a line every five seconds at first, one a minute at the end."""
    clock, epochs = [0.0], 3 * 3600
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    progress = EpochProgress(epochs)
    metrics = dict.fromkeys(("train_loss", "val_loss", "val_auroc", "train_bags_per_sec", "train_waiting"), 1.0)
    for epoch in range(epochs):
        clock[0] += 1.0
        progress.show(epoch, metrics)
    shown = [int(line.split()[1].split("/")[0]) for line in capsys.readouterr().err.splitlines()]
    assert (shown[:4], shown[-1]) == ([1, 6, 11, 16], epochs)
    assert max(b - a for a, b in itertools.pairwise(shown)) == 60
    assert len(shown) < 220


def test_the_time_left_of_training_does_not_count_the_wait_before_its_first_epoch(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ten minutes until the bags are loaded, then ten seconds an epoch: after 7 of 20 epochs 130 s are left."""
    clock = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    progress = EpochProgress(20)
    metrics = dict.fromkeys(("train_loss", "val_loss", "val_auroc", "train_bags_per_sec", "train_waiting"), 1.0)
    for epoch in range(7):
        clock[0] = 600.0 + 10.0 * epoch
        progress.show(epoch, metrics)
    first, last = capsys.readouterr().err.splitlines()
    assert first.endswith("600 s")
    assert last.endswith("660 s, at most 130 s left")


def test_a_line_holds_no_control_characters(capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing that data says moves the cursor, hides text, turns its direction or begins a line."""
    log_line("slide \x1b[2J\x1b]0;title\x07 a\r\nmilcore: all is well\x00\x7f\x9b1m \u202eevil\u2066 \u2028 \ud800 µ é")
    assert capsys.readouterr().err == (
        r"slide \x1b[2J\x1b]0;title\x07 a\r\nmilcore: all is well\x00\x7f\x9b1m \u202eevil\u2066 \u2028 \ud800 µ é"
        "\n"
    )


def test_every_control_character_is_escaped_and_no_letter() -> None:
    for code in (*range(0x20), *range(0x7F, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A)):
        assert printable(chr(code)).startswith("\\")
    assert printable("".join(map(chr, range(0xA0, 0x300)))) == "".join(map(chr, range(0xA0, 0x300)))


def test_a_notebook_gets_the_lines_of_a_log(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> None:
    """Not a bar, which needs widgets and would say so in every saved notebook that lacks them."""
    shell = type("ZMQInteractiveShell", (), {})
    monkeypatch.setattr(builtins, "get_ipython", shell, raising=False)
    monkeypatch.setenv("FORCE_COLOR", "1")
    clock = itertools.count(0.0, 1.5)
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    assert list(track("abcd", "ingest", 4)) == list("abcd")
    shown = capsys.readouterr()
    assert shown.out == ""
    assert [line.split(",")[0] for line in shown.err.splitlines()] == ["ingest: 2/4", "ingest: 4/4"]
    assert "\x1b" not in shown.err
    assert [str(warning.message) for warning in recwarn] == []
