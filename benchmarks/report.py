"""Size of a report, and the time that Chromium takes to open it.

``python -m benchmarks.report [--slides 24 500 10000] [--rounds N] [--json]``

A made-up report (the one of the tests: pictures of noise, which compress worse than tissue) is written to disk and
opened in headless Chromium from Debian's packages, each round in a fresh profile. Time: from the request to the end of
the load event, by the page's own clock, and to the first frame after it, in which the top of the page is drawn. Medians
and the range over the rounds. The target at 500 slides: below 3 s and 150 MB; at 10,000: below 100 MB.
"""

import argparse
import json
import shutil
import statistics
import tempfile
from pathlib import Path

from selenium.webdriver import Chrome, ChromeOptions, ChromeService

from milcore.evaluation.report import render
from tests.chromium import FLAGS
from tests.evaluation.report.example import example

FRAME = "const done = arguments[0]; requestAnimationFrame(() => setTimeout(() => done(performance.now()), 0))"


def main() -> None:
    """Print a row per size."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--slides", type=int, nargs="+", default=[24, 500, 10_000])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    options = parser.parse_args()
    rows = [measure(slides, options.rounds) for slides in options.slides]
    print("| slides | file, MB | load, s (range) | first frame, s (range) |\n|---|---|---|---|")
    for row in rows:
        spans = (f"{row[name][1]:.2f} ({row[name][0]:.2f}-{row[name][2]:.2f})" for name in ("load_s", "frame_s"))
        print(f"| {row['slides']} | {row['file_mb']:.1f} | {' | '.join(spans)} |")
    if options.json:
        print(json.dumps(rows))


def measure(slides: int, rounds: int) -> dict[str, object]:
    """Size and times of one report; each time as (least, median, most)."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "report.html")
        path.write_text(render(example(slides)), encoding="utf-8")
        times = [open_once(path, Path(folder, f"profile{k}")) for k in range(rounds)]
        loads, frames = zip(*times, strict=True)
        return {
            "slides": slides,
            "file_mb": path.stat().st_size / 1e6,
            "load_s": (min(loads), statistics.median(loads), max(loads)),
            "frame_s": (min(frames), statistics.median(frames), max(frames)),
        }


def open_once(path: Path, profile: Path) -> tuple[float, float]:
    """Seconds to the end of the load event and to the frame after it."""
    options = ChromeOptions()
    for flag in (*FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.binary_location = str(shutil.which("chromium"))
    browser = Chrome(options=options, service=ChromeService(str(shutil.which("chromedriver"))))
    try:
        browser.get(path.as_uri())
        timing = browser.execute_script("return performance.getEntriesByType('navigation')[0].loadEventEnd")
        return timing / 1000, browser.execute_async_script(FRAME) / 1000
    finally:
        browser.quit()


if __name__ == "__main__":
    main()
