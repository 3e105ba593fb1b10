"""The pipeline that only sweeps, on a store that is encoded.

Its parameters are those of the sweep's step, with the defaults and descriptions they have in the whole pipeline.
"""

import inspect
from typing import Any

from kfp.dsl.base_component import BaseComponent

from components.size import size
from components.sizes import SMALL
from components.tune import tune
from milcore.config import TrainConfig
from pipeline.dag import attention_mil
from pipeline.parameters import described
from pipeline.steps import ends_with_finish, launcher, pipeline, size_from

SIZES = ("step_cpus", "step_memory")
FEATURES = TrainConfig().features
ABOUT = "Sweep pooling and learning rate on an encoded store; the result is in run_uri/tune. Research use only."


def _sweep() -> BaseComponent:
    whole = inspect.signature(attention_mil.pipeline_func).parameters
    shared = [whole[name] for name in whole if name in tune.component_spec.inputs or name in SIZES]
    features = inspect.Parameter("features", inspect.Parameter.POSITIONAL_OR_KEYWORD, default=FEATURES, annotation=str)
    parameters = [*shared, features]

    def sweep(*arguments: Any) -> None:
        values = dict(zip((parameter.name for parameter in parameters), arguments, strict=True))
        sizes = {name: values.pop(name) for name in SIZES}
        places = {name: values[name] for name in size.component_spec.inputs if name in values}
        planned = launcher(size(**places, **sizes), SMALL, retried=False)
        launcher(tune(**values), size_from(planned, "tune")._replace(gpus=""))

    sweep.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    sweep.__doc__ = described(ABOUT, [parameter.name for parameter in parameters])
    return pipeline(name="attention-mil-sweep", display_name="Attention MIL: sweep")(ends_with_finish(sweep))


sweep = _sweep()
