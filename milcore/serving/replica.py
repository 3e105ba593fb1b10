"""Replica: a process with the weights of a run, which scores bags of features.

Bags pass through the path of ``milcore predict``: checks, packing and columns are the same functions.
"""

import asyncio
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from milcore.errors import InputError
from milcore.evaluation.prediction_rows import PREDICTION_ROWS
from milcore.evaluation.scorer import Scorer, load_scorer
from milcore.mil.bags.arrays import ArrayRows, array_rows, bag_id
from milcore.mil.bags.bags import BagEntry, Bags, cache_bytes, slide_places
from milcore.mil.device import compute_device
from milcore.mil.inference import BagPrediction, predict_bags
from milcore.serving.batch_queue import BatchQueue
from milcore.serving.score import Score


class ScoreTask(NamedTuple):
    """Bag to score.

    Args:
        rows: its features.
        coords: (instance, 2) x and y, of a pooling that reads places; else None.
        attention_instances: how many of highest attention the score names.
    """

    rows: ArrayRows
    coords: np.ndarray | None = None
    attention_instances: int = 0


class Replica:
    """Models of a run that score bags; methods run on one event loop.

    Args:
        run_uri: the run.
        use_gpu: compute on a CUDA device.
        instances_per_batch: of bags that pass through the models together.
        workers_here: processes that share the memory of the machine.
    """

    def __init__(self, run_uri: str, *, use_gpu: bool, instances_per_batch: int, workers_here: int) -> None:
        device = compute_device(use_gpu)
        # models of features have no encoder that is a program
        self._scorer = load_scorer(run_uri, device, allow_program=False, workers_here=workers_here)
        self._queue = BatchQueue(self._score_all, lambda task: len(task.rows), instances_per_batch)

    async def score(self, features: np.ndarray, coords: np.ndarray | None, attention_instances: int) -> Score | str:
        """Score of a bag (instance, feature).

        The line of an error where its values are no finite numbers, or it is too large to be pooled as a whole.
        """
        try:
            rows = await asyncio.to_thread(array_rows, {"features": features})
            for model in self._scorer.models:
                model.check_fits([_entry("features", rows["features"])], 0, with_gradient=False)
        except InputError as error:
            return error.line
        return await self._queue.result(ScoreTask(rows["features"], coords, attention_instances))

    def _score_all(self, tasks: Sequence[ScoreTask]) -> list[Score]:
        predictions = predict_tasks(self._scorer, tasks)
        return [
            _score(self._scorer, prediction, task.attention_instances, len(tasks))
            for task, prediction in zip(tasks, predictions, strict=True)
        ]


def predict_tasks(scorer: Scorer, tasks: Sequence[ScoreTask]) -> list[BagPrediction]:
    """Prediction of each bag of features.

    All pass in one batch as far as memory reaches.
    """
    task_of_id = {bag_id(k): task for k, task in enumerate(tasks)}

    def open_places(entry: BagEntry) -> Tensor | None:
        coords = task_of_id[entry.bag_id].coords
        return None if coords is None else slide_places(0, torch.from_numpy(coords.astype(np.float64)))

    bags = Bags(
        [_entry(name, task.rows) for name, task in task_of_id.items()],
        lambda entry: task_of_id[entry.bag_id].rows,
        cache_bytes(scorer.spec.train),
        open_places=open_places,
    )
    predictions = predict_bags(scorer.models, bags, device=scorer.device)
    return [predictions[k] for k in range(len(tasks))]


def _entry(name: str, rows: ArrayRows) -> BagEntry:
    return BagEntry.of_slide(name, name, 0, "", len(rows))


def _score(scorer: Scorer, prediction: BagPrediction, count: int, batch: int) -> Score:
    columns = PREDICTION_ROWS[scorer.spec.train.target].columns(scorer, prediction)
    top = np.argsort(-prediction.attention, kind="stable")[:count]
    return Score(columns, top.tolist(), prediction.attention[top].tolist(), batch)
