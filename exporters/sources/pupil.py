"""The weights of a torch model trained to bear being quantized: what rounding after the fact cannot mend.

A copy of the model's program computes with weights rounded as they will be and, where they will be, with inputs of 8 bits to
its layers (Jacob et al. 2018, arXiv 1712.05877); gradients pass through as if nothing were rounded (Bengio et al. 2013, arXiv
1308.3432). It learns to answer as the original does, so that no labels are needed (Hinton et al. 2015, arXiv 1503.02531). A
tenth of the samples only judges: what answers best on them is kept, which may be the original.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.export import ExportedProgram
from torch.fx import GraphModule, Node

from exporters.formats.rounding import largest
from exporters.graph.files import Graph
from kit.errors import GateFailed, UsageError
from kit.runtime.base import BATCH_BYTES
from kit.samples import Samples, count
from kit.system.progress import OnProgress, silent
from kit.tensors import Signature, Tensors

_LEAST_SAMPLES = 20
_MOST_ROWS = 32  # of a step: more steps in the same time did more than steeper ones
_HELD = 10  # one of so many pieces is not learned from
_MOST_HELD = 32
_LOOKS = 36  # at what was held out
_COURSES = 3
_WARM_UP = 0.05  # of a course
_RATE = 3e-4  # of a parameter's own size, a step, for 8 bits: a hundredth or so of what separates two integers
_ANSWERS_BYTES = 256 * 2**20  # of the teacher's, which are kept

_aten: Any = torch.ops.aten
_LAYERS: dict[Any, tuple[int, int, int]] = {
    **{one.default: (0, 1, 0) for one in (_aten.linear, _aten.conv1d, _aten.conv2d, _aten.conv3d, _aten.convolution)},
    **{one.padding: (0, 1, 0) for one in (_aten.conv1d, _aten.conv2d, _aten.conv3d)},
    **{one.default: (0, 1, 1) for one in (_aten.matmul, _aten.mm)},
    _aten.addmm.default: (1, 2, 1),
}
"""By operator: the places of inputs and weights among its arguments, and the axis of the weights that is the outputs'."""


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """What for and how long.

    Attributes:
        bits: Of the weights.
        block: Weights of one output that share a scale and a zero point; 0: all of an output share a scale.
        has_integer_inputs: Whether the inputs of layers become 8 bits as well.
    """

    seconds: float
    bits: int
    block: int = 0
    has_integer_inputs: bool = True


@dataclass(frozen=True, kw_only=True)
class Pupil:
    """A torch model that can learn.

    Attributes:
        signature: Of what it is asked with, raw values where its task does arithmetic on them.
        inside: What its program gets for these inputs.
        asked: What a module like its program answers to that, in the order of the signature's outputs.
        written: A program like its own as a graph, of an operator set.
    """

    program: ExportedProgram
    signature: Signature
    inside: Callable[[Tensors], list[torch.Tensor]]
    asked: Callable[[nn.Module, Sequence[torch.Tensor]], Sequence[torch.Tensor]]
    written: Callable[[ExportedProgram, int], Graph]

    def taught(self, groups: Sequence[Samples], lesson: Lesson, on_progress: OnProgress = silent) -> ExportedProgram:
        """Return a program with other weights; its own stays as it is.

        Not the same twice: as many steps are made as there is time for.

        Raises:
            UsageError: There are too few samples, or it has no layer that could learn.
            GateFailed: It cannot be trained.
        """
        total = count(groups, self.signature)
        if total < _LEAST_SAMPLES:
            raise UsageError(
                f"fine-tuning needs {_LEAST_SAMPLES} samples or more, and there are {total}", hint="--data FILE"
            )
        taught = copy.deepcopy(self.program)
        student, teacher = taught.module(), self.program.module()
        rounded = _round_weights(student, lesson)
        if not rounded or not any(spec.is_float for spec in self.signature.outputs):
            raise UsageError("the model has no layer that could be fine-tuned", hint="leave --fine-tune out")
        pieces = _Pieces.of(groups, self.signature)
        try:
            if lesson.has_integer_inputs:
                doors = _round_inputs(student, rounded)
                with torch.no_grad():
                    for piece in pieces.held:
                        self.asked(student, self.inside(piece.inputs))
                for door in doors:
                    door.is_looking = False
            _School(self, student, teacher, pieces, lesson, on_progress).run()
            _leave_rounded(student, rounded, lesson)
        except torch.OutOfMemoryError as error:
            raise MemoryError from error
        except RuntimeError as error:  # an operator without a gradient, or what the module itself refuses
            raise GateFailed(
                f"the model cannot be fine-tuned: {str(error).splitlines()[0]}", hint="leave --fine-tune out"
            ) from error
        return taught


