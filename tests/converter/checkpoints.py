"""Checkpoint folders: the reference models of tests/data/golden, taken apart and written in other forms."""

import collections
import contextlib
import dataclasses
import importlib.util
import io
import json
import math
import pathlib
import pickle
import struct
import sys
import types
import zipfile
from unittest import mock

ROOT = pathlib.Path(__file__).parents[2]

# Tensors by name: (dtype as safetensors names it, shape, row-major bytes).
Tensors = dict[str, tuple[str, list[int], bytes]]


def golden(name: str) -> tuple[dict, Tensors]:
    """config.json and the tensors of a reference model."""
    folder = ROOT / "tests" / "data" / "golden" / name
    data = (folder / "model.safetensors").read_bytes()
    length = struct.unpack_from("<Q", data)[0]
    tensors = {}
    for key, entry in json.loads(data[8 : 8 + length]).items():
        if key != "__metadata__":
            begin, end = (8 + length + at for at in entry["data_offsets"])
            tensors[key] = (entry["dtype"], entry["shape"], data[begin:end])
    return json.loads((folder / "config.json").read_text()), tensors


def zeros(*shape: int) -> tuple[str, list[int], bytes]:
    return "BF16", list(shape), bytes(2 * math.prod(shape))


def write_safetensors(path: pathlib.Path, tensors: Tensors) -> None:
    header, at = {}, 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + len(data)]}
        at += len(data)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(data for _, _, data in tensors.values()))


def write_torch(path: pathlib.Path, tensors: Tensors, strides: tuple[int, ...] | None = None) -> None:
    """The file that torch.save makes of a state dictionary. `strides`: of the first tensor, if not row by row."""
    storages = {"F32": "FloatStorage", "F16": "HalfStorage", "BF16": "BFloat16Storage"}
    torch, utils = types.ModuleType("torch"), types.ModuleType("torch._utils")
    for name in storages.values():
        setattr(torch, name, type(name, (), {"__module__": "torch"}))

    def _rebuild_tensor_v2(): ...

    _rebuild_tensor_v2.__module__, _rebuild_tensor_v2.__qualname__ = "torch._utils", "_rebuild_tensor_v2"
    utils._rebuild_tensor_v2 = _rebuild_tensor_v2

    class Storage:
        def __init__(self, member: str, dtype: str, values: int):
            self.id = ("storage", getattr(torch, storages[dtype]), member, "cpu", values)

    class Tensor:
        def __init__(self, *arguments):
            self.arguments = arguments

        def __reduce__(self):
            return _rebuild_tensor_v2, (*self.arguments, False, collections.OrderedDict())

    class Pickler(pickle.Pickler):
        def persistent_id(self, value):
            return value.id if isinstance(value, Storage) else None

    state = collections.OrderedDict()
    for i, (name, (dtype, shape, _)) in enumerate(tensors.items()):
        rows = tuple(math.prod(shape[j + 1 :]) for j in range(len(shape)))
        storage = Storage(str(i), dtype, math.prod(shape))
        state[name] = Tensor(storage, 0, tuple(shape), strides if strides and i == 0 else rows)
    with zipfile.ZipFile(path, "w") as archive:
        with (
            mock.patch.dict(sys.modules, {"torch": torch, "torch._utils": utils}),
            archive.open("archive/data.pkl", "w") as file,
        ):
            Pickler(file, protocol=2).dump(state)
        archive.writestr("archive/version", "3\n")
        archive.writestr("archive/byteorder", "little")
        for i, (_, _, data) in enumerate(tensors.values()):
            info = zipfile.ZipInfo(f"archive/data/{i}")
            # PyTorch pads so that the bytes are aligned: only the member's own header knows where they begin.
            info.extra = struct.pack("<HH", 0x4246, 2 * i) + bytes(2 * i)
            archive.writestr(info, data)


def write_folder(folder: pathlib.Path, config: dict, tensors: Tensors, shards: int = 1, torch: bool = False):
    """A checkpoint folder; tensors are dealt to the shards in turn. Returns `folder`."""
    stem, suffix, write = (
        ("pytorch_model", ".bin", write_torch) if torch else ("model", ".safetensors", write_safetensors)
    )
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    if shards == 1:
        write(folder / f"{stem}{suffix}", tensors)
        return folder
    weight_map = {name: f"{stem}-{i % shards + 1:05}-of-{shards:05}{suffix}" for i, name in enumerate(tensors)}
    for file in set(weight_map.values()):
        write(folder / file, {name: tensors[name] for name in tensors if weight_map[name] == file})
    (folder / f"{stem}{suffix}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


@dataclasses.dataclass
class Result:
    returncode: int
    stdout: str
    stderr: str


def run_tool(name: str, *arguments) -> Result:
    """A program of converter/ with these arguments, inside this process: starting Python takes longer than its work."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "converter" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    out, errors = io.StringIO(), io.StringIO()
    with mock.patch.object(sys, "argv", [name, *map(str, arguments)]):
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
            code = module.main()
    return Result(code, out.getvalue(), errors.getvalue())


def run_converter(folder: pathlib.Path, output: pathlib.Path, weight_type: str = "f32", *flags: str) -> Result:
    return run_tool("convert-hf", folder, weight_type, "model", "--output-dir", output, *flags)


def converted(folder: pathlib.Path, weight_type: str = "f32", *flags: str) -> bytes:
    """The .m file that convert-hf.py makes of a checkpoint folder."""
    output = folder.with_name(f"{folder.name}-{weight_type}")
    result = run_converter(folder, output, weight_type, *flags)
    assert result.returncode == 0, result.stderr
    return (output / f"dllama_model_model_{weight_type}.m").read_bytes()


def document(model: bytes) -> dict:
    """The JSON document of a described .m file."""
    magic, _, version_key, version, arch_key, arch, json_key, length = struct.unpack_from("<8i", model)
    assert (magic, version_key, version, arch_key, arch, json_key) == (0x0A00ABCD, 0, 1, 1, 0xABCD10, 100)
    return json.loads(model[48 : 48 + length])
