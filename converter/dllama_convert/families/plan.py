"""What a family makes of a checkpoint: our config and the output tensors, each with the rows that it is made of."""

import dataclasses
import math
import re
from collections.abc import Iterable

import numpy as np

from .. import ConversionError
from ..checkpoint import Checkpoint


@dataclasses.dataclass
class Output:
    """A tensor of the .m file: rows `index` of the checkpoint's tensor `source` (a vector is rows of one value)."""

    name: str
    shape: tuple[int, ...]
    source: str
    index: slice | np.ndarray
    is_weight: bool  # has the chosen weight type; the others are F32
    turned: int = 0  # not 0: the source's rows come in groups of so many, and each group is stored transposed


@dataclasses.dataclass
class Plan:
    architecture: str
    config: dict
    outputs: list[Output]
    legacy_ok: bool = False  # the family exists in distributed-llama
    notes: list[str] = dataclasses.field(default_factory=list)  # lines for whoever converts: what is left out, and why


class MismatchError(ConversionError):
    """The checkpoint's tensors are not those that the configuration asks for."""


# What saves of models that see pictures, of wrappers and of the bare model call the same tensor. The first that fits.
_PREFIXES = [
    (re.compile(r"(?:_orig_mod\.|module\.)*(?:model\.language_model|language_model\.model)\.(?=layers\.|embed_tokens\.|norm\.)"),
     "model."),
    (re.compile(r"(?:_orig_mod\.|module\.)*language_model\.(?=lm_head\.)"), ""),
    (re.compile(r"(?:_orig_mod\.|module\.)+"), ""),
    (re.compile(r"(?=layers\.\d|embed_tokens\.|norm\.)"), "model."),
]  # fmt: skip
_PICTURES = re.compile(r"(model\.)?(visual|vision_tower|vision_model|vision_embed_tokens|multi_modal_projector)\.")


def plain_name(name: str) -> str:
    """The tensor's name in a checkpoint that transformers saves of the text model."""
    for pattern, replacement in _PREFIXES:
        if match := pattern.match(name):
            return replacement + name[match.end() :]
    return name


class Builder:
    """Collects outputs and checks that the checkpoint has each source in the shape the config asks for."""

    def __init__(self, checkpoint: Checkpoint):
        self.checkpoint = checkpoint
        self._names: dict[str, str] = {}  # ours -> the checkpoint's
        for name in checkpoint.names():
            if self._names.setdefault(plain_name(name), name) != name:
                raise ConversionError(f"tensors {self._names[plain_name(name)]} and {name} are the same one")
        self.present = self._names.keys()
        self.unused = set(self.present)
        self.outputs: list[Output] = []
        self.notes: list[str] = []

    def has(self, name: str) -> bool:
        return name in self.present

    def leave_out(self, reason: str, names: Iterable[str]) -> None:
        """Tensors that the model does without. A line names them."""
        names = sorted(set(names) & self.unused)
        self.unused.difference_update(names)
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            self.notes.append(f"left out: {names[0]}{more}: {reason}")

    def leave_out_pictures(self) -> None:
        self.leave_out("the part that sees pictures", (name for name in self.unused if _PICTURES.match(name)))

    def repeats(self, name: str, other: str) -> bool:
        """Whether two tensors have the same values, so that one suffices. A line says which way it is."""
        if self.checkpoint.equal(self._names[name], self._names[other]):
            self.leave_out(f"it repeats {other}", [name])
            return True
        self.notes.append(f"{name} is kept: tie_word_embeddings is true, but it differs from {other}")
        return False

    def finish(self, ignore_unknown: bool) -> None:
        """Raises ConversionError if tensors were not asked for, unless they may be ignored."""
        self.leave_out("it is computed", (name for name in self.unused if name.endswith(".inv_freq")))
        left = sorted(self.unused)
        if left and not ignore_unknown:
            more = f" and {len(left) - 3} more" if len(left) > 3 else ""
            raise MismatchError(
                f"the checkpoint has tensors that this architecture has not: {', '.join(left[:3])}{more} "
                "(convert-hf.py and convert-hub.py convert all the same with --ignore-unknown)"
            )
        self.leave_out("nobody knows it", left)

    def _source(self, name: str, expected: list[int]) -> None:
        """`expected`: rows and width, or the length of a vector."""
        if name not in self.present:
            raise MismatchError(f"the checkpoint has no tensor {name}")
        shape = self.checkpoint.shape(self._names[name])
        actual = [math.prod(shape[:-1]), shape[-1]] if len(shape) > 1 else list(shape)
        if actual != expected:
            raise MismatchError(f"tensor {name} has shape {list(shape)}, the configuration asks for {expected}")
        self.unused.discard(name)

    def matrix(
        self, name: str, rows: int, cols: int, source: str, index=None, *, first_row=0, total_rows=None, weight=True
    ) -> None:
        """`rows` x `cols`: from row `first_row` of the `total_rows` (default: `rows`) of `source`, or rows `index`."""
        self._source(source, [total_rows or rows, cols])
        index = slice(first_row, first_row + rows) if index is None else index
        self.outputs.append(Output(name, (rows, cols), self._names[source], index, weight))

    def turned(self, name: str, rows: int, cols: int, source: str, index, total_rows: int) -> None:
        """`rows` x `cols` from rows `index` of `source`: each group of `cols` of them is transposed."""
        self._source(source, [total_rows, rows * cols // len(index)])
        self.outputs.append(Output(name, (rows, cols), self._names[source], index, True, cols))

    def vector(self, name: str, size: int, source: str, index=None, *, first_row=0, total_rows=None) -> None:
        self._source(source, [total_rows or size])
        index = slice(first_row, first_row + size) if index is None else index
        self.outputs.append(Output(name, (size,), self._names[source], index, False))
