"""The weights of a GGUF file under the names and in the row order of the Hugging Face checkpoint that it was made from.

The families (families/) then plan a GGUF as they plan a checkpoint folder."""

import collections
import contextlib
import dataclasses
import math
import pathlib
import re

import gguf
import numpy as np

from . import ConversionError
from .families import Output, Plan
from .printing import shown
from .quants import BLOCK_TYPES, encode, turn

ARCHITECTURES = ("glm4", "glm4moe", "chatglm", "llama", "qwen2", "qwen3", "qwen3moe")

# GGUF's types whose bits are ours. (Its Q4_0 is our Q40, its Q8_0 our Q80.)
SAME_BITS = {"F32": "F32", "F16": "F16", "BF16": "BF16", "Q4_0": "Q40", "Q8_0": "Q80"}

_ENDS = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "ffn_gate_inp": "mlp.gate",
    "ffn_gate_shexp": "mlp.shared_experts.gate_proj",
    "ffn_up_shexp": "mlp.shared_experts.up_proj",
    "ffn_down_shexp": "mlp.shared_experts.down_proj",
    "nextn.eh_proj": "eh_proj",
    "nextn.enorm": "enorm",
    "nextn.hnorm": "hnorm",
    "nextn.shared_head_norm": "shared_head.norm",
    "nextn.embed_tokens": "embed_tokens",
    "nextn.shared_head_head": "shared_head.head",
}
# Names that mean something else in one architecture.
_OTHER = {
    "chatglm": {"ffn_up": "mlp.gate_up_proj"},
    "glm4": {
        "ffn_up": "mlp.gate_up_proj",
        "post_attention_norm": "post_self_attn_layernorm",
        "post_ffw_norm": "post_mlp_layernorm",
    },
    "glm4moe": {"post_attention_norm": "post_attention_layernorm"},
}
_EXPERTS = {"ffn_gate_exps": "gate_proj", "ffn_up_exps": "up_proj", "ffn_down_exps": "down_proj"}


@dataclasses.dataclass(frozen=True)
class View:
    """A checkpoint's tensor as rows of a GGUF tensor: `count` rows from `first`, or those that `order` names."""

    tensor: gguf.ReaderTensor
    shape: tuple[int, ...]
    first: int = 0
    order: np.ndarray | None = None


@contextlib.contextmanager
def damage_refused(path: pathlib.Path):
    """What goes wrong with metadata of wrong types, texts that are not UTF-8 or sizes that do not fit together."""
    try:
        yield
    except ConversionError:
        raise
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        what = f"{type(error).__name__}: {shown(str(error))}"
        raise ConversionError(f"{path}: its metadata is damaged or of an unknown form: {what}") from error


class GgufFile:
    """Metadata and tensors of a GGUF file, or of all parts of a split one."""

    def __init__(self, path: pathlib.Path):
        self.path = path
        self._readers = [_open(part) for part in _parts(path)]
        self.tensors = {t.name: t for reader in self._readers for t in reader.tensors}
        with damage_refused(path):
            self.architecture = self.get("general.architecture")
            if self.architecture not in ARCHITECTURES:
                supported = f"not supported ({', '.join(ARCHITECTURES)})"
                raise ConversionError(f"{path}: architecture {shown(self.architecture)} is {supported}")
            expected = self.get("split.tensors.count", len(self.tensors))
        if expected != len(self.tensors):
            raise ConversionError(f"{path}: has {len(self.tensors)} tensors in all its parts, must have {expected}")

    def get(self, key: str, default=None):
        """A metadata value; `{arch}` in the key stands for the architecture."""
        field = self._readers[0].get_field(key.replace("{arch}", getattr(self, "architecture", None) or ""))
        return default if field is None else field.contents()

    def need(self, key: str):
        value = self.get(key)
        if value is None:
            raise ConversionError(f"{self.path}: {key.replace('{arch}', self.architecture)} is missing")
        return value


