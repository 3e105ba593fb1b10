"""Training settings and candidates by kind of instance, none by data set."""

from typing import Any

from benchmarks.ilse2018.protocol import Protocol
from milcore.config import TrainConfig, parse_config, without_unread

# the first is the default
ENCODERS_OF = {"bags": ("mlp", "linear"), "mnist": ("lenet5",), "patches": ("conv", "efficientnet_lite0")}
NEVER = 1_000_000
LEARNING_RATE_FACTORS = (1 / 3, 1.0, 3.0)

CONFIGS: dict[str, dict[str, Any]] = {
    "mlp": {
        "features": "imported",
        "encoder": "mlp",
        "hidden": 64,
        "attention_hidden": 64,
        "epochs": 30,
        "dropout": 0.25,
        "batch_size": 8,
        "learning_rate": 3e-3,
        "weight_decay": 1.0,
        "label_smoothing": 0.1,
    },
    "lenet5": {
        "features": None,
        "encoder": "lenet5",
        "hidden": 500,
        "attention_hidden": 128,
        "epochs": 40,
        "dropout": 0.0,
        "batch_size": 2,
        "learning_rate": 5e-4,
        "weight_decay": 0.01,
        "precision": "bf16",
    },
    "conv": {
        "features": None,
        "encoder": "conv",
        "hidden": 512,
        "attention_hidden": 128,
        "epochs": 30,
        "dropout": 0.25,
        "batch_size": 2,
        "learning_rate": 3e-4,
        "weight_decay": 0.01,
        "augment": True,
        "precision": "bf16",
    },
}
CONFIGS["linear"] = CONFIGS["mlp"] | {"encoder": "linear", "hidden": 256}
CONFIGS["efficientnet_lite0"] = CONFIGS["linear"] | {"features": "efficientnet_lite0", "precision": "bf16"}
MEMBERS = {"conv": 1}
MEMBERS_ELSE = 5
# whether features have heavy tails is not known beforehand: a fold chooses their form by its training bags
CANDIDATES: dict[str, tuple[dict[str, Any], ...]] = dict.fromkeys(
    ("mlp", "linear", "efficientnet_lite0"), ({"feature_form": "standardised"}, {"feature_form": "signed_root"})
)
SELECTION_PARTS = 5


def protocol_of(encoder: str, changes: dict[str, Any], members: int | None) -> Protocol:
    """The protocol of an encoder.

    Args:
        encoder: a key of CONFIGS.
        changes: settings in place of its own, such as pooling and level.
        members: models that vote; None takes the encoder's own number.
    """
    settings = without_unread({**CONFIGS[encoder], "patience": NEVER, "checkpoint_every": NEVER, **changes})
    config = parse_config(TrainConfig, settings)
    return Protocol(
        config,
        candidates=CANDIDATES.get(encoder, ({},)),
        selection_parts=SELECTION_PARTS,
        members=members or MEMBERS.get(encoder, MEMBERS_ELSE),
        validation_parts=0,
        controls_until=1,
    )
