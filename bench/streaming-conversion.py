#!/usr/bin/env python3
"""Disk, memory and speed of the streaming conversion on a synthetic GLM-4.5 checkpoint, served by the stand-in hub.

    bench/streaming-conversion.py [--gigabytes 4] [--shards 20] [--folder FOLDER]

Needs about 1.5 times the checkpoint's size in FOLDER (default: the system's temporary folder), and deletes it after.
Exit code 1 if the disk held more than the output and 1.2 shards, or the process more than 1.5 GB."""

import argparse
import contextlib
import json
import os
import pathlib
import resource
import struct
import subprocess
import sys
import tempfile
import time
import urllib.request

import numpy as np

REPOSITORY = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY / "tests" / "launcher"))
from stand_in_hub import running_hub  # noqa: E402

HIDDEN, HEADS, KV_HEADS, HEAD_DIM, EXPERTS, EXPERT_WIDTH, DENSE_WIDTH, VOCABULARY = (
    2048,
    32,
    4,
    128,
    64,
    704,
    5472,
    32000,
)


def config(layers: int) -> dict:
    return {
        "architectures": ["Glm4MoeForCausalLM"],
        "attention_bias": True,
        "eos_token_id": [1],
        "first_k_dense_replace": 1,
        "head_dim": HEAD_DIM,
        "hidden_act": "silu",
        "hidden_size": HIDDEN,
        "intermediate_size": DENSE_WIDTH,
        "max_position_embeddings": 4096,
        "moe_intermediate_size": EXPERT_WIDTH,
        "n_group": 1,
        "n_routed_experts": EXPERTS,
        "n_shared_experts": 1,
        "norm_topk_prob": True,
        "num_attention_heads": HEADS,
        "num_experts_per_tok": 8,
        "num_hidden_layers": layers,
        "num_key_value_heads": KV_HEADS,
        "partial_rotary_factor": 0.5,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1000000.0,
        "routed_scaling_factor": 1.0,
        "tie_word_embeddings": False,
        "topk_group": 1,
        "use_qk_norm": False,
        "vocab_size": VOCABULARY,
    }


def mlp(prefix: str, width: int) -> list[tuple[str, tuple[int, ...]]]:
    shapes = {"gate_proj": (width, HIDDEN), "up_proj": (width, HIDDEN), "down_proj": (HIDDEN, width)}
    return [(f"{prefix}{part}.weight", shape) for part, shape in shapes.items()]


def tensors(layers: int) -> list[tuple[str, tuple[int, ...]]]:
    """Names and shapes in the order of a checkpoint; all are BF16."""
    found = [("model.embed_tokens.weight", (VOCABULARY, HIDDEN))]
    for i in range(layers):
        layer = f"model.layers.{i}."
        found += [(f"{layer}{part}_layernorm.weight", (HIDDEN,)) for part in ("input", "post_attention")]
        for letter, heads in (("q", HEADS), ("k", KV_HEADS), ("v", KV_HEADS)):
            found.append((f"{layer}self_attn.{letter}_proj.weight", (heads * HEAD_DIM, HIDDEN)))
            found.append((f"{layer}self_attn.{letter}_proj.bias", (heads * HEAD_DIM,)))
        found.append((f"{layer}self_attn.o_proj.weight", (HIDDEN, HEADS * HEAD_DIM)))
        if i == 0:
            found += mlp(f"{layer}mlp.", DENSE_WIDTH)
            continue
        found.append((f"{layer}mlp.gate.weight", (EXPERTS, HIDDEN)))
        found.append((f"{layer}mlp.gate.e_score_correction_bias", (EXPERTS,)))
        for e in range(EXPERTS):
            found += mlp(f"{layer}mlp.experts.{e}.", EXPERT_WIDTH)
        found += mlp(f"{layer}mlp.shared_experts.", EXPERT_WIDTH)
    return [*found, ("model.norm.weight", (HIDDEN,)), ("lm_head.weight", (VOCABULARY, HIDDEN))]


def size_of(shape: tuple[int, ...]) -> int:
    return 2 * int(np.prod(shape))


