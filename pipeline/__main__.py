"""``python -m pipeline compile | run | submit``.

YAML for the Kubeflow UI, a run on this machine, a run on a cluster.

``compile`` and ``submit`` take ``--pipeline attention-mil | attention-mil-sweep | attention-mil-predict``.
"""

import argparse
import builtins
import contextlib
import os
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import docstring_parser
from kfp import compiler, local
from kfp.dsl.base_component import BaseComponent

from components import IMAGE
from milcore import api
from milcore.config import Target
from milcore.errors import InputError, MILError
from pipeline.console import StepConsole
from pipeline.dag import NAME, attention_mil
from pipeline.predict import predict
from pipeline.steps import PARALLEL, variant
from pipeline.submission import submit_pipeline
from pipeline.sweep import sweep

PIPELINES: dict[str, BaseComponent] = {pipeline.name: pipeline for pipeline in (attention_mil, sweep, predict)}
FOLDER = Path(__file__).parent


def main(arguments: Sequence[str]) -> int:
    """Run one of the three; the exit code, an error's after its one line."""
    given = vars(_parser(_chosen(arguments)).parse_args(arguments))
    try:
        with api.one_line_errors("pipeline"):
            given.pop("action")(given)
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


def compile_pipeline(given: dict[str, Any]) -> None:
    """Write the YAML for the Kubeflow UI, of one pipeline or of all."""
    one = given["pipeline"] or (NAME if given["out"] else None)
    names = [one] if one else list(PIPELINES)
    for name in names:
        out = given["out"] or str(FOLDER / f"{name.replace('-', '_')}.yaml")
        compiler.Compiler().compile(variant(PIPELINES[name], image=given["image"], parallel=given["parallel"]), out)
        print(out)


def run(given: dict[str, Any]) -> None:
    """Run the pipeline's steps on this machine, one process each; the same run_uri resumes.

    The console shows steps, progress and result; the runner's own lines are in the log file.
    """
    api.check_settings(given, given["settings"])
    api.check_manifest(given["manifest"], given["positive"] or None)
    # the runner warns of images that may lack the steps' package; here the steps import this very one
    warnings.filterwarnings("ignore", message="You may be attemp", category=RuntimeWarning)
    warnings.filterwarnings("ignore", message="Task .* settings", category=UserWarning)  # CPUs and memory of pods
    log = Path(given["log"] or Path(tempfile.gettempdir(), f"milcore-pipeline-{time.strftime('%Y%m%d-%H%M%S')}.log"))
    print(f"log: {log}")
    with tempfile.TemporaryDirectory() as root, _logged(log), _own_print(), _steps_that_end(root):
        local.init(local.SubprocessRunner(use_venv=False), pipeline_root=given["pipeline_root"] or root)
        try:
            # none: the runner would wait minutes for what fails here as before
            variant(attention_mil, retries=0)(**_arguments(attention_mil, given))
        except RuntimeError as error:
            raise MILError(
                f"{error}; its reason stands above, all lines in {log}; the same command goes on from what is done"
            ) from error
    _print_result(given["run_uri"])


@contextlib.contextmanager
def _logged(log: Path) -> Iterator[None]:
    """Log all that is printed, and show a person's part of it."""
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        file = log.open("w", encoding="utf-8")
    except OSError as error:
        raise InputError(f"--log: expected a file that can be written, got {log} ({error.strerror})") from None
    with file, contextlib.redirect_stdout(StepConsole(sys.stdout, file)):
        yield


@contextlib.contextmanager
def _steps_that_end(root: str) -> Iterator[None]:
    """End the steps, and then this process, on SIGTERM or Ctrl-C.

    The runner would wait for them, and begin the next.
    """
    from milcore.runtime import command, processes  # noqa: PLC0415 - compiling works without what they need

    ours = builtins.print

    def stop(signum: int, _frame: object) -> None:
        processes.terminate_children(command.SECONDS_TO_STOP)
        builtins.print = ours
        shutil.rmtree(root, ignore_errors=True)
        command.log_termination("pipeline", signum)
        os._exit(128 + signum)

    with command.signal_handler(stop), command.bound_children():
        yield


@contextlib.contextmanager
def _own_print() -> Iterator[None]:
    """Restore ``print`` after the runner.

    It swaps it for an indenting one in each of its threads, and two can leave it so.
    """
    ours = builtins.print
    try:
        yield
    finally:
        builtins.print = ours


def submit(given: dict[str, Any]) -> None:
    """Send a pipeline to a Kubeflow Pipelines API and print the run's id.

    With --wait, follow it to its end.
    """
    pipeline = PIPELINES[given["pipeline"] or NAME]
    api.check_settings(given, given.get("settings", ""))
    made = variant(pipeline, image=given["image"], parallel=given["parallel"])
    submit_pipeline(made, _arguments(pipeline, given), given)


def _arguments(pipeline: BaseComponent, given: dict[str, Any]) -> dict[str, Any]:
    return {name: given[name] for name in pipeline.component_spec.inputs if given[name] is not None}


class Figures(NamedTuple):
    """Columns of the comparison and figures of the run, with their titles."""

    columns: dict[str, str]
    figures: dict[str, str]


