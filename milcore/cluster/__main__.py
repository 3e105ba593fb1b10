"""``python -m milcore.cluster train RUN | tune OUT | encode STORE``: what a Ray job runs; the folders are prepared."""

import argparse
import sys
from collections.abc import Sequence

from milcore.cluster.jobs.heartbeat import SECONDS_WITHOUT, end_without
from milcore.cluster.launch import encode_with, train_with, tune_with
from milcore.config import EncodeConfig, LaunchConfig, pick
from milcore.errors import MILError
from milcore.runtime.progress import log_line


def main(arguments: Sequence[str]) -> int:
    """Run one step; the exit code, after one clear line if it failed."""
    given = vars(_parser().parse_args(arguments))
    step, uri = given.pop("step"), given.pop("uri")
    try:
        launch = pick(LaunchConfig, given)
        if given["heartbeat"]:
            end_without(given["heartbeat"], given["heartbeat_seconds"])
        if step == "encode":
            encode_with(uri, pick(EncodeConfig, given), launch)
        elif step == "tune":
            tune_with(uri, launch)
        else:
            train_with(uri, launch)
    except MILError as error:
        log_line(f"milcore: {' '.join(str(error).splitlines())}")
        return error.exit_code
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m milcore.cluster", description=__doc__)
    steps = parser.add_subparsers(dest="step", required=True)
    for step, folder in (("train", "RUN"), ("tune", "OUT"), ("encode", "STORE")):
        command = steps.add_parser(step)
        command.add_argument("uri", metavar=folder)
        command.add_argument("--workers", type=int, default=LaunchConfig().workers)
        command.add_argument("--use-gpu", action="store_true")
        command.add_argument("--ray-address", default="auto", help="the cluster the job runs on, unless told otherwise")
        command.add_argument("--heartbeat", help="URI of what whoever waits for this job keeps changing")
        command.add_argument("--heartbeat-seconds", type=float, default=SECONDS_WITHOUT, help="end this job without it")
        if step == "encode":
            command.add_argument("--encoder", default=EncodeConfig().encoder)
            command.add_argument("--name", default=None)
            command.add_argument("--patches-per-batch", type=int, default=EncodeConfig().patches_per_batch)
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
