"""How checkpoints of the field are laid out: wrappers around the weights, prefixes of their names, copies beside them.

What a name means to the network is told in naming.py; which network it is, the backbone plugins tell (elsewhere.py).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor

State = dict[str, Tensor]

# Keys under which checkpoints keep weights; of several the first is taken: a moving average is what authors evaluate.
_WRAPPERS = (
    "teacher", "state_dict_ema", "model_ema", "ema", "target_encoder", "state_dict", "model_state_dict", "model_state",
    "model", "module", "network", "net", "student", "encoder", "backbone", "visual", "params", "weights",
)  # fmt: skip
# What the first layer of a backbone is called, and what must stand beside it where the name alone is a common one.
_STEMS = (
    ("patch_embed.proj.weight", None),
    ("patch_embed.projection.weight", "layers.0.ln1.weight"),
    ("embeddings.patch_embeddings.projection.weight", None),
    ("embeddings.patch_embedding.weight", "embeddings.position_embedding.weight"),
    ("conv_proj.weight", None),
    ("conv1.weight", "class_embedding"),
    ("conv1.weight", "layer1.0.conv1.weight"),
)
# Of several copies of one network in one file: averages by any word of their names (teacher_backbone), and those that
# are only taken alone. What is called a momentum copy is one of these: MoCo, solo-learn (main_linear.py) and lightly
# (Classifier(model.backbone)) evaluate the network that it follows.
_EVALUATED = re.compile(r"(^|\.)(base_encoder|encoder_q)\.")
_AVERAGES = frozenset({"teacher", "ema", "target", "averaged"})
_MOMENTUM = "momentum"
_LAST = re.compile(r"(^|\.)(student\w*|online\w*|encoder_k)\.")
_NOT_THE_MOMENTUM = ", and not its momentum copy, as MoCo, solo-learn and lightly evaluate"
# What else may stand in the name of a key that keeps an average: state_dict_teacher, but not momentum_buffer.
_NETWORK = frozenset(
    {"state", "dict", "model", "encoder", "backbone", "network", "net", "weights", "params", "module", "vit"}
)
# Around any network, where its first layer has none of the names above.
_AROUND = (
    "module.base_encoder.", "base_encoder.", "momentum_encoder.", "visual.trunk.", "trunk.", "visual.", "backbone.",
    "encoder.", "model.", "vit.", "_orig_mod.", "module.",
)  # fmt: skip


def unwrapped(content: Any) -> tuple[State | None, list[str]]:
    """The weights in what a file held, and what to say of the way to them; None where it holds no tensors by name."""
    taken: list[str] = []
    notes: list[str] = []
    for _ in range(4):
        if not isinstance(content, Mapping):
            return None, notes
        state = {name: value for name, value in content.items() if isinstance(name, str) and isinstance(value, Tensor)}
        keys = [key for key in content if isinstance(key, str) and key not in _WRAPPERS]
        averages, followers = ([key for key in keys if _is_copy(key, words)] for words in (_AVERAGES, {_MOMENTUM}))
        inside = [key for key in (*averages, *_WRAPPERS, *followers) if _has_tensors(content.get(key))]
        # A state dict may have a tensor or two beside it (a temperature, the centre of DINO's loss).
        if not inside or len(state) > 8:
            break
        taken.append(inside[0])
        if len(inside) > 1:
            notes.append(f"it holds {', '.join(inside)}: {inside[0]} is taken{_beside_momentum(inside)}")
        content = content[inside[0]]
    if not state:
        return None, notes
    if taken and not notes:
        notes.append(f"weights under {'.'.join(taken)}")
    return state, notes


def _is_copy(key: str, said: Collection[str]) -> bool:
    """Whether a key's words say that a copy of a network of one of these kinds lies under it."""
    words = set(key.lower().split("_"))
    return bool(words.intersection(said)) and words.difference(said) <= _NETWORK and words != {_MOMENTUM}


def _words(name: str) -> set[str]:
    return {word for part in name.lower().split(".") for word in part.split("_")}


def _beside_momentum(copies: Sequence[str]) -> str:
    """Why the first of some copies is taken and a momentum copy is not; empty where there is none."""
    others = any(_MOMENTUM in _words(copy) for copy in copies[1:])
    return _NOT_THE_MOMENTUM if others and not _words(copies[0]) & {*_AVERAGES, _MOMENTUM} else ""


def _has_tensors(value: Any) -> bool:
    if not isinstance(value, Mapping):
        return False
    return any(isinstance(v, Tensor) or (k in _WRAPPERS and _has_tensors(v)) for k, v in value.items()) or any(
        isinstance(v, Mapping) and any(isinstance(t, Tensor) for t in v.values()) for v in value.values()
    )


def without_prefix(state: State) -> tuple[State, list[str], list[str]]:
    """A backbone's weights without what all their names begin with; the names that were left out; and what was cut off
    and left out, in words.

    Of several copies of a network (a teacher and a student, an encoder and its average) one is taken.
    """
    prefixes = {
        name.removesuffix(stem)
        for name in state
        for stem, beside in _STEMS
        if name.endswith(stem) and (beside is None or name.removesuffix(stem) + beside in state)
    }
    found = [prefix for prefix in prefixes if not prefix or prefix.endswith(".")]
    prefix = min(found, key=_rank) if found else _common(state)
    if not prefix:
        return state, [], []
    inside = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
    outside = [name for name in state if not name.startswith(prefix)]
    notes = []
    if len(found) > 1:
        copies = [other.rstrip(".") or "a network without a prefix" for other in sorted(found, key=_rank)]
        notes.append(f"it holds {', '.join(copies)}: {copies[0]} is taken{_beside_momentum(copies)}")
    notes.append(f"names without {prefix!r}")
    if outside:
        notes.append(f"left out {counted(outside, _shared_depth(prefix, outside))}")
    return inside, outside, notes


def _rank(prefix: str) -> tuple[int, int, str]:
    if _EVALUATED.search(prefix):
        preferred = 0
    elif _AVERAGES & _words(prefix):
        preferred = 1
    elif _MOMENTUM in _words(prefix):
        preferred = 4
    else:
        preferred = 3 if _LAST.search(prefix) else 2
    return preferred, len(prefix), prefix


def _common(state: Mapping[str, Tensor]) -> str:
    """The known prefixes that all names have."""
    whole = ""
    while True:
        more = next((p for p in _AROUND if all(name.startswith(whole + p) for name in state)), None)
        if more is None:
            return whole
        whole += more


def _shared_depth(prefix: str, names: Iterable[str]) -> int:
    """How many parts of a name to show, so that what was left out is told from what was taken."""
    first = prefix.split(".")[0]
    return 2 if any(name.split(".")[0] == first for name in names) else 1


def counted(names: Iterable[str], depth: int = 1) -> str:
    """Names of tensors by their first parts, with counts: "decoder_blocks (96), mask_token"."""
    counts = Counter(".".join(name.split(".")[:depth]) for name in names)
    words = [part if number == 1 else f"{part} ({number})" for part, number in sorted(counts.items())]
    return ", ".join(words[:8]) + (f" and {len(words) - 8} more" if len(words) > 8 else "")
