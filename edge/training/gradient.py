"""Loss and gradients of an adapter on a device: the bundle's gradient graph at work.

Which lessons, in which order and with what step is ``edge.training.trainer``'s business.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnxruntime as ort

from cascade.errors import BundleError
from edge.adapter import LoraPair
from edge.adapter import pack as pack_slot
from edge.bundle import GRADIENT_GRAPH, SCORES_GRAPH, TRUNK_GRAPH, AdapterSlot, Bundle, Manifest
from edge.memory import give_back
from edge.session import open_session
from edge.slots import slot_inputs
from edge.training.lesson import Floats, Lesson, by_segment
from edge.training.packing import Pack, in_packs, pack
from edge.training.softmax import Doubles, log_softmax
from edge.training.trunk import Activations, Keep, Trunk

PACK_TOKENS = 256
"""Tokens of one run at most, beside those that its lessons share, unless a single lesson has more:
bounds the memory, whatever the size of a batch."""

_SLOT = re.compile(r"layers\.(\d+)\.")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a batch gave.

    Arguments:
        loss: Σ share · loss of all lessons.
        losses: of each lesson, unweighted.
        gradients: d loss / d A and B, by linear; of those that the adapter has.
    """

    loss: float
    losses: tuple[float, ...]
    gradients: Mapping[str, LoraPair]


