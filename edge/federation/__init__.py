"""The device that takes part in federated rounds: it enrols, checks in, trains when it may, and
sends a small signed update. What it learns from never leaves it.

``Participant`` is the whole of it; the training is given from outside: ``ExampleTrainer``, or one's
own.
"""

from __future__ import annotations

from edge.federation.counting import AdapterCounts, Counted
from edge.federation.example_trainer import ExampleTrainer
from edge.federation.limits import Limits, Usage
from edge.federation.participant import Participant
from edge.federation.step import Step
from edge.federation.trainer import NoGain, Paused, StartingPoint, Trained, Trainer

__all__ = [
    "AdapterCounts",
    "Counted",
    "ExampleTrainer",
    "Limits",
    "NoGain",
    "Participant",
    "Paused",
    "StartingPoint",
    "Step",
    "Trained",
    "Trainer",
    "Usage",
]
