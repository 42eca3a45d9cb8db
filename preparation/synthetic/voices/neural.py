"""Neural voices whose graphs know how long each of their signs is: the durations are made an output."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models.onnx_runtime import load_onnxruntime

from ...sounds import PAUSE, Phone
from ..phones import from_ipa
from .voice import VoiceError

if TYPE_CHECKING:
    import onnx

_STOPS = frozenset(',.;:!?—…()"“”^$_')
MIN_PUNCTUATION_S = 0.07
"""What a stop mark lasts at least where the voice pauses."""


def durations_output(graph: onnx.GraphProto) -> str:
    """Returns the name of the tensor that is summed up into where each sign ends.

    Raises:
        VoiceError: the graph expands no durations.
    """
    for node in graph.node:
        if node.op_type == "CumSum" and "/dp/" not in node.name:
            return str(node.input[0])
    raise VoiceError(
        "the voice's graph: expected durations that are summed, found none; install its named release"
    )


def noise_as_input(graph: onnx.GraphProto, name: str) -> int:
    """Replaces every `RandomNormalLike` by a part of one input (1, channels, n), as long as the other is.

    Returns:
        How many were replaced.
    """
    from onnx import TensorProto, helper

    nodes: list[Any] = []
    replaced = 0
    for node in graph.node:
        if node.op_type != "RandomNormalLike":
            nodes.append(node)
            continue
        source = f"{name}_{replaced}"
        scale = next((a.f for a in node.attribute if a.name == "scale"), 1.0)
        graph.input.append(helper.make_tensor_value_info(source, TensorProto.FLOAT, [None, None, None]))
        for suffix, values in (("starts", [0, 0, 0]), ("axes", [0, 1, 2])):
            graph.initializer.append(helper.make_tensor(f"{source}_{suffix}", TensorProto.INT64, [3], values))
        graph.initializer.append(helper.make_tensor(f"{source}_scale", TensorProto.FLOAT, [], [scale]))
        nodes += [
            helper.make_node("Shape", [node.input[0]], [f"{source}_shape"]),
            helper.make_node(
                "Slice", [source, f"{source}_starts", f"{source}_shape", f"{source}_axes"], [f"{source}_part"]
            ),
            helper.make_node("Mul", [f"{source}_part", f"{source}_scale"], list(node.output)),
        ]
        replaced += 1
    del graph.node[:]
    graph.node.extend(nodes)
    return replaced


class TimedGraph:
    """A voice's graph that returns its durations last; each run is one thread's."""

    def __init__(self, path: Path) -> None:
        import onnx
        from onnx import helper

        model = onnx.load(str(path))
        durations = durations_output(model.graph)
        self.noises = noise_as_input(model.graph, "noise")
        model.graph.output.append(helper.make_empty_tensor_value_info(durations))
        runtime = load_onnxruntime()
        options = runtime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._session = runtime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )

    def run(self, inputs: dict[str, Any]) -> list[Any]:
        """Returns the graph's outputs, its durations (signs,) last."""
        outputs: list[Any] = self._session.run(None, inputs)
        return outputs


def phones_of_signs(signs: Sequence[str], lasts_s: Sequence[float]) -> tuple[Phone, ...]:
    """Returns the phones of a neural voice's signs.

    A blank goes half to either neighbour, a mark of stress to the vowel after it, a space half to either
    neighbour, another mark to what it follows. A stop mark that lasts is a pause, and so is what the sound
    begins and ends with.

    Args:
        signs: IPA, stop marks, spaces, blanks as ''.
        lasts_s: how long each is.
    """
    pieces: list[tuple[str, float]] = []  # a text of IPA or a pause, how long it is
    ahead_s, ahead = 0.0, ""  # time and marks that belong to the next piece
    for sign, last_s in zip(signs, lasts_s, strict=True):
        if sign in ("", " "):
            if pieces:
                pieces[-1] = (pieces[-1][0], pieces[-1][1] + last_s / 2)
                ahead_s += last_s / 2
            else:
                ahead_s += last_s
        elif sign in _STOPS:
            pieces.append((PAUSE, ahead_s + last_s))
            ahead_s = 0.0
        elif sign in "ˈˌ":
            ahead, ahead_s = ahead + sign, ahead_s + last_s
        elif not from_ipa(sign) or (pieces and _is_one(pieces[-1][0], sign)):
            if pieces:
                text, before_s = pieces[-1]
                pieces[-1] = (text if text == PAUSE else text + sign, before_s + ahead_s + last_s)
                ahead_s = 0.0
            else:
                ahead_s += last_s
        else:
            pieces.append((ahead + sign, ahead_s + last_s))
            ahead, ahead_s = "", 0.0
    if pieces:
        pieces[-1] = (pieces[-1][0], pieces[-1][1] + ahead_s)
    return _timed(pieces)


def _is_one(text: str, sign: str) -> bool:
    """Returns whether the sign ends a diphthong or an affricate that the text begins."""
    return text != PAUSE and len(from_ipa(text)) == 1 and len(from_ipa(text + sign)) == 1


def _timed(pieces: Sequence[tuple[str, float]]) -> tuple[Phone, ...]:
    phones: list[Phone] = []
    at_s = 0.0
    for number, (text, last_s) in enumerate(pieces):
        end_s = at_s + last_s
        inside = 0 < number < len(pieces) - 1
        if text == PAUSE and inside and last_s < MIN_PUNCTUATION_S and phones:
            label, start_s, _ = phones[-1]
            phones[-1] = (label, start_s, end_s)
        else:
            labels = (PAUSE,) if text == PAUSE else from_ipa(text)
            step_s = last_s / len(labels)
            phones += [(label, at_s + i * step_s, at_s + (i + 1) * step_s) for i, label in enumerate(labels)]
        at_s = end_s
    return tuple(phones)
