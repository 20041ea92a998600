"""What a family makes of a checkpoint: our config and the output tensors, each with the rows that it is made of."""

import dataclasses
import math

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


@dataclasses.dataclass
class Plan:
    architecture: str
    config: dict
    outputs: list[Output]
    legacy_ok: bool = False  # the family exists in distributed-llama


class Builder:
    """Collects outputs and checks that the checkpoint has each source in the shape the config asks for."""

    def __init__(self, checkpoint: Checkpoint):
        self.checkpoint = checkpoint
        self.unused = set(checkpoint.names())
        self.present = frozenset(self.unused)
        self.outputs: list[Output] = []

    def has(self, name: str) -> bool:
        return name in self.present

    def ignore(self, *names: str) -> None:
        """Tensors that repeat others, or that can be computed."""
        self.unused.difference_update(names)

    def refuse_unused(self) -> None:
        left = sorted(name for name in self.unused if not name.endswith(".inv_freq"))  # RoPE's table is computed
        if left:
            more = f" and {len(left) - 3} more" if len(left) > 3 else ""
            raise ConversionError(
                f"the checkpoint has tensors that this architecture has not: {', '.join(left[:3])}{more} "
                "(--ignore-unknown converts all the same)"
            )

    def _source(self, name: str, expected: list[int]) -> None:
        """`expected`: rows and width, or the length of a vector."""
        if name not in self.present:
            raise ConversionError(f"the checkpoint has no tensor {name}")
        shape = self.checkpoint.shape(name)
        actual = [math.prod(shape[:-1]), shape[-1]] if len(shape) > 1 else list(shape)
        if actual != expected:
            raise ConversionError(f"tensor {name} has shape {list(shape)}, the configuration asks for {expected}")
        self.unused.discard(name)

    def matrix(
        self, name: str, rows: int, cols: int, source: str, index=None, *, first_row=0, total_rows=None, weight=True
    ) -> None:
        """`rows` x `cols`: from row `first_row` of the `total_rows` (default: `rows`) of `source`, or rows `index`."""
        self._source(source, [total_rows or rows, cols])
        index = slice(first_row, first_row + rows) if index is None else index
        self.outputs.append(Output(name, (rows, cols), source, index, weight))

    def vector(self, name: str, size: int, source: str, index=None, *, first_row=0, total_rows=None) -> None:
        self._source(source, [total_rows or size])
        index = slice(first_row, first_row + size) if index is None else index
        self.outputs.append(Output(name, (size,), source, index, False))
