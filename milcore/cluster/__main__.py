"""Entry point of a Ray job: one step on a prepared folder.

``python -m milcore.cluster ingest STORE | encode STORE | train RUN | tune OUT | predict OUT``
"""

import argparse
import sys
from collections.abc import Sequence

from milcore.cluster.jobs.heartbeat import SECONDS_WITHOUT_HEARTBEAT, exit_without_heartbeat
from milcore.cluster.launch import encode_with, field_flag, ingest_with, predict_with, train_with, tune_with
from milcore.config import Config, EncodeConfig, IngestConfig, LaunchConfig, pick
from milcore.runtime.command import exit_codes

FOLDERS = {"ingest": "STORE", "encode": "STORE", "train": "RUN", "tune": "OUT", "predict": "OUT"}
# steps that prepare nothing in their folder: settings come as flags
CONFIGS: dict[str, type[Config]] = {"ingest": IngestConfig, "encode": EncodeConfig}


def main(arguments: Sequence[str]) -> None:
    """Run one step; an error becomes one logged line and its exit code."""
    values = vars(_parser().parse_args(arguments))
    step, uri = values.pop("step"), values.pop("uri")
    with exit_codes():
        launch = pick(LaunchConfig, values)
        if values["heartbeat"]:
            exit_without_heartbeat(values["heartbeat"], values["heartbeat_seconds"])
        if values["scale_up_seconds"] is not None:
            _set_scale_up_timeout(values["scale_up_seconds"])
        if step == "ingest":
            ingest_with(uri, pick(IngestConfig, values), launch)
        elif step == "encode":
            encode_with(uri, pick(EncodeConfig, values), launch)
        elif step == "tune":
            tune_with(uri, launch)
        elif step == "predict":
            predict_with(uri, launch)
        else:
            train_with(uri, launch)


def _set_scale_up_timeout(seconds: float) -> None:
    from milcore.cluster.workers.capacity import set_scale_up_timeout  # noqa: PLC0415 - importing Ray takes seconds

    set_scale_up_timeout(seconds)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m milcore.cluster", description=__doc__)
    steps = parser.add_subparsers(dest="step", required=True)
    for step, folder in FOLDERS.items():
        command = steps.add_parser(step)
        command.add_argument("uri", metavar=folder)
        command.add_argument("--workers", type=int, default=LaunchConfig().workers)
        command.add_argument("--use-gpu", action="store_true")
        command.add_argument("--ray-address", default="auto", help="address of Ray (auto: the cluster of this job)")
        command.add_argument("--heartbeat", help="URI of the heartbeat that this job's follower writes")
        command.add_argument(
            "--heartbeat-seconds",
            type=float,
            default=SECONDS_WITHOUT_HEARTBEAT,
            help="seconds without a heartbeat after which this job exits",
        )
        command.add_argument(
            "--scale-up-seconds", type=float, help="seconds without room for a worker after which this job gives up"
        )
        if step in CONFIGS:
            _add_config_flags(command, CONFIGS[step])
    return parser


def _add_config_flags(command: argparse.ArgumentParser, kind: type[Config]) -> None:
    """Add a flag for every field of a config.

    The config parses the values and has the defaults.
    """
    for name, field in kind.model_fields.items():
        description = (field.description or "").replace("%", "%%")
        command.add_argument(field_flag(name), default=argparse.SUPPRESS, help=description)


if __name__ == "__main__":
    main(sys.argv[1:])
