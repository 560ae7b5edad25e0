"""A Ray session of one's own: started in this process, found by nobody else, gone at the end."""

from __future__ import annotations

import logging
import os
import secrets
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

from cascade.errors import ClusterError
from cloud.session import FOLDER_VARIABLE

if TYPE_CHECKING:
    from ray.serve.schema import LoggingConfig

_log = logging.getLogger(__name__)

# The smallest that Ray starts with; answers are far smaller than what would go there.
_OBJECT_STORE_BYTES: Final = 100 << 20
_STOP_TIMEOUT_S: Final = 15.0


def start_ray(folder: Path, *, num_cpus: int, serving: bool = True) -> None:
    """Start Ray and Ray Serve in this process, without their web interfaces.

    Arguments:
        folder: for Ray's files; at most about 30 characters, since socket names have a limit.
        num_cpus: what tiers may ask for; not a limit on what they use.
        serving: start Ray Serve, too.

    Raises:
        ClusterError: Ray does not start.
    """
    # Set before ray is imported: it reads them then.
    os.environ.pop("RAY_ADDRESS", None)
    os.environ.update(
        RAY_AUTH_MODE="token",
        # Kept in memory: without it Ray writes a token into the user's home.
        RAY_AUTH_TOKEN=secrets.token_hex(32),
        RAY_USAGE_STATS_ENABLED="0",
        # Ray would have its workers stand back behind all else on the machine, 15 steps: made for
        # batch jobs, and refusals of a gateway would wait for the callers of an overload.
        RAY_worker_niceness="0",
        **{FOLDER_VARIABLE: str(folder)},
        # What a killed replica leaves behind goes with the session.
        TMPDIR=str(folder),
        RAY_ENABLE_UV_RUN_RUNTIME_ENV="0",
    )
    import ray

    try:
        ray.init(
            address="local",
            num_cpus=num_cpus,
            num_gpus=0,
            object_store_memory=_OBJECT_STORE_BYTES,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.WARNING,
            _node_ip_address="127.0.0.1",
            _temp_dir=str(folder),
        )
        if serving:
            from ray import serve  # its loggers write to the terminal, once it is imported
            from ray.serve.schema import LoggingConfig

            serve.start(
                proxy_location="Disabled",
                logging_config=LoggingConfig(log_level="WARNING", enable_access_log=False),
            )
    except Exception as error:  # Ray raises bare ones, too
        _log.exception("Ray did not start")
        raise ClusterError(f"Ray does not start: {' '.join(str(error).split())[:200]}") from None


def replica_logging() -> LoggingConfig:
    """How replicas log: without Serve's line for each call of a tier; the gateway has its own."""
    from ray.serve.schema import LoggingConfig

    return LoggingConfig(enable_access_log=False)


def stop_ray() -> None:
    """Stop what ``start_ray`` started, as far as it got; gives up waiting after 15 s."""
    worker = threading.Thread(target=_stop, name="stop-ray", daemon=True)
    worker.start()
    worker.join(_STOP_TIMEOUT_S)
    if worker.is_alive():
        _log.warning("Ray did not stop in %g s; its processes are killed", _STOP_TIMEOUT_S)


def _stop() -> None:
    if "ray" not in sys.modules:  # it failed before there was anything to stop
        return
    import ray

    try:
        if ray.is_initialized() and (serve := sys.modules.get("ray.serve")) is not None:
            cast(Any, serve).shutdown()
        ray.shutdown()
    except Exception:
        _log.exception("Ray did not stop cleanly; its processes are killed")
