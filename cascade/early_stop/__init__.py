"""Stopping the local decode as soon as it is certain that the answer will be escalated.

An answer is kept where its confidence reaches the policy's threshold. Long before its last token,
a running summary of its signals often tells that it will not; all further tokens are wasted. Two
rules stop it, whichever comes first:

*bound*: a free answer's raw score is exp(Σ logprobs / tokens). Log probabilities only add up, and
there are at most ``max_tokens`` of them, so exp(Σ so far / max_tokens) bounds it from above. Below
the lowest score that is kept there is nothing to wait for. Certain, without data.

*checkpoints*: after 1, 2, 3, 4, 6, 8, … tokens a logistic regression of the running summary
predicts whether the answer will be kept; below a cutoff it stops. However good the regressions are,
the cutoff is certified on other records: with probability 1 − δ over their draw, at most a share ε
of the answers that are kept would be stopped (``tolerance``). It takes no labels, only decoded
answers.

Stopping keeps fewer answers, never others. Still, the error among those that are left may be larger
than before, so the policy's own certificate is to be made with stopping switched on: certify
``mask(confidence, stopped)``, whose stopped rows nothing accepts, and the promise is about what the
device will do. ``fit_early_stop`` says which part of the records is for what.
"""

from cascade.early_stop.fit import (
    MIN_ROWS,
    StopRule,
    bound_alone,
    certify_early_stop,
    fit_early_stop,
    mask,
    plan_threshold,
)
from cascade.early_stop.rule import CHECKPOINTS, Checkpoint, EarlyStop, StopWatch
from cascade.early_stop.savings import Savings, savings
from cascade.early_stop.token_lists import RUNNING, TokenLists
from cascade.early_stop.tolerance import StopCertificate, most_stopped, tolerated_cutoff

__all__ = [
    "CHECKPOINTS",
    "MIN_ROWS",
    "RUNNING",
    "Checkpoint",
    "EarlyStop",
    "Savings",
    "StopCertificate",
    "StopRule",
    "StopWatch",
    "TokenLists",
    "bound_alone",
    "certify_early_stop",
    "fit_early_stop",
    "mask",
    "most_stopped",
    "plan_threshold",
    "savings",
    "tolerated_cutoff",
]