def _parts(path: pathlib.Path) -> list[pathlib.Path]:
    match = re.fullmatch(r"(.*)-\d{5}-of-(\d{5})\.gguf", path.name)
    if not match:
        return [path]
    count = int(match[2])
    return [path.with_name(f"{match[1]}-{i:05}-of-{count:05}.gguf") for i in range(1, count + 1)]


def _open(path: pathlib.Path) -> gguf.GGUFReader:
    try:
        return gguf.GGUFReader(path)
    except OSError:
        raise
    except Exception as error:  # the reader's own checks are few: a damaged file raises nearly anything
        raise ConversionError(f"{path}: not a GGUF file, truncated or damaged: {shown(str(error))}") from error


class GgufCheckpoint:
    """The checkpoint (checkpoint.py) that the GGUF file was made from. Threads may read at the same time."""

    def __init__(self, file: GgufFile):
        self._path = file.path
        self._architecture = file.architecture
        self._names = _LAYER | _OTHER.get(file.architecture, {})
        self._views: dict[str, View] = {}
        with damage_refused(file.path):
            self._heads = {"attn_q": file.need("{arch}.attention.head_count")}
            self._heads["attn_k"] = file.get("{arch}.attention.head_count_kv", self._heads["attn_q"])
            for name, tensor in file.tensors.items():
                self._add(name, tensor, file)

    def names(self) -> list[str]:
        return list(self._views)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._views[name].shape

    def type(self, name: str) -> gguf.GGMLQuantizationType:
        return self._views[name].tensor.tensor_type

    def encode_rows(self, name: str, index: slice | np.ndarray, dtype: str, turned: int = 0) -> np.ndarray:
        """The rows as flat uint8 of `dtype`: copied where the file has that type, else dequantised and rounded.
        `turned`: of Output."""
        view = self._views[name]
        kind = view.tensor.tensor_type
        if view.order is not None:
            rows = view.order[index] + view.first
        elif isinstance(index, slice):
            rows = slice(view.first + index.start, view.first + index.stop)
        else:
            rows = index + view.first
        width = view.shape[-1] if len(view.shape) > 1 else 1
        raw = view.tensor.data.reshape(view.tensor.n_elements // width, -1)[rows]
        if SAME_BITS.get(kind.name) == dtype and not turned:
            return _checked(np.ascontiguousarray(raw).view(np.uint8).reshape(-1), dtype)
        try:
            values = gguf.dequantize(raw, kind)
        except NotImplementedError as error:
            raise ConversionError(f"has type {kind.name}, which is not supported") from error
        return encode(dtype, turn(values.reshape(-1, width), turned))

    def _add(self, name: str, tensor: gguf.ReaderTensor, file: GgufFile) -> None:
        shape = tuple(int(n) for n in reversed(tensor.shape))
        if 0 in shape:  # of any other number of rows, then, without a byte in the file
            raise ConversionError(f"{self._path}: tensor {shown(name)} is empty")
        if name == "rope_freqs.weight":  # gguf_config.py
            return
        match = re.fullmatch(r"blk\.(\d+)\.(.+)\.(weight|bias)", name)
        if name in _ENDS:
            self._views[_ENDS[name]] = View(tensor, shape)
        elif match is None:
            raise ConversionError(f"{self._path}: tensor {shown(name)} is not known")
        else:
            self._add_to_layer(f"model.layers.{match[1]}.", match[2], match[3], tensor, shape, file)

    def _add_to_layer(self, layer, part, kind, tensor: gguf.ReaderTensor, shape, file: GgufFile) -> None:
        if part == "exp_probs_b":
            self._views[f"{layer}mlp.gate.e_score_correction_bias"] = View(tensor, shape)
        elif part in _EXPERTS and kind == "weight":
            for e in range(shape[0]):
                self._views[f"{layer}mlp.experts.{e}.{_EXPERTS[part]}.weight"] = View(tensor, shape[1:], e * shape[1])
        elif part == "attn_qkv":
            heads, kv_heads = self._heads["attn_q"], self._heads["attn_k"]
            head_dim = shape[0] // (heads + 2 * kv_heads)
            first = 0
            for letter, count in (("q", heads), ("k", kv_heads), ("v", kv_heads)):
                rows = count * head_dim
                self._views[f"{layer}self_attn.{letter}_proj.{kind}"] = View(tensor, (rows, *shape[1:]), first)
                first += rows
        elif part in self._names:
            order = self._rows_of_heads(part, shape[0], file) if part in self._heads else None
            self._views[f"{layer}{self._names[part]}.{kind}"] = View(tensor, shape, 0, order)
        else:
            raise ConversionError(f"{self._path}: tensor {shown(tensor.name)} is not known in {self._architecture}")


    def _rows_of_heads(self, part: str, rows: int, file: GgufFile) -> np.ndarray | None:
        """Where the checkpoint's rows of q or k lie, or None if they lie as they are."""
        heads = self._heads[part]
        order = np.arange(rows).reshape(heads, -1)
        if self._architecture == "llama":
            # llama.cpp keeps the rope pairs of Llama's q and k side by side: back to halves.
            return order.reshape(heads, -1, 2).swapaxes(1, 2).reshape(-1)
        if self._architecture == "glm4" and file.get("{arch}.rope.dimension_sections"):
            # Of models that see pictures it keeps GLM's pairs as halves of the rotated dimensions: back to pairs.
            turned = file.get("{arch}.rope.dimension_count", order.shape[1] // 2)
            pairs = order[:, :turned].reshape(heads, 2, -1).swapaxes(1, 2).reshape(heads, -1)
            return np.concatenate([pairs, order[:, turned:]], axis=1).reshape(-1)
        return None


def _checked(stored: np.ndarray, dtype: str) -> np.ndarray:
    """Refuses what encode() would refuse: values or scales that are not finite."""
    if dtype == "BF16":
        bad = (stored.view(np.uint16) & 0x7F80 == 0x7F80).any()
    elif dtype in BLOCK_TYPES:
        kind = BLOCK_TYPES[dtype]
        scales = stored.reshape(-1, kind.bytes)[:, : kind.head_bytes].copy().view(np.uint16)
        bad = (scales & 0x7C00 == 0x7C00).any()
    else:
        bad = not np.isfinite(stored.view(np.float32 if dtype == "F32" else np.float16)).all()
    if bad:
        raise ConversionError("holds values that are not numbers")
    return stored


def kept_types(plan: Plan, checkpoint: GgufCheckpoint) -> tuple[dict[str, str], str]:
    """The type of each weight of the plan so that as little as possible is lost, and the type of most of them.

    Weights that are computed as one have one type, the widest: q, k and v; gate and up; all experts of a layer."""
    groups: dict[str, list[Output]] = {}
    for output in plan.outputs:
        if output.is_weight:
            group = re.sub(r"attn\.[qkv]\.", "attn.qkv.", output.name)
            group = re.sub(r"experts\.\d+\.", "experts.", group)
            groups.setdefault(re.sub(r"\.(gate|up)\.", ".gate_up.", group), []).append(output)
    types: dict[str, str] = {}
    values: collections.Counter = collections.Counter()
    for outputs in groups.values():
        kept = max((_kept_type(checkpoint.type(o.source)) for o in outputs), key=_WIDTHS.index)
        for output in outputs:
            types[output.name] = kept
            values[kept] += math.prod(output.shape)
    return types, values.most_common(1)[0][0]


_WIDTHS = ("Q40", "Q80", "BF16", "F16", "F32")


def _kept_type(kind: gguf.GGMLQuantizationType) -> str:
    block, size = gguf.GGML_QUANT_SIZES[kind]
    return SAME_BITS.get(kind.name) or ("Q40" if size * 8 < 5 * block else "Q80")