@dataclass(frozen=True)
class _Pieces:
    """Samples in pieces of a step, those to learn from and those to judge by."""

    learned: tuple[Samples, ...]
    held: tuple[Samples, ...]

    @classmethod
    def of(cls, groups: Sequence[Samples], signature: Signature) -> _Pieces:
        """Cut the samples, in an order of their own, so that there are enough pieces of few samples too."""
        random = np.random.default_rng(0)
        most = max(min(_MOST_ROWS, count(groups, signature) // _HELD), 1)
        pieces: list[Samples] = []
        for group in groups:
            rows = min(signature.rows_within(BATCH_BYTES, signature.sizes(group.inputs)), most)
            total = signature.rows(group.inputs)
            if signature.batch is None or total <= rows:
                pieces.append(group)
                continue
            order = random.permutation(total)
            pieces += [group.take(signature, np.sort(order[start : start + rows])) for start in range(0, total, rows)]
        pieces = [pieces[place] for place in random.permutation(len(pieces))]
        held = min(max(len(pieces) // _HELD, 1), _MOST_HELD)
        return cls(learned=tuple(pieces[held:]), held=tuple(pieces[:held]))


class _School:
    """A student that learns from a teacher, until the time is up."""

    def __init__(
        self,
        pupil: Pupil,
        student: nn.Module,
        teacher: nn.Module,
        pieces: _Pieces,
        lesson: Lesson,
        on_progress: OnProgress,
    ) -> None:
        self._pupil, self._student, self._teacher = pupil, student, teacher
        self._pieces, self._lesson, self._on_progress = pieces, lesson, on_progress
        self._answers: dict[int, list[torch.Tensor]] = {}
        self._room = _ANSWERS_BYTES
        self._parameters = [one for one in student.parameters() if one.is_floating_point()]
        for one in self._parameters:
            one.requires_grad = True

    def run(self) -> None:
        """Learn; what answered best on what was held out is left in the student.

        Small gradients are mostly noise, and long steps along them a walk at random that ends in worse integers (Nagel et al.
        2022, arXiv 2203.11086): so it learns in courses, each from the best so far and with a quarter of the steps' size.
        """
        steepest = _RATE * 2 ** ((8 - self._lesson.bits) / 2)
        optimizer = torch.optim.Adam([{"params": [one], "size": _size(one)} for one in self._parameters])
        first = best = self._held_noise()
        kept = self._weights()
        started, looked, course = time.monotonic(), 0, 0
        for piece in self._learned():
            share = (time.monotonic() - started) / self._lesson.seconds
            if share * _LOOKS >= looked + 1 or share >= 1:
                looked = int(share * _LOOKS)
                noise = self._held_noise()
                if noise < best:
                    best, kept = noise, self._weights()
                if share >= 1:
                    break
                left = self._lesson.seconds * (1 - share)
                self._on_progress(
                    f"fine-tuning: {left:,.0f} s left, {_db(best) - _db(first):+.1f} dB on held-out samples"
                )
            if int(share * _COURSES) > course:
                course = int(share * _COURSES)
                self._take_up(kept)
            done = share * _COURSES - course
            rate = steepest / 4**course * min(done / _WARM_UP, 1.0) * (1 + math.cos(math.pi * done)) / 2
            for group in optimizer.param_groups:
                group["lr"] = rate * group["size"]
            optimizer.zero_grad()
            loss = self._noise(piece)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        self._take_up(kept)
        for one in self._parameters:
            one.requires_grad = False

    def _take_up(self, weights: Sequence[torch.Tensor]) -> None:
        for one, value in zip(self._parameters, weights, strict=True):
            one.data.copy_(value)

    def _learned(self) -> Iterator[Samples]:
        random = np.random.default_rng(0)
        while True:
            for place in random.permutation(len(self._pieces.learned)):
                yield self._pieces.learned[place]

    def _weights(self) -> list[torch.Tensor]:
        return [one.detach().clone() for one in self._parameters]

    def _held_noise(self) -> float:
        with torch.no_grad():
            return sum(float(self._noise(piece)) for piece in self._pieces.held) / len(self._pieces.held)

    def _noise(self, piece: Samples) -> torch.Tensor:
        """Return the power of the difference to the teacher's answers by that of the answers, all outputs together."""
        given = self._pupil.inside(piece.inputs)
        found = self._pupil.asked(self._student, given)
        ratios = []
        for spec, exact, own in zip(self._pupil.signature.outputs, self._wanted(piece, given), found, strict=True):
            if exact.is_floating_point():
                shown = _shown(piece, spec.name, exact)
                error, signal = (own.float() - exact.float()) * shown, exact.float() * shown
                ratios.append(error.square().sum() / signal.square().sum().clamp_min(1e-12))
        return torch.stack(ratios).sum()

    def _wanted(self, piece: Samples, given: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        if (known := self._answers.get(id(piece))) is not None:
            return known
        with torch.no_grad():
            wanted = list(self._pupil.asked(self._teacher, given))
        size = sum(one.nbytes for one in wanted)
        if size <= self._room:
            self._room -= size
            self._answers[id(piece)] = wanted
        return wanted


def _shown(piece: Samples, output: str, values: torch.Tensor) -> torch.Tensor:
    """Return 1 where an output's values count and 0 where they are padding."""
    counts = (piece.weights or {}).get(output, np.ones((), np.float32))
    return torch.tensor(np.broadcast_to(counts, tuple(values.shape)).astype(np.float32), device=values.device)


def _size(parameter: nn.Parameter) -> float:
    return max(float(parameter.detach().float().square().mean().sqrt()), 1e-3)


def _db(noise: float) -> float:
    return -10 * math.log10(max(noise, 1e-30))


def _round_weights(module: GraphModule, lesson: Lesson) -> list[Node]:
    """Round the weights of each layer on their way into it; return the layers."""
    found = []
    for node in list(module.graph.nodes):
        places = _LAYERS.get(node.target) if node.op == "call_function" else None
        if places is None or len(node.args) <= places[1]:
            continue
        _, weights, axis = places
        given = node.args[weights]
        if not isinstance(given, Node) or given.op != "get_attr" or not _is_weight(module, given):
            continue
        with module.graph.inserting_before(node):
            rounded = module.graph.call_function(_rounded, (given, axis, lesson.bits, lesson.block))
        node.update_arg(weights, rounded)
        found.append(node)
    module.recompile()
    return found


def _leave_rounded(module: GraphModule, layers: Sequence[Node], lesson: Lesson) -> None:
    """Leave the weights at what their integers give, so that whatever rounds them later finds these integers again."""
    for layer in layers:
        _, weights, axis = _LAYERS[layer.target]
        rounded = layer.args[weights]
        assert isinstance(rounded, Node)  # as it was put there
        held = module.get_parameter(str(rounded.all_input_nodes[0].target))
        held.data.copy_(_rounded(held.detach(), axis, lesson.bits, lesson.block))


def _is_weight(module: GraphModule, node: Node) -> bool:
    held = dict(module.named_parameters(remove_duplicate=False)).get(str(node.target))
    return held is not None and held.is_floating_point() and held.ndim >= 2


def _rounded(weights: torch.Tensor, axis: int, bits: int, block: int) -> torch.Tensor:
    """Return weights as integers of so many bits give them; the gradient is that of the weights themselves."""
    with torch.no_grad():
        rows = weights.movedim(axis, 0).reshape(weights.shape[axis], -1)
        made = _in_blocks(rows, bits, block) if block and rows.shape[1] > 1 else _symmetric(rows, bits)
        moved = weights.movedim(axis, 0)
        exact = made.reshape(moved.shape).movedim(0, axis)
    return weights + (exact - weights).detach()


def _symmetric(rows: torch.Tensor, bits: int) -> torch.Tensor:
    most = largest(bits)
    scale = (rows.abs().amax(dim=1, keepdim=True) / most).clamp_min(1e-12)
    made: torch.Tensor = (rows / scale).round().clamp(-most, most) * scale
    return made


def _in_blocks(rows: torch.Tensor, bits: int, block: int) -> torch.Tensor:
    count, width = rows.shape
    padded = nn.functional.pad(rows, (0, -width % block))
    blocks = padded.reshape(count, -1, block)
    low, high = blocks.amin(dim=2, keepdim=True).clamp_max(0), blocks.amax(dim=2, keepdim=True).clamp_min(0)
    most = 2**bits - 1
    scale = ((high - low) / most).clamp_min(1e-12)
    zero = (-low / scale).round()
    made: torch.Tensor = ((blocks / scale + zero).round().clamp(0, most) - zero) * scale
    return made.reshape(count, -1)[:, :width]


class _RoundedInput(nn.Module):
    """8 bits for what enters a layer, in the range that was seen; beyond it values are cut off."""

    def __init__(self) -> None:
        super().__init__()
        self.low, self.high = 0.0, 0.0
        self.is_looking = True

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """Return the values, rounded once the range is known."""
        if self.is_looking:
            self.low, self.high = min(self.low, float(values.min())), max(self.high, float(values.max()))
            return values
        scale = max((self.high - self.low) / 255, 1e-12)
        rounded = torch.fake_quantize_per_tensor_affine(values.float(), scale, round(-self.low / scale), 0, 255)
        return rounded.to(values.dtype)


def _round_inputs(module: GraphModule, layers: Sequence[Node]) -> list[_RoundedInput]:
    """Put something before each layer that rounds what enters it, once it has looked at some."""
    doors: dict[Node, Node] = {}
    made = []
    for layer in layers:
        place = _LAYERS[layer.target][0]
        given = layer.args[place]
        if not isinstance(given, Node):
            continue
        if given not in doors:
            made.append(_RoundedInput())
            name = f"_rounded_input_{len(doors)}"
            module.add_module(name, made[-1])
            with module.graph.inserting_after(given):
                doors[given] = module.graph.call_module(name, (given,))
        layer.update_arg(place, doors[given])
    module.recompile()
    return made
