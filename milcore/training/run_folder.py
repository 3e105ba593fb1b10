"""The run folder: its paths, its ``config.json``, and how it is read again."""

from milcore.runtime import storage
from milcore.runtime.digest import digest, unique_digest

PUBLISHED = ("config.json", "splits.parquet", "model.safetensors", "metrics.json", "predictions.parquet", "report.html")


def run_state(run_uri: str) -> str:
    """Digest of a run's weights and of what was published of it."""
    try:
        found = {name: storage.stat(storage.join(run_uri, name)) for name in PUBLISHED}
    except FileNotFoundError:
        return unique_digest()
    return digest(found)
