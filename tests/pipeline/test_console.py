"""The console shows the lines of steps, errors and no others; the log file has all."""

import io
import threading

from pipeline.console import StepConsole

# as kfp 2.17 prints them
STEP = """\
12:30:45.599 - INFO - Running pipeline: \x1b[95m'attention-mil'\x1b[0m
--------------------------------------------------------------------------------
12:30:45.604 - INFO - Executing task \x1b[96m'ingest'\x1b[0m
12:30:45.604 - INFO - Streamed logs:

    [KFP Executor 2026-11-27 12:30:45,669 INFO]: Loading KFP component "ingest" from /tmp/a/ephemeral_component.py
    [KFP Executor 2026-11-27 12:30:45,670 INFO]: Got executor_input:
    {
        "inputs": {
            "parameterValues": {
                "partitions": ["0/2", "1/2"]
            }
        }
    }
    ingest: 4/24, 6 s, 0.7/s, about 30 s left
    [KFP Executor 2026-11-27 12:30:47,417 INFO]: Wrote executor output file to /tmp/a/executor_output.json.

12:30:47.862 - INFO - Task \x1b[96m'ingest'\x1b[0m finished with status \x1b[92mSUCCESS\x1b[0m
12:30:47.863 - INFO - Task \x1b[96m'ingest'\x1b[0m outputs:
    Output: 'done'
    model: Model( name='model',
        uri='/tmp/a/model',
        metadata={'pooling': 'mean'} )
--------------------------------------------------------------------------------
"""


def shown(*texts: str) -> tuple[list[str], str]:
    """Lines of the console, and the log."""
    console, log = io.StringIO(), io.StringIO()
    stream = StepConsole(console, log)
    for text in texts:
        print(text, end="", file=stream)
    return console.getvalue().splitlines(), log.getvalue()


def test_a_step_is_its_name_and_its_own_lines() -> None:
    lines, log = shown(STEP)
    assert lines == ["step ingest", "ingest: 4/24, 6 s, 0.7/s, about 30 s left"]
    assert log == STEP


def test_steps_of_a_loop_are_named_once_and_lines_in_pieces_are_whole() -> None:
    lines, _ = shown(STEP, *STEP)
    assert lines == ["step ingest", *["ingest: 4/24, 6 s, 0.7/s, about 30 s left"] * 2]


def test_what_fails_is_shown_with_all_that_is_not_the_runner_s() -> None:
    lines, _ = shown(
        STEP.replace("SUCCESS", "FAILURE").replace(
            "    ingest: 4", "    Traceback (most recent call last):\n    ingest: 4"
        ),
        "12:30:48.1 - ERROR - Task 'ingest' finished with status FAILURE\n",
        "12:30:48.2 - WARNING - something new\n",
        "milcore: the disk is full\n",
    )
    assert lines == [
        "step ingest",
        "Traceback (most recent call last):",
        "ingest: 4/24, 6 s, 0.7/s, about 30 s left",
        "step ingest failed",
        "step ingest failed",
        "something new",
        "milcore: the disk is full",
    ]


def test_lines_of_ray_s_workers_are_shown_without_their_process_and_ray_s_own_are_not() -> None:
    lines, _ = shown(
        "\x1b[36m(RayTrainWorker pid=12)\x1b[0m epoch 1/3: train_loss 0.6\n",
        "\x1b[36m(_run_trial pid=12, ip=10.0.0.1)\x1b[0m no checkpoint at s3://a\n",
        "(pid=13) *** SIGABRT received\n",
        "(pid=13, ip=10.0.0.1) a process that began\n",
    )
    assert lines == ["epoch 1/3: train_loss 0.6", "no checkpoint at s3://a"]


def test_outputs_of_one_step_hide_nothing_of_another_that_runs_beside_it() -> None:
    console, log = io.StringIO(), io.StringIO()
    stream = StepConsole(console, log)
    print("12:30:47.8 - INFO - Task 'ingest' outputs:\n    Output: 'one'", file=stream)
    beside = threading.Thread(target=print, args=("ingest 1/2: 3/4, 5 s",), kwargs={"file": stream})
    beside.start()
    beside.join()
    print("    more: 'two'", file=stream)
    assert console.getvalue() == "ingest 1/2: 3/4, 5 s\n"
