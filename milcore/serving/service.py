"""Command ``milcore serve``: models of runs answer HTTP requests until a signal ends it."""

import importlib
import socket
import threading
from collections.abc import Callable, Sequence

from milcore.cluster.workers.connect import connected
from milcore.config import LaunchConfig, ServeConfig
from milcore.errors import InputError
from milcore.runtime.command import signal_handler
from milcore.runtime.progress import log_line
from milcore.runtime.thread_limit import default_environment
from milcore.serving.authorisation import token_digest

# of the extra "serve"
PACKAGES = ("fastapi", "prometheus_client", "ray.serve")
# Ray Serve's own lines go to its log files, which Ray names
ENVIRONMENT = {"RAY_SERVE_LOG_TO_STDERR": "0"}


def serve(runs: Sequence[str], config: ServeConfig, started: Callable[[str], object] = log_line) -> list[str]:
    """Serve the models of runs until SIGTERM or Ctrl-C.

    Requests in work are answered after that.

    Args:
        runs: URI of each, or NAME=URI.
        config: settings.
        started: gets one line once requests are answered.

    Returns:
        Names of the models.

    Raises:
        InputError: the extra is not installed, a run cannot be served, the port is taken, or a token is missing.
        ClusterError: Ray Serve does not start.
    """
    with default_environment(ENVIRONMENT):
        check_packages()
        # with fastapi and ray.serve, which may be absent before
        from milcore.serving.deployments import running  # noqa: PLC0415
        from milcore.serving.served_runs import served_models  # noqa: PLC0415 - torch: seconds to import

        digest = token_digest(config)
        _check_port(config)
        models = served_models(runs)
        names = [model.name for model in models]
        signalled = threading.Event()
        with connected(LaunchConfig()), running(models, config, digest), signal_handler(lambda *_: signalled.set()):
            started(f"serving {', '.join(names)} at http://{config.host}:{config.port}/v2/models/NAME/infer")
            signalled.wait()
    return names


def check_packages() -> None:
    """Check that the packages of the extra are installed.

    Raises:
        InputError: one is not.
    """
    try:
        for name in PACKAGES:
            importlib.import_module(name)
    except ImportError as error:
        raise InputError(f"serve: needs Ray Serve and FastAPI ({error}); pip install 'milcore[serve]'") from None


def _check_port(config: ServeConfig) -> None:
    """Check that the address can be listened at.

    Ray Serve itself would try for a while.

    Raises:
        InputError: it cannot.
    """
    try:
        family = socket.getaddrinfo(config.host, config.port, type=socket.SOCK_STREAM)[0][0]
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((config.host, config.port))
    except OSError as error:
        raise InputError(
            f"port: expected an address to listen at, got {config.host}:{config.port} ({error.strerror}); take another "
            "--port or --host"
        ) from None
