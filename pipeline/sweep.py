"""The pipeline that only sweeps, on a store that is encoded.

Its parameters are those of the sweep's step, with the defaults and descriptions they have in the whole pipeline.
"""

import inspect

import docstring_parser
from kfp import dsl
from kfp.dsl.base_component import BaseComponent

from components.tune import tune
from milcore.config import TrainConfig
from pipeline.dag import attention_mil
from pipeline.steps import ends_with_finish, launcher, sized

SIZES = ("step_cpus", "step_memory")
FEATURES = TrainConfig().features
ABOUT = "Sweep pooling and learning rate on an encoded store; the result is in run_uri/tune. Research use only."


def _sweep() -> BaseComponent:
    whole = inspect.signature(attention_mil.pipeline_func).parameters
    taken = [its for name, its in whole.items() if name in tune.component_spec.inputs or name in SIZES]
    features = inspect.Parameter("features", inspect.Parameter.POSITIONAL_OR_KEYWORD, default=FEATURES, annotation=str)
    parameters = [*taken, features]

    def sweep(*arguments: object) -> None:
        given = dict(zip((its.name for its in parameters), arguments, strict=True))
        sizes = [given.pop(name) for name in SIZES]
        sized(launcher(tune(**given)), *sizes)

    sweep.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    sweep.__doc__ = _described([its.name for its in parameters])
    return dsl.pipeline(name="attention-mil-sweep", display_name="Attention MIL: sweep")(ends_with_finish(sweep))


def _described(names: list[str]) -> str:
    told = {its.arg_name: its.description for its in docstring_parser.parse(attention_mil.pipeline_func.__doc__).params}
    told["features"] = "name of the features to train on."
    return "\n".join([ABOUT, "", "Args:", *(f"    {name}: {told[name]}" for name in names)])


sweep = _sweep()
