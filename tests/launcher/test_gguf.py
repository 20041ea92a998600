"""GGUF import: a file written by the gguf package becomes what the Hugging Face route makes of the same checkpoint."""

import json
import pathlib
import runpy
import struct
import subprocess
import sys
import unittest.mock

import gguf
import gguf_files
import numpy as np
import pytest
import sentencepiece
from conftest import REPOSITORY
from dllama_convert import ConversionError
from dllama_convert.checkpoint import open_checkpoint
from dllama_convert.convert import ModelImage, convert, encode_rows_of
from dllama_convert.families import make_plan
from dllama_convert.gguf_checkpoint import GgufFile
from dllama_convert.gguf_config import _llama3_scaling
from dllama_convert.gguf_tokenizer import read_tokenizer
from dllama_convert.quants import encode
from dllama_convert.tokenizers import load_tokenizer
from gguf import GGMLQuantizationType as Kind

MODELS = [
    "glm4-dense", "glm4moe-16x2", "llama", "qwen2", "qwen3", "qwen3moe", "glm-4-9b-chat", "glm-hf-bias", "solar-open",
    "glm45v-text", "glm41v-text", "glm-ocr-text",
]  # fmt: skip


def convert_gguf(file: pathlib.Path, kind: str, folder: pathlib.Path, name: str = "m") -> pathlib.Path:
    """converter/convert-gguf.py, in this process."""
    command = ["convert-gguf.py", str(file), kind, name, "--output-dir", str(folder)]
    with unittest.mock.patch.object(sys, "argv", command), pytest.raises(SystemExit) as done:
        runpy.run_path(str(REPOSITORY / "converter" / "convert-gguf.py"), run_name="__main__")
    assert done.value.code == 0
    return next(folder.glob(f"dllama_model_{name}_*.m"))


def convert_hf(folder: pathlib.Path, kind: str, output: pathlib.Path) -> pathlib.Path:
    checkpoint = open_checkpoint(folder)
    image = ModelImage(make_plan(folder, checkpoint), kind, "m")
    return convert(encode_rows_of(checkpoint), image, output / "hf")