class GradientSession:
    """The graphs of one bundle that train its adapters. Not thread-safe.

    Arguments:
        bundle: verified.
        frozen: pairs of an adapter; those below the trained layers are applied and stay as they
            are.
        threads: threads of one run, ≥ 1.
        keep: where to keep what was computed of the trunk, for the next time.

    Raises:
        BundleError: the bundle cannot train, and why.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        frozen: Mapping[str, LoraPair] | None = None,
        threads: int = 1,
        keep: Keep = "memory",
    ) -> None:
        check_trains(bundle.manifest)
        self.manifest = bundle.manifest
        self._bundle, self._threads = bundle, threads
        self._trainer: ort.InferenceSession | None = None
        self._scorer: ort.InferenceSession | None = None
        given = {value.name for value in self._gradient_graph().get_inputs()}
        self.slots = tuple(slot for slot in bundle.manifest.adapter_slots if slot.input_a in given)
        """Where adapters are trained, those of the first trained layer first."""
        if not self.slots or len(given) != _OTHER_INPUTS + 2 * len(self.slots):
            raise BundleError(
                f"{GRADIENT_GRAPH}: is not as {bundle.manifest.name}'s manifest says; build the "
                "bundle again"
            )
        below = [slot for slot in bundle.manifest.adapter_slots if slot not in self.slots]
        trunk = Trunk(bundle, pack_slots(below, frozen or {}), threads=threads)
        self.activations = Activations(trunk, keep)

    @property
    def modules(self) -> frozenset[str]:
        """The linears that can be trained."""
        return frozenset(module for slot in self.slots for module in slot.modules)

    @property
    def layers(self) -> range:
        """The layers whose adapters are trained."""
        return _layers(self.slots)

    def read(self, lessons: Iterable[Lesson]) -> Iterator[int]:
        """Compute what learning does not change, for each lesson once; the number done so far. The
        graph for it and those that learn are not in memory together: a device has no room."""
        for number, lesson in enumerate(lessons, start=1):
            for segment in lesson.segments:
                if self._trainer is not None and not self.activations.keeps(segment):
                    self._trainer = self._scorer = None  # loaded again when they are needed
                    give_back()
                self.activations.get(segment)
            yield number
        self.activations.release_trunk()

    def run(
        self,
        lessons: Sequence[Lesson],
        pairs: Mapping[str, LoraPair],
        shares: Sequence[float] | None = None,
    ) -> Outcome:
        """Loss and gradients.

        Arguments:
            pairs: the adapter's, of the trained layers.
            shares: what each lesson's loss counts; by default its weight over the sum of weights.
        """
        if shares is None:
            total = sum(lesson.weight for lesson in lessons)
            shares = [lesson.weight / total if total else 0.0 for lesson in lessons]
        adapter = self._adapter(pairs)
        sums: dict[str, Floats] = {}
        loss, losses, first = 0.0, list[float](), 0
        for group in in_packs(lessons, PACK_TOKENS):
            packed = pack(group, shares[first : first + len(group)])
            first += len(group)
            values = self._run(packed, adapter)
            loss += float(values["loss"])
            losses += packed.losses(values["target_logprobs"], values["answer_logprobs"])
            for name, gradient in values.items():
                if name.startswith("gradient."):
                    sums[name] = sums[name] + gradient if name in sums else gradient
        return Outcome(loss, tuple(losses), unpack_gradients(self.slots, pairs, sums))

    def probabilities(
        self, lessons: Sequence[Lesson], pairs: Mapping[str, LoraPair]
    ) -> list[Floats]:
        """How likely each answer of a closed set is, as ``edge.choose`` scores it: what a device
        would say, at the price of the trained layers alone where the rest is kept.

        Arguments:
            lessons: each with a closed set; which answer is right does not matter.
            pairs: the adapter's, of the trained layers.

        Returns:
            Of each lesson float32 [answers], in the order of its answers; the sum is 1.

        Raises:
            InvalidInput: a lesson is of no closed set.
        """
        return [np.exp(each).astype(np.float32) for each in self._chances(lessons, pairs)]

    def losses(self, lessons: Sequence[Lesson], pairs: Mapping[str, LoraPair]) -> list[float]:
        """The loss of each lesson, unweighted, as ``run`` gives it but for rounding.

        Of closed sets it takes the way there alone, half of the work, if the graph for that is
        loaded already (by ``probabilities``): a device that trains has no room for it.

        Arguments:
            pairs: the adapter's, of the trained layers.
        """
        right = [each.closed_set.right for each in lessons if each.closed_set is not None]
        if self._scorer is None or len(right) < len(lessons):
            return list(self.run(lessons, pairs).losses)
        chances = self._chances(lessons, pairs)
        return [-float(each[place]) for each, place in zip(chances, right, strict=True)]

    def _chances(self, lessons: Sequence[Lesson], pairs: Mapping[str, LoraPair]) -> list[Doubles]:
        """Log probabilities of the answers of each closed set, of which the prior's segment, the
        same for many, is computed once."""
        parts = [by_segment(lesson) for lesson in lessons]
        each_once = {part.digest: part for of_lesson in parts for part in of_lesson}
        found = self._scores(list(each_once.values()), pairs)
        scores = dict(zip(each_once, found, strict=True))
        totals = [np.sum([scores[part.digest] for part in each], axis=0) for each in parts]
        return [log_softmax(total[None])[0] for total in totals]

    def _scores(self, lessons: Sequence[Lesson], pairs: Mapping[str, LoraPair]) -> list[Floats]:
        """Log probabilities of the answers of each closed set."""
        if self._scorer is None and SCORES_GRAPH in self.manifest.files:
            self._scorer = open_session(self._bundle.file(SCORES_GRAPH), threads=self._threads)
        graph = self._scorer or self._gradient_graph()  # older bundles have the latter alone
        adapter = self._adapter(pairs)
        found: list[Floats] = []
        for group in in_packs(lessons, PACK_TOKENS):
            packed = pack(group, [0.0] * len(group))
            values = self._run(packed, adapter, graph, ["answer_logprobs"])
            found += packed.answers(values["answer_logprobs"])
        return found

    def _gradient_graph(self) -> ort.InferenceSession:
        if self._trainer is None:
            self._trainer = open_session(self._bundle.file(GRADIENT_GRAPH), threads=self._threads)
            give_back()  # opening takes twice what the graph has to stay
        return self._trainer

    def _adapter(self, pairs: Mapping[str, LoraPair]) -> dict[str, Floats]:
        names = {name for slot in self.slots for name in (slot.input_a, slot.input_b)}
        packed = pack_slots(self.slots, pairs)
        return {
            name: values
            for name, values in slot_inputs(self.manifest, packed).items()
            if name in names
        }

    def _run(
        self,
        packed: Pack,
        adapter: Mapping[str, Floats],
        graph: ort.InferenceSession | None = None,
        names: Sequence[str] = (),
    ) -> dict[str, Floats]:
        """Outputs of the gradient graph, all of them, or of another one."""
        graph = graph or self._gradient_graph()
        hidden = np.concatenate([self.activations.get(segment) for segment in packed.segments])
        given = {"hidden": hidden[packed.taken], **packed.inputs, **adapter}
        wanted = list(names) or [output.name for output in graph.get_outputs()]
        taken = {value.name: given[value.name] for value in graph.get_inputs()}
        return dict(zip(wanted, graph.run(wanted, taken), strict=True))


_OTHER_INPUTS = 12


def check_trains(manifest: Manifest) -> None:
    """Raise ``BundleError`` unless the bundle has what trains adapters; says what to do."""
    if {GRADIENT_GRAPH, TRUNK_GRAPH} <= manifest.files.keys():
        return
    if manifest.kind != "decoder":
        raise BundleError(f"{manifest.name} is a {manifest.kind} bundle: it takes no adapters")
    if manifest.graph == "exported":
        raise BundleError(
            f"{manifest.name} was exported with torch, and exported bundles have no gradient "
            "graph; train with PEFT and bring the adapter in with edge.peft.read_peft, or use a "
            "Llama or Qwen2 model"
        )
    raise BundleError(
        f"{manifest.name} has no gradient graph; build it again with: cascade bundle build "
        "--gradient 4 --force"
    )


def pack_slots(slots: Sequence[AdapterSlot], pairs: Mapping[str, LoraPair]) -> dict[str, Floats]:
    """Graph inputs that apply ``pairs``; linears of other slots are left out."""
    inputs: dict[str, Floats] = {}
    for slot in slots:
        inputs |= pack_slot(slot, [pairs.get(module) for module in slot.modules])
    return inputs


def unpack_gradients(
    slots: Sequence[AdapterSlot], pairs: Mapping[str, LoraPair], gradients: Mapping[str, Floats]
) -> dict[str, LoraPair]:
    """The gradients of ``pairs`` out of those of the packed inputs."""
    unpacked = {}
    for slot in slots:
        rank = column = 0
        for module, width in zip(slot.modules, slot.widths, strict=True):
            if (pair := pairs.get(module)) is not None:
                end = rank + pair.a.shape[1]
                unpacked[module] = LoraPair(
                    gradients[f"gradient.{slot.input_a}"][:, rank:end],
                    gradients[f"gradient.{slot.input_b}"][rank:end, column : column + width],
                )
                rank = end
            column += width
    return unpacked


def _layers(slots: Sequence[AdapterSlot]) -> range:
    numbers = [int(match[1]) for slot in slots if (match := _SLOT.match(slot.name))]
    return range(min(numbers), max(numbers) + 1)
