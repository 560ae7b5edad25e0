"""For tests of apps, and for our own: a tiny real bundle, and a cluster inside the test's process.

Nothing is downloaded and no process is started; an escalation takes milliseconds. ``tiny_bundle``
needs the extra ``bundle``, ``cluster`` the extra ``cloud``; both are loaded when they are used.

Example:
    >>> from cascade import testing
    >>> tiny = testing.tiny_bundle(tmp_path)
    >>> with testing.cluster({"tier1": testing.Script("yes")}) as cluster:
    ...     device = Device.open(tiny.path, trust=tiny.trust, cloud=cluster.profile)
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from cascade.errors import CascadeError

if TYPE_CHECKING:
    from cascade.testing.loopback import Cluster, cluster
    from cascade.testing.scripted import Fault, Script
    from cascade.testing.tiny import TinyBundle, tiny_bundle

_HOMES = {
    "Cluster": "cascade.testing.loopback",
    "Fault": "cascade.testing.scripted",
    "Script": "cascade.testing.scripted",
    "TinyBundle": "cascade.testing.tiny",
    "cluster": "cascade.testing.loopback",
    "tiny_bundle": "cascade.testing.tiny",
}

__all__ = ["Cluster", "Fault", "Script", "TinyBundle", "cluster", "tiny_bundle"]


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'cascade.testing' has no attribute {name!r}")
    try:
        return getattr(import_module(home), name)
    except ModuleNotFoundError as missing:
        if missing.name not in ("pydantic", "yaml"):
            raise
        raise CascadeError(
            f"cascade.testing.{name} needs the cluster's packages; "
            "install them with: pip install 'edge-cloud-cascade[cloud]'"
        ) from None