def described(path: pathlib.Path) -> dict[str, tuple[str, bytes]]:
    """Type and bytes of each tensor of a described .m file."""
    data = path.read_bytes()
    pairs = dict(
        struct.unpack_from("<ii", data, 8 + 8 * i) for i in range((struct.unpack_from("<i", data, 4)[0] - 8) // 8)
    )
    document = json.loads(data[48 : 48 + pairs[100]])
    rates = {"F32": 4, "F16": 2, "BF16": 2, "Q40": 18 / 32, "Q80": 34 / 32}
    return {
        name: (dtype, data[offset : offset + int(np.prod(shape) * rates[dtype])])
        for name, dtype, shape, offset, _ in document["tensors"]
    }


@pytest.mark.parametrize("model", MODELS)
def test_f32_gives_the_same_file(model, golden, tmp_path):
    """Same bytes: same names, shapes, configuration and values, rope permutation and fused tensors undone."""
    gguf_files.write(tmp_path / "m.gguf", golden / model, Kind.F32)
    path = convert_gguf(tmp_path / "m.gguf", "f32", tmp_path)
    assert path.read_bytes() == convert_hf(golden / model, "F32", tmp_path).read_bytes()


@pytest.mark.parametrize(
    ("kind", "ours"), [(Kind.Q4_0, "Q40"), (Kind.Q8_0, "Q80"), (Kind.BF16, "BF16"), (Kind.F16, "F16")]
)
def test_types_of_ours_are_copied(kind, ours, golden, tmp_path):
    written = gguf_files.write(tmp_path / "m.gguf", golden / "glm4moe-16x2", kind)
    path = convert_gguf(tmp_path / "m.gguf", "keep", tmp_path)
    assert path.name == f"dllama_model_m_{ours.lower()}.m"
    tensors = described(path)
    for name, source in {
        "token_embedding.weight": written["token_embd.weight"],
        "layers.0.attn.q.weight": written["blk.0.attn_q.weight"],
        "layers.0.ffn.down.weight": written["blk.0.ffn_down.weight"],
        "layers.1.moe.experts.0.gate.weight": written["blk.1.ffn_gate_exps.weight"][0],
        "layers.2.moe.experts.15.down.weight": written["blk.2.ffn_down_exps.weight"][15],
        "head.weight": written["output.weight"],
    }.items():
        assert tensors[name] == (ours, source.tobytes()), name
    assert tensors["layers.1.moe.router.weight"] == ("F32", written["blk.1.ffn_gate_inp.weight"].tobytes())


def test_q4_0_llama_keeps_blocks_through_the_permutation(golden, tmp_path):
    """llama.cpp's row order is the legacy file's: q is copied as it lies there. The legacy embedding is F32."""
    written = gguf_files.write(tmp_path / "m.gguf", golden / "llama", Kind.Q4_0)
    data = convert_gguf(tmp_path / "m.gguf", "keep", tmp_path).read_bytes()
    header = struct.unpack_from("<i", data, 4)[0]
    embedding = gguf.dequantize(written["token_embd.weight"], Kind.Q4_0).tobytes()
    q = written["blk.0.attn_q.weight"].tobytes()
    at = header + len(embedding)
    assert data[header:at] == embedding
    assert data[at : at + len(q)] == q


def test_other_quants_are_dequantised(golden, tmp_path):
    """Q4_1 has 5 bits a value: keep makes it Q80, and q and k become what v needs."""
    config = json.loads((golden / "glm4-dense" / "config.json").read_text())
    w = gguf_files.start(tmp_path / "m.gguf", config)
    for name, values in gguf_files.tensors(golden / "glm4-dense", config).items():
        kind = Kind.F32 if values.ndim == 1 else Kind.Q4_1 if "attn_v" in name else Kind.Q4_0
        w.add_tensor(name, gguf.quantize(values, kind), raw_dtype=kind)
        if name == "blk.0.attn_v.weight":
            expected = gguf.dequantize(gguf.quantize(values, kind), kind)
    gguf_files.finish(w)
    tensors = described(convert_gguf(tmp_path / "m.gguf", "keep", tmp_path))
    assert [tensors[f"layers.0.attn.{part}.weight"][0] for part in "qkvo"] == ["Q80", "Q80", "Q80", "Q40"]
    stored = gguf.dequantize(
        np.frombuffer(tensors["layers.0.attn.v.weight"][1], np.uint8).reshape(len(expected), -1), Kind.Q8_0
    )
    assert np.abs(stored - expected).max() <= np.abs(expected).max() / 127


# Where the F16 scales of a block lie, in bytes: random bytes there would be infinities.
SCALES = {
    Kind.Q2_K: (80, 82),
    Kind.Q3_K: (108,),
    Kind.Q4_K: (0, 2),
    Kind.Q5_K: (0, 2),
    Kind.Q6_K: (208,),
    Kind.IQ2_XXS: (0,),
    Kind.IQ3_S: (0,),
    Kind.IQ4_NL: (0,),
    Kind.IQ4_XS: (0,),
}


def random_blocks(random: np.random.Generator, kind: Kind, rows: int, columns: int) -> np.ndarray:
    """Stored rows of a quant that the gguf package reads and cannot write."""
    values, size = gguf.GGML_QUANT_SIZES[kind]
    blocks = random.integers(0, 256, (rows * columns // values, size), np.uint8)
    for at in SCALES[kind]:
        blocks[:, at : at + 2] = random.uniform(-0.01, 0.01, (len(blocks), 1)).astype(np.float16).view(np.uint8)
    return blocks.reshape(rows, -1)


@pytest.mark.parametrize("kind", list(SCALES), ids=lambda kind: kind.name)
def test_k_and_i_quants_are_dequantised(kind, golden, tmp_path):
    """A matrix of 256 columns: in F32 the package's values, with keep the nearest of our types."""
    config = json.loads((golden / "glm4-dense" / "config.json").read_text())
    seed = 5
    random = np.random.default_rng(seed)
    w = gguf_files.start(tmp_path / "m.gguf", config)
    for name, values in gguf_files.tensors(golden / "glm4-dense", config).items():
        if name == "blk.0.ffn_down.weight":
            assert values.shape[1] == 256
            blocks = random_blocks(random, kind, *values.shape)
            w.add_tensor(name, blocks, raw_dtype=kind)
        else:
            w.add_tensor(name, values)
    gguf_files.finish(w)
    expected = gguf.dequantize(blocks, kind)
    stored = described(convert_gguf(tmp_path / "m.gguf", "f32", tmp_path))["layers.0.ffn.down.weight"][1]
    assert stored == expected.tobytes(), f"seed {seed}"
    dtype, stored = described(convert_gguf(tmp_path / "m.gguf", "keep", tmp_path / "keep"))["layers.0.ffn.down.weight"]
    values, size = gguf.GGML_QUANT_SIZES[kind]
    assert dtype == ("Q40" if 8 * size / values < 5 else "Q80")
    assert stored == encode(dtype, expected).tobytes(), f"seed {seed}"


def by_the_book(kind: Kind, b: np.ndarray) -> list[float]:
    """The values of one block, one by one, by the format's description."""

    def half(at: int) -> float:
        return float(b[at : at + 2].view(np.float16)[0])

    def nibble(at: int, i: int, half_block: int = 16) -> int:
        return int(b[at + i % half_block]) >> 4 * (i // half_block) & 15

    table = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
    if kind is Kind.IQ4_NL:
        return [half(0) * table[nibble(2, i)] for i in range(32)]
    if kind is Kind.IQ4_XS:  # 8 parts of 32 with scales of 6 bits: 4 low ones in bytes 4 to 7, 2 high ones in 2 and 3
        high = int(b[2]) | int(b[3]) << 8
        scale = [(int(b[4 + p // 2]) >> 4 * (p % 2) & 15 | (high >> 2 * p & 3) << 4) - 32 for p in range(8)]
        return [half(0) * scale[p] * table[nibble(8 + 16 * p, i)] for p in range(8) for i in range(32)]
    if kind is Kind.Q4_K:  # parts of 32 in pairs, low nibbles before high ones; scales and minima have 6 bits
        s = [int(x) for x in b[4:16]]
        scale = [s[p] & 63 if p < 4 else s[p + 4] & 15 | s[p - 4] >> 6 << 4 for p in range(8)]
        least = [s[p + 4] & 63 if p < 4 else s[p + 4] >> 4 | s[p] >> 6 << 4 for p in range(8)]
        return [
            half(0) * scale[p] * nibble(16 + 32 * (p // 2), 32 * (p % 2) + i, 32) - half(2) * least[p]
            for p in range(8)
            for i in range(32)
        ]
    assert kind is Kind.Q6_K  # two halves of 128: 4 low bits in 64 bytes, 2 high ones in 32; a scale for each 16 values
    scales = b[192:208].view(np.int8)
    values = []
    for at in range(256):
        first, i = divmod(at, 128)
        high = int(b[128 + 32 * first + i % 32]) >> 2 * (i // 32) & 3
        q = (nibble(64 * first, i, 64) | high << 4) - 32
        values.append(half(208) * int(scales[at // 16]) * q)
    return values


@pytest.mark.parametrize("kind", [Kind.Q4_K, Kind.Q6_K, Kind.IQ4_NL, Kind.IQ4_XS], ids=lambda kind: kind.name)
def test_package_reads_quants_by_the_book(kind):
    """What the package dequantises, which the import relies on, is what the formats say."""
    seed = 6
    for block in random_blocks(np.random.default_rng(seed), kind, 8, gguf.GGML_QUANT_SIZES[kind][0]):
        assert np.allclose(gguf.dequantize(block, kind), by_the_book(kind, block), rtol=1e-6, atol=1e-7), f"seed {seed}"


def test_split_file(golden, tmp_path):
    """Parts are found from the first; a missing one is named."""
    gguf_files.write(tmp_path / "m.gguf", golden / "qwen3", Kind.F32)
    whole = convert_gguf(tmp_path / "m.gguf", "f32", tmp_path).read_bytes()
    config = json.loads((golden / "qwen3" / "config.json").read_text())
    parts = [tmp_path / f"p-0000{i}-of-00002.gguf" for i in (1, 2)]
    writers = [gguf_files.start(parts[0], config), gguf.GGUFWriter(parts[1], "qwen3")]
    writers[0].add_eos_token_id(1)
    writers[0].add_eot_token_id(2)
    for i, (name, values) in enumerate(gguf_files.tensors(golden / "qwen3", config).items()):
        writers[i % 2].add_tensor(name, values)
    for writer in writers:
        gguf_files.finish(writer)
    assert convert_gguf(parts[0], "f32", tmp_path / "split").read_bytes() == whole
    parts[1].unlink()
    with pytest.raises(FileNotFoundError, match="p-00002-of-00002"):
        GgufFile(parts[0])


def test_damaged_and_foreign_files_are_refused(golden, tmp_path):
    path = tmp_path / "m.gguf"
    gguf_files.write(path, golden / "llama", Kind.Q4_0)
    data = path.read_bytes()
    path.write_bytes(data[:-1000])
    with pytest.raises(ConversionError, match="truncated"):
        GgufFile(path)
    path.write_bytes(b"<html>not found</html>" * 10)
    with pytest.raises(ConversionError, match="not a GGUF file"):
        GgufFile(path)
    w = gguf.GGUFWriter(path, "gpt2")
    gguf_files.finish(w)
    with pytest.raises(ConversionError, match="'gpt2' is not supported"):
        GgufFile(path)


def test_logits(golden, tmp_path, program):
    """The converted file runs, and its logits are the golden ones."""
    gguf_files.write(tmp_path / "m.gguf", golden / "glm4moe-16x2", Kind.F32)
    path = convert_gguf(tmp_path / "m.gguf", "f32", tmp_path)
    reference = json.loads((golden / "glm4moe-16x2" / "golden.json").read_text())
    case = reference["cases"][0]
    command = [
        program,
        "logits",
        "--model",
        path,
        "--ids",
        ",".join(map(str, case["prompt"])),
        "--out",
        tmp_path / "out",
    ]
    subprocess.run(command, check=True, capture_output=True)
    rows = np.fromfile(tmp_path / "out", np.float32).reshape(len(case["prompt"]), -1)[case["logits_first_row"] :]
    expected = np.fromfile(golden / "glm4moe-16x2" / "logits.f32", np.float32)[case["offset"] :][: rows.size]
    # F32 throughout: what is left is the order of additions (tests/golden has the same limit).
    assert np.abs(rows - expected.reshape(rows.shape)).max() < 1e-3


# ----------------------------------------------------------------------------------------------------------- tokenizer


def tokenizer_file(path: pathlib.Path, architecture: str, fill) -> GgufFile:
    w = gguf.GGUFWriter(path, architecture)
    fill(w)
    gguf_files.finish(w)
    return GgufFile(path)


def test_byte_level_tokenizer(tmp_path):
    """The same tokenizer by tokenizer.json and by GGUF."""
    pieces = ["a", "b", "Ġ", "c", "Ġa", "bc", "Ġabc", "Ċ"]
    merges = [["Ġ", "a"], ["b", "c"], ["Ġa", "bc"]]
    added = [(8, "<|endoftext|>", True), (9, "<|user|>", True), (10, "<think>", False)]
    pattern = load_pattern()
    document = {
        "added_tokens": [{"id": i, "content": text, "special": special} for i, text, special in added],
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False},
                {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False},
            ],
        },
        "model": {
            "type": "BPE",
            "ignore_merges": True,
            "vocab": {p: i for i, p in enumerate(pieces)},
            "merges": merges,
        },
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(document))
    template = "[gMASK]<sop>{{ messages }}<|assistant|><think></think>/nothink"
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [8, 9]}))

    def fill(w: gguf.GGUFWriter) -> None:
        control, user = gguf.TokenType.CONTROL, gguf.TokenType.USER_DEFINED
        w.add_tokenizer_model("gpt2")
        w.add_tokenizer_pre("glm4")
        w.add_token_list([*pieces, *(text for _, text, _ in added), "[PAD11]"])
        types = [1] * len(pieces) + [control if special else user for _, _, special in added]
        w.add_token_types([*types, gguf.TokenType.UNUSED])
        w.add_token_merges([" ".join(pair) for pair in merges])
        w.add_eos_token_id(8)
        w.add_bos_token_id(8)
        w.add_chat_template(template)

    t = read_tokenizer(tokenizer_file(tmp_path / "t.gguf", "glm4moe", fill))
    assert t == load_tokenizer(tmp_path)
    assert t.chat_template == template


def load_pattern() -> str:
    from dllama_convert.tokenizers import CL100K_PATTERN

    return CL100K_PATTERN


def test_sentencepiece_tokenizer(tmp_path):
    """The rebuilt model cuts like the one the GGUF was made from, bytes and runs of blanks included."""
    text = tmp_path / "text"
    text.write_text("\n".join(f"the cat number {i} sat on mat {i * 7} and saw {i * i} birds" for i in range(300)))
    sentencepiece.SentencePieceTrainer.Train(
        f"--input={text} --model_prefix={tmp_path}/tokenizer --vocab_size=400 --model_type=bpe --byte_fallback=true "
        "--normalization_rule_name=identity --remove_extra_whitespaces=false --minloglevel=2"
    )
    original = sentencepiece.SentencePieceProcessor(model_file=f"{tmp_path}/tokenizer.model")
    size = original.GetPieceSize()

    def kind(i: int) -> int:
        if original.IsUnknown(i):
            return gguf.TokenType.UNKNOWN
        if original.IsControl(i):
            return gguf.TokenType.CONTROL
        return gguf.TokenType.BYTE if original.IsByte(i) else gguf.TokenType.NORMAL

    def fill(w: gguf.GGUFWriter) -> None:
        w.add_tokenizer_model("llama")
        w.add_token_list([original.IdToPiece(i) for i in range(size)])
        w.add_token_scores([original.GetScore(i) for i in range(size)])
        w.add_token_types([kind(i) for i in range(size)])
        w.add_bos_token_id(1)
        w.add_eos_token_id(2)

    t = read_tokenizer(tokenizer_file(tmp_path / "t.gguf", "llama", fill))
    rebuilt = sentencepiece.SentencePieceProcessor(model_proto=t.model)
    for sample in ("the cat sat", "  two  blanks ", "übermäßig 猫\n\ttab", "", "number 49 birds on mats"):
        assert rebuilt.EncodeAsIds(sample) == original.EncodeAsIds(sample), sample
    expected = load_tokenizer(tmp_path)
    assert (t.vocab, t.special, t.bos_id, t.add_bos, t.eos_ids) == (
        expected.vocab,
        expected.special,
        expected.bos_id,
        expected.add_bos,
        expected.eos_ids,
    )
    assert np.allclose(t.scores, expected.scores)


def test_llama3_rope_scaling_is_found_again(tmp_path):
    """Parameters from the divisors that llama.cpp's converter writes, computed here frequency by frequency."""
    divisors = []
    for j in range(64):
        wavelength = 2 * np.pi * 500000.0 ** (j / 64)
        if wavelength < 8192 / 4:
            divisors.append(1.0)
        elif wavelength > 8192:
            divisors.append(32.0)
        else:
            smooth = (8192 / wavelength - 1) / 3
            divisors.append(1 / ((1 - smooth) / 32 + smooth))

    def fill(w: gguf.GGUFWriter) -> None:
        w.add_rope_freq_base(500000.0)
        w.add_tensor("rope_freqs.weight", np.array(divisors, np.float32))

    file = tokenizer_file(tmp_path / "t.gguf", "llama", fill)
    assert _llama3_scaling(file)["factor"] == 32
    divisors[40] *= 1.5
    with pytest.raises(ConversionError, match="rope_freqs"):
        _llama3_scaling(tokenizer_file(tmp_path / "u.gguf", "llama", fill))
