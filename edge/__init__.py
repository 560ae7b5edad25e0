"""Device SDK: a small quantised model answers on the device and knows how sure it is.

Example:
    >>> from edge import Device
    >>> with Device.open() as device:
    ...     answer = device.choose("A lovely day.", ["positive", "negative"], task="sentiment")
    >>> answer.text, answer.confidence, answer.source, answer.reasons
"""

from cascade.budget import MoneyLimits
from cascade.checks import Checks
from cascade.conditions import Conditions, ConditionsSource, FixedConditions
from cascade.decision_record import DecisionRecord
from cascade.draft import Drafting
from cascade.egress import Egress
from cascade.errors import CascadeError
from cascade.events import Answer, Event, Final, Latency, Superseded, Token
from cascade.local import CancelToken, LocalAnswer, LocalModel, ModelInfo
from cascade.monitor import Monitor
from cascade.policy import Policy, PolicyStore
from cascade.request import Constraints, DataClass, Message, Request
from cascade.sampling import Sampling
from cascade.signals import OptionScores, ScoreBounds, Signals
from cascade.signing import PublicKey, TrustStore
from cascade.tensor import Tensor
from cascade.wire import ClientProfile
from edge.adapter import Adapter
from edge.async_device import DEFAULT_BUNDLE, AsyncDevice, bundle_path, load_model
from edge.bundle import Bundle, Manifest
from edge.classifier import OnnxClassifier
from edge.classifier_spec import ClassifierSpec, InputSpec
from edge.conversation import AsyncConversation, Conversation
from edge.delivered import Delivered
from edge.delivery import set_up
from edge.device import Device
from edge.examples import Consent, Learning
from edge.generate import Step
from edge.metrics import DeviceMetrics, MetricsServer
from edge.model import OnnxModel
from edge.observing import Observer
from edge.renewal import Renewal

__all__ = [
    "DEFAULT_BUNDLE",
    "Adapter",
    "Answer",
    "AsyncConversation",
    "AsyncDevice",
    "Bundle",
    "CancelToken",
    "CascadeError",
    "Checks",
    "ClassifierSpec",
    "ClientProfile",
    "Conditions",
    "ConditionsSource",
    "Consent",
    "Constraints",
    "Conversation",
    "DataClass",
    "DecisionRecord",
    "Delivered",
    "Device",
    "DeviceMetrics",
    "Drafting",
    "Egress",
    "Event",
    "Final",
    "FixedConditions",
    "InputSpec",
    "Latency",
    "Learning",
    "LocalAnswer",
    "LocalModel",
    "Manifest",
    "Message",
    "MetricsServer",
    "ModelInfo",
    "MoneyLimits",
    "Monitor",
    "Observer",
    "OnnxClassifier",
    "OnnxModel",
    "OptionScores",
    "Policy",
    "PolicyStore",
    "PublicKey",
    "Renewal",
    "Request",
    "Sampling",
    "ScoreBounds",
    "Signals",
    "Step",
    "Superseded",
    "Tensor",
    "Token",
    "TrustStore",
    "bundle_path",
    "load_model",
    "set_up",
]