def write_checkpoint(folder: pathlib.Path, gigabytes: float, n_shards: int) -> int:
    """Writes the shards and returns their bytes."""
    layers = 2
    while sum(size_of(shape) for _, shape in tensors(layers)) < gigabytes * 1e9:
        layers += 1
    every = tensors(layers)
    total = sum(size_of(shape) for _, shape in every)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config(layers)))
    random = np.random.default_rng(1)
    values = (random.standard_normal(1 << 24, np.float32) * np.float32(0.02)).view(np.uint32) >> np.uint32(16)
    stock = values.astype(np.uint16).view(np.uint8)
    weight_map, done = {}, 0
    shards: list[list[tuple[str, tuple[int, ...]]]] = [[] for _ in range(n_shards)]
    for name, shape in every:
        shards[min(n_shards - 1, done * n_shards // total)].append((name, shape))
        done += size_of(shape)
    for k, content in enumerate(shards):
        file_name = f"model-{k + 1:05}-of-{n_shards:05}.safetensors"
        header, end = {}, 0
        for name, shape in content:
            header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [end, end + size_of(shape)]}
            end += size_of(shape)
            weight_map[name] = file_name
        text = json.dumps(header).encode()
        with open(folder / file_name, "wb") as file:
            file.write(struct.pack("<Q", len(text)) + text)
            while end > 0:
                file.write(stock[: min(end, len(stock))])
                end -= len(stock)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return total


def disk_bytes(folder: pathlib.Path, process: int) -> int:
    """Bytes that the files in `folder` take up, deleted ones that the process holds open included."""
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            total += path.stat().st_blocks * 512
    with contextlib.suppress(FileNotFoundError, PermissionError):
        for descriptor in pathlib.Path(f"/proc/{process}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):
                status = descriptor.stat()
                if status.st_nlink == 0:
                    total += status.st_blocks * 512
    return total


def peak_memory(process: int) -> int:
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for line in pathlib.Path(f"/proc/{process}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=4)
    parser.add_argument("--shards", type=int, default=20)
    parser.add_argument("--folder", type=pathlib.Path, default=None)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as temporary, running_hub() as hub:
        source, output = pathlib.Path(temporary) / "repository", pathlib.Path(temporary) / "output"
        total = write_checkpoint(source, args.gigabytes, args.shards)
        largest = max(path.stat().st_size for path in source.glob("*.safetensors"))
        hub.repositories["owner/synthetic"] = source
        urllib.request.urlopen(f"{hub.endpoint}/api/models/owner/synthetic").close()  # the real hub knows its hashes
        command = [sys.executable, REPOSITORY / "converter" / "convert-hub.py", "owner/synthetic", "q40", "synthetic"]
        started = time.monotonic()
        process = subprocess.Popen(
            [*command, "--output-dir", output],
            env=os.environ | {"HF_ENDPOINT": hub.endpoint},
            stdout=subprocess.DEVNULL,
        )
        disk = memory = 0
        while process.poll() is None:
            disk = max(disk, disk_bytes(output, process.pid))
            memory = max(memory, peak_memory(process.pid))
            time.sleep(0.05)
        seconds = time.monotonic() - started
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        if process.returncode:
            return process.returncode
        result = next(output.glob("*.m")).stat().st_size
    limit = result + 1.2 * largest
    print(f"input   {total / 1e9:.2f} GB in {args.shards} shards, the largest {largest / 1e6:.0f} MB")
    print(f"output  {result / 1e9:.2f} GB")
    print(f"disk    {disk / 1e9:.2f} GB at most, output and {(disk - result) / largest:.2f} shards (limit 1.2)")
    print(f"memory  {memory / 1e9:.2f} GB at most (limit 1.5)")
    print(f"speed   {total / seconds / 1e6:.0f} MB/s of input, download and hash included, in {seconds:.0f} s")
    cpu = used.ru_utime + used.ru_stime
    print(f"cpu     {cpu:.0f} s of cores, {total / cpu / 1e6:.0f} MB/s of input for each core")
    return int(disk > limit or memory > 1.5e9)


if __name__ == "__main__":
    sys.exit(main())
