"""Records and targets in, a policy with its certificate out: ``cascade tune`` as functions.

What is to hold is ``aims``, what is fitted ``modelling``, the way from there to a policy
``tuning``, and what the test part shows of it ``examining``. What the targets mean is
``cascade.certify.targets``; ladders of more than two tiers are ``cascade.ladder``; comparing models
before anything is tuned is ``cascade.compare``.
"""

from cascade.tune.aims import AIMS, Aim, Observed, goes_up, observe, settled
from cascade.tune.examining import Tested, examine, keeps
from cascade.tune.modelling import Fitted, Modelling, estimator_named, features_of, fit
from cascade.tune.stopping import Stopping
from cascade.tune.tuning import Tuned, group_tasks, tune, tune_groups

__all__ = [
    "AIMS",
    "Aim",
    "Fitted",
    "Modelling",
    "Observed",
    "Stopping",
    "Tested",
    "Tuned",
    "estimator_named",
    "examine",
    "features_of",
    "fit",
    "goes_up",
    "group_tasks",
    "keeps",
    "observe",
    "settled",
    "tune",
    "tune_groups",
]
