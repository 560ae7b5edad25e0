"""Where things are kept on this machine: ``CASCADE_HOME``, or the platform's data folder.

Only paths live here; nothing is created until something is written.
"""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs


def home() -> Path:
    """The root of everything kept on this machine."""
    override = os.environ.get("CASCADE_HOME")
    if override:
        return Path(override).expanduser().absolute()
    return Path(platformdirs.user_data_dir("cascade", appauthor=False))


def models_dir() -> Path:
    """Downloaded source files, named by catalog entry."""
    return home() / "models"


def bundles_dir() -> Path:
    """Built device bundles, one folder each."""
    return home() / "bundles"


def policies_dir() -> Path:
    """Signed policies: ``<base digest>/<task id>.json`` and ``.sig``."""
    return home() / "policies"


def adapters_dir() -> Path:
    """Adapters that were delivered, one folder each, named by digest."""
    return home() / "adapters"


def delivery_path() -> Path:
    """What a cluster gave this device to run."""
    return home() / "delivery.json"


def trial_path() -> Path:
    """The adapter that was installed and has not answered here yet, and what ran before."""
    return home() / "trial.json"


def trust_dir() -> Path:
    """Pinned publisher keys, one ``.pub`` file each; outside of every bundle."""
    return home() / "trust"


def keys_dir() -> Path:
    """Private publisher keys of this machine, readable by the owner alone."""
    return home() / "keys"


def cluster_dir() -> Path:
    """State of the local cluster: pid file, certificate authority, API key, log."""
    return home() / "cluster"


def profile_dir() -> Path:
    """What ``cascade bundle bench`` measured on this machine."""
    return home() / "profile"


def monitor_dir() -> Path:
    """States of monitored policies, and the log of how they changed."""
    return home() / "monitor"


def budget_path() -> Path:
    """What this machine's devices have spent."""
    return home() / "budget.sqlite3"


def examples_path() -> Path:
    """What this device may learn from: the users' own words."""
    return home() / "examples.sqlite3"


def training_path() -> Path:
    """How much of its budget for learning this device has used."""
    return home() / "training.sqlite3"


def latency_path() -> Path:
    """How long the tiers of each cluster took."""
    return home() / "latency.json"


def drafts_path() -> Path:
    """What drafts to the tiers of each cluster have brought."""
    return home() / "drafts.json"
