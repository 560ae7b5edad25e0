"""Adapters that learn on the device: onnxruntime and numpy alone.

Example:
    >>> from edge.training import LessonMaker, Trainer, TrainingPlan, open_training, read_examples
    >>> session, _ = open_training(bundle, None)
    >>> maker = LessonMaker(bundle)
    >>> lessons = [maker.lesson(example) for example in read_examples(path)]
    >>> trainer = Trainer(session, lessons, TrainingPlan(epochs=2))
    >>> for progress in trainer.run():
    ...     print(progress.step, progress.loss)
    >>> trainer.result()  # pairs for edge.adapter.write_adapter
"""

from edge.training.evaluate import Figure, open_training
from edge.training.examples import LessonMaker, TrainingExample, example_of, read_examples
from edge.training.gradient import GradientSession, Outcome
from edge.training.lesson import Lesson, Segment, choice_lesson, text_lesson
from edge.training.optimisers import AdamW, Optimiser, Sgd
from edge.training.parameters import Parameters, drawn_a
from edge.training.plan import LINEARS, TrainingPlan
from edge.training.trainer import Progress, Trainer

__all__ = [
    "LINEARS",
    "AdamW",
    "Figure",
    "GradientSession",
    "Lesson",
    "LessonMaker",
    "Optimiser",
    "Outcome",
    "Parameters",
    "Progress",
    "Segment",
    "Sgd",
    "Trainer",
    "TrainingExample",
    "TrainingPlan",
    "choice_lesson",
    "drawn_a",
    "example_of",
    "open_training",
    "read_examples",
    "text_lesson",
]