SURVIVAL = Figures(
    {"harrell_c": "Harrell's C", "uno_c": "Uno's C"},
    {"harrell_c": "Harrell's C", "integrated_brier_score": "integrated Brier score"},
)
FIGURES: dict[Target, Figures] = {
    "classification": Figures(
        {"auroc": "AUROC", "localisation_auroc": "localisation AUROC"}, {"auroc": "AUROC", "accuracy": "accuracy"}
    ),
    "survival_cox": SURVIVAL,
    "survival_hazard": SURVIVAL,
    "regression": Figures(
        {"r2": "R2", "mae": "mean absolute error"}, {"r2": "R2", "spearman": "Spearman's correlation"}
    ),
}
# in the unit of the predicted column
IN_UNITS = {"mae"}


def _print_result(run_uri: str) -> None:
    """Print the models side by side and the URI of the report."""
    from milcore.runtime import storage  # noqa: PLC0415 - compiling works without what storage needs
    from milcore.runtime.progress import format_interval, format_metric, format_quantity, printable  # noqa: PLC0415 - nor what progress needs

    metrics = storage.read_json(storage.join(run_uri, "metrics.json"))
    names = [printable(row["name"]) for row in metrics["comparison"]]
    width = max(map(len, names))
    columns, of_run = FIGURES[metrics.get("target", "classification")]
    print("  ".join([f"{'on the test slides':{width}}", *(f"{title:9}" for title in columns.values())]).rstrip())
    for name, row in zip(names, metrics["comparison"], strict=True):
        values = (
            f"{(format_quantity if column in IN_UNITS else format_metric)(row[column]):{max(9, len(title))}}"
            for column, title in columns.items()
        )
        print("  ".join([f"{name:{width}}", *values]).rstrip())
    intervals = metrics.get("intervals" if "target" in metrics else "score_intervals", {})
    figures = ", ".join(
        f"{title} {format_metric(metrics[name])}{format_interval(intervals.get(name))}"
        for name, title in of_run.items()
    )
    print(f"{figures}, {len(metrics['quarantined'])} slides quarantined")
    print(printable(f"report: {storage.resolve(metrics['report'], run_uri)}"))


def _chosen(arguments: Sequence[str]) -> BaseComponent:
    """The pipeline whose parameters are flags."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--pipeline", default=NAME)
    return PIPELINES.get(first.parse_known_args(arguments)[0].pipeline, attention_mil)


def _parser(pipeline: BaseComponent) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m pipeline", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="compile | run | submit")
    make = commands.add_parser("compile", help="write the YAML for the Kubeflow UI")
    make.add_argument("--out", help=f"file to write, of {NAME} unless named otherwise [default: beside the code]")
    make.set_defaults(action=compile_pipeline)
    here = commands.add_parser("run", help="run the steps on this machine")
    here.add_argument("--pipeline-root", help="folder for the steps' artifacts [default: a temporary one]")
    here.add_argument("--log", metavar="FILE", help="file for every line of the steps [default: a temporary one]")
    here.set_defaults(action=run)
    send = commands.add_parser("submit", help="send it to a Kubeflow Pipelines API")
    send.add_argument("--host", default=None, help="address of the API [default: that of the cluster this runs in]")
    send.add_argument("--namespace", default=None, help="of a multi-user installation: your profile's")
    send.add_argument(
        "--token-file",
        default=None,
        help="file that holds the bearer token [default: in a cluster, the one that is mounted for this]",
    )
    send.add_argument("--experiment", default="attention-mil", help="[default: attention-mil]")
    send.add_argument(
        "--wait", type=int, default=0, metavar="SECONDS", help="follow the run for so long [default: 0, do not]"
    )
    send.add_argument("--report", metavar="FILE", help="with --wait: copy the report here when it is there")
    send.set_defaults(action=submit)
    for command in (make, send):
        command.add_argument("--image", default=IMAGE, help=f"image of every step [default: {IMAGE}]")
        command.add_argument("--pipeline", choices=list(PIPELINES), help="which one")
        command.add_argument(
            "--parallel",
            type=_count,
            default=PARALLEL,
            metavar="N",
            help=f"most pods of the fan-out at a time, fixed in the YAML [default: {PARALLEL}]",
        )
    _add_parameters(here, attention_mil)
    _add_parameters(send, pipeline)
    return parser


def _add_parameters(command: argparse.ArgumentParser, pipeline: BaseComponent) -> None:
    """One flag for every parameter of the pipeline."""
    descriptions = {
        parameter.arg_name: parameter.description
        for parameter in docstring_parser.parse(pipeline.pipeline_func.__doc__).params
    }
    for name, spec in pipeline.component_spec.inputs.items():
        default = "" if spec.default in {None, ""} else f" [default: {spec.default}]"
        command.add_argument(
            f"--{name.replace('_', '-')}",
            required=not spec.optional,
            type=TYPES[spec.type],
            default=spec.default,
            help=f"{descriptions[name]}{default}",
        )


def _count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"got {text!r}; allowed: 1, 2 …")
    return int(text)


def _boolean(text: str) -> bool:
    if text.lower() not in {"true", "false"}:
        raise argparse.ArgumentTypeError(f"got {text!r}; allowed: true or false")
    return text.lower() == "true"


TYPES: dict[str, Callable[[str], Any]] = {
    "List[String]": lambda text: text.split(","),
    "String": str,
    "Integer": int,
    "Float": float,
    "Boolean": _boolean,
}

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
