"""Download and streaming conversion against a stand-in for the hub that is slow, breaks off and sends damaged files."""

import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
import traceback

import numpy as np
import pytest
from conftest import REPOSITORY
from dllama_convert import ConversionError
from dllama_convert.checkpoint import open_checkpoint
from dllama_convert.convert import ModelImage, convert, encode_rows_of
from dllama_convert.downloads import download
from dllama_convert.families import make_plan
from dllama_convert.streaming import StreamingConversion
from stand_in_hub import Fault, shard

MODELS = [
    "chatglm-6b", "glm-4-9b-chat", "glm-hf-bias", "glm4-dense", "glm4moe-16x2", "llama", "qwen3", "qwen3moe", "qwen2",
    "solar-open", "glm45v-text", "glm41v-text", "glm-ocr-text",
]  # fmt: skip


def command(output: pathlib.Path) -> list:
    return [
        sys.executable,
        REPOSITORY / "converter" / "convert-hub.py",
        "owner/model",
        "q40",
        "m",
        "--output-dir",
        output,
    ]


def run(output: pathlib.Path, **environment: str) -> subprocess.CompletedProcess:
    """The command, as a process of its own."""
    env = os.environ | environment
    return subprocess.run(command(output), env=env, capture_output=True, text=True, timeout=120, check=False)


def stream(output: pathlib.Path, kind: str = "Q40") -> pathlib.Path:
    """The same in this process."""
    return StreamingConversion("owner/model", kind, "m", output).run()


def converted_here(folder: pathlib.Path, kind: str, output: pathlib.Path) -> bytes:
    checkpoint = open_checkpoint(folder)
    image = ModelImage(make_plan(folder, checkpoint), kind.upper(), "m")
    return convert(encode_rows_of(checkpoint), image, output).read_bytes()


def only_the_model(output: pathlib.Path, kind: str = "q40") -> bytes:
    """The finished file, beside which nothing was left."""
    assert [p.name for p in output.iterdir()] == [f"dllama_model_m_{kind}.m"]
    return (output / f"dllama_model_m_{kind}.m").read_bytes()


@pytest.mark.parametrize("model", MODELS)
def test_every_family(model, golden, hub, tmp_path):
    """From the hub to the program: the same file as from the folder, whatever shard a tensor lies in, and it runs."""
    shard(golden / model, tmp_path / "repo", 5)
    hub.repositories["owner/model"] = tmp_path / "repo"
    stream(tmp_path / "out", "F32")
    assert only_the_model(tmp_path / "out", "f32") == converted_here(golden / model, "f32", tmp_path / "here")
    program = os.environ.get("DLLAMA_PROGRAM")
    if not program:
        pytest.skip("converted as it should be; DLLAMA_PROGRAM does not name the program: not run")
    case = json.loads((golden / model / "golden.json").read_text())["cases"][0]
    ids = ",".join(map(str, case["prompt"]))
    model_file = tmp_path / "out" / "dllama_model_m_f32.m"
    subprocess.run(
        [program, "logits", "--model", model_file, "--ids", ids, "--out", tmp_path / "rows"],
        check=True,
        capture_output=True,
    )
    rows = np.fromfile(tmp_path / "rows", np.float32).reshape(len(case["prompt"]), -1)[case["logits_first_row"] :]
    expected = np.fromfile(golden / model / "logits.f32", np.float32)[case["offset"] :][: rows.size]
    # F32 throughout: what is left is the order of additions (tests/golden compares all cases).
    assert np.abs(rows - expected.reshape(rows.shape)).max() < 2e-3


def test_killed_anywhere_it_goes_on(golden, hub, tmp_path):
    """kill -9 at random moments until a run comes through: no file that looks whole before, the right one after."""
    seed = 11
    moments = random.Random(seed)
    names = shard(golden / "glm4moe-128x8", tmp_path / "repo", 6)
    hub.repositories["owner/model"] = tmp_path / "repo"
    # Slow enough that kills fall into downloads as well as between them.
    for name in names:
        hub.faults[name] = Fault(times=10**6, bytes_per_second=4_000_000)
    output, kills = tmp_path / "out", 0
    path = output / "dllama_model_m_q40.m"
    expected = converted_here(golden / "glm4moe-128x8", "q40", tmp_path / "here")
    for _ in range(40):  # each has more time than the last: a busy machine needs it to begin at all
        process = subprocess.Popen(command(output), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        try:
            assert process.wait(moments.uniform(0.7, 1.6) * (1 + kills / 8)) == 0, (
                f"seed {seed}: {process.stderr.read()}"
            )
            break
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1
            # The file may be finished and the process not yet gone.
            assert not path.exists() or path.read_bytes() == expected, f"seed {seed}: after {kills} kills"
    assert kills >= 2, f"seed {seed}: came through too soon to show anything"
    assert only_the_model(output) == expected, f"seed {seed}"
    # A shard is asked for once, and once more for each run that was killed while it came. (Headers are closed ranges.)
    downloads = [wanted for name in names for wanted in hub.asked(name) if not wanted or wanted.endswith("-")]
    assert len(downloads) <= len(names) + kills, f"seed {seed}"


def dies_at(step: int, output: pathlib.Path) -> bool:
    """Streams in a child that dies without a word before its `step`-th change to the disk; whether it got that far."""
    child = os.fork()
    if child == 0:
        left = [step]

        def counted(change):
            def call(*args, **kwargs):
                left[0] -= 1
                if left[0] == 0:
                    os._exit(9)
                return change(*args, **kwargs)

            return call

        os.fsync, os.replace, shutil.rmtree = counted(os.fsync), counted(os.replace), counted(shutil.rmtree)
        pathlib.Path.unlink = counted(pathlib.Path.unlink)
        try:
            stream(output)
            os._exit(0)
        finally:  # not reached when it went well
            traceback.print_exc()
            os._exit(1)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, 9)
    return code == 9


def test_dies_before_each_change_to_the_disk(golden, hub, tmp_path):
    """Every step between two states of the disk: what is left looks like no model, and the next run ends well."""
    shard(golden / "llama", tmp_path / "repo", 2)
    hub.repositories["owner/model"] = tmp_path / "repo"
    expected = converted_here(golden / "llama", "q40", tmp_path / "here")
    step = 1
    while dies_at(step, output := tmp_path / f"out{step}"):
        path = output / "dllama_model_m_q40.m"
        assert not path.exists() or path.read_bytes() == expected, f"step {step}"
        stream(output)
        assert only_the_model(output) == expected, f"step {step}"
        step += 1
    assert step > 12


def test_download_is_taken_up(hub, tmp_path):
    """Killed in the middle of a file and cut off in the rest: only what is missing is fetched again."""
    seed = 12
    (tmp_path / "repo").mkdir()
    data = np.random.default_rng(seed).bytes(35_000_000)
    (tmp_path / "repo" / "big.bin").write_bytes(data)
    hub.repositories["owner/model"] = tmp_path / "repo"
    hub.faults["big.bin"] = Fault(bytes_per_second=15_000_000)
    script = (
        "import pathlib, sys; from dllama_convert.hub import open_repository; r = open_repository('owner/model'); "
        "r.fetch(r.files['big.bin'], pathlib.Path(sys.argv[1]))"
    )
    fetch = [sys.executable, "-c", script, tmp_path / "out"]
    env = os.environ | {"PYTHONPATH": str(REPOSITORY / "converter")}
    first = subprocess.Popen(fetch, env=env, stderr=subprocess.DEVNULL)
    incomplete = tmp_path / "out" / "big.bin.incomplete"
    deadline = time.monotonic() + 30
    while not (incomplete.exists() and incomplete.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.02)
    first.kill()
    first.wait()
    have = incomplete.stat().st_size
    assert 0 < have < len(data)
    hub.faults["big.bin"] = Fault(drop_after=12_000_000)
    subprocess.run(fetch, env=env, check=True, capture_output=True)
    assert (tmp_path / "out" / "big.bin").read_bytes() == data, f"seed {seed}"
    ranges = hub.asked("big.bin")
    assert ranges[:2] == [None, f"bytes={have}-"]
    assert len(ranges) == 3
    assert int(ranges[2].removeprefix("bytes=").removesuffix("-")) > have


def test_partial_file_is_no_model(golden, hub, tmp_path, program):
    """What lies there between two runs is refused even under a .m name: its header is missing."""
    names = shard(golden / "glm4-dense", tmp_path / "repo", 3)
    hub.repositories["owner/model"] = tmp_path / "repo"
    hub.faults[names[2]] = Fault(times=10**6, status=403)
    with pytest.raises(ConversionError, match="403"):
        stream(tmp_path / "out")
    partial = tmp_path / "out" / "dllama_model_m_q40.m.partial"
    done = subprocess.run([program, "info", "--model", partial], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "🚨" in done.stderr


def test_broken_connections(golden, hub, tmp_path):
    """Cut off after some bytes, a server's error, slowness: the file is complete all the same."""
    names = shard(golden / "glm4moe-16x2", tmp_path / "repo", 4)
    hub.repositories["owner/model"] = tmp_path / "repo"
    hub.faults = {
        names[0]: Fault(drop_after=1000),
        names[1]: Fault(status=503),
        names[2]: Fault(bytes_per_second=2_000_000),
        "config.json": Fault(drop_after=10),
    }
    stream(tmp_path / "out")
    assert only_the_model(tmp_path / "out") == converted_here(golden / "glm4moe-16x2", "q40", tmp_path / "here")
    assert len(hub.asked(names[0])) == 3  # header, cut off, whole


def test_damaged_shard_is_refused_and_fetched_again(golden, hub, tmp_path, capsys):
    names = shard(golden / "qwen3", tmp_path / "repo", 3)
    hub.repositories["owner/model"] = tmp_path / "repo"
    hub.faults[names[1]] = Fault(corrupt=True)
    stream(tmp_path / "out")
    assert f"{names[1]} is damaged" in capsys.readouterr().err
    assert only_the_model(tmp_path / "out") == converted_here(golden / "qwen3", "q40", tmp_path / "here")


def test_damaged_every_time(golden, hub, tmp_path):
    """Three times damaged: refused by name; once the file is well again, a run goes on behind the first shard."""
    names = shard(golden / "qwen3", tmp_path / "repo", 3)
    hub.repositories["owner/model"] = tmp_path / "repo"
    hub.faults[names[1]] = Fault(times=3, corrupt=True)
    with pytest.raises(ConversionError, match=f"owner/model: {names[1]} came damaged 3 times"):
        stream(tmp_path / "out")
    hub.requests.clear()
    stream(tmp_path / "out")
    assert hub.asked(names[0]) == []
    assert only_the_model(tmp_path / "out") == converted_here(golden / "qwen3", "q40", tmp_path / "here")


def test_shard_damaged_on_this_disk(golden, hub, tmp_path):
    """A downloaded shard is checked again when a later run finds it."""
    names = shard(golden / "llama", tmp_path / "repo", 2)
    hub.repositories["owner/model"] = tmp_path / "repo"
    hub.faults[names[1]] = Fault(times=10**6, status=403)
    with pytest.raises(ConversionError, match="403"):
        stream(tmp_path / "out")
    hub.faults.clear()
    data = bytearray((tmp_path / "repo" / names[1]).read_bytes())
    data[-100] ^= 1
    (tmp_path / "out" / "dllama_model_m_q40.m.work" / names[1]).write_bytes(data)
    stream(tmp_path / "out")
    assert only_the_model(tmp_path / "out") == converted_here(golden / "llama", "q40", tmp_path / "here")


def test_offline(golden, hub, tmp_path):
    """Without the network: a finished model is found, an unfinished one is refused with the reason."""
    shard(golden / "llama", tmp_path / "repo", 2)
    hub.repositories["owner/model"] = tmp_path / "repo"
    done = run(tmp_path / "out", HF_HUB_OFFLINE="1")
    assert done.returncode == 1
    assert "HF_HUB_OFFLINE is set" in done.stderr
    assert run(tmp_path / "out").returncode == 0
    hub.requests.clear()
    assert run(tmp_path / "out", HF_HUB_OFFLINE="1").returncode == 0
    assert hub.requests == []


def test_best_quality(golden, hub, tmp_path):
    """As from a folder; what was begun is not gone on with in another quality."""
    names = shard(golden / "glm4-dense", tmp_path / "repo", 3)
    hub.repositories["owner/model"] = tmp_path / "repo"
    hub.faults[names[1]] = Fault(times=1, status=403)
    with pytest.raises(ConversionError, match="403"):
        StreamingConversion("owner/model", "Q40", "m", tmp_path / "out", quality="best").run()
    with pytest.raises(ConversionError, match="belongs to the conversion of owner/model Q40 m best"):
        stream(tmp_path / "out")
    StreamingConversion("owner/model", "Q40", "m", tmp_path / "out", quality="best").run()
    checkpoint = open_checkpoint(golden / "glm4-dense")
    image = ModelImage(make_plan(golden / "glm4-dense", checkpoint), "Q40", "m")
    expected = convert(encode_rows_of(checkpoint, "best"), image, tmp_path / "here").read_bytes()
    assert only_the_model(tmp_path / "out") == expected
    assert expected != converted_here(golden / "glm4-dense", "q40", tmp_path / "fast")


def test_no_network(tmp_path):
    """A few attempts, then one line that names the hub."""
    done = run(tmp_path / "out", HF_ENDPOINT="http://127.0.0.1:9")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        "🚨 owner/model: Connection refused; http://127.0.0.1:9 is not reached (HF_ENDPOINT names a mirror): "
        "run again to go on"
    )


def test_full_disk(golden, hub, tmp_path, monkeypatch):
    """Said before anything large is fetched."""
    names = shard(golden / "qwen3", tmp_path / "repo", 3)
    hub.repositories["owner/model"] = tmp_path / "repo"
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    for begin in (lambda: stream(tmp_path / "out"), lambda: download("owner/model", "m", tmp_path / "out", [], None)):
        with pytest.raises(ConversionError, match="0.0 GB are free on this disk"):
            begin()
    # Headers only: ranges with an end.
    assert all(wanted and not wanted.endswith("-") for name in names for wanted in hub.asked(name))


def test_token(golden, hub, tmp_path, monkeypatch):
    shard(golden / "llama", tmp_path / "repo", 2)
    hub.repositories["owner/model"] = tmp_path / "repo"
    hub.token = "hf_secret"
    with pytest.raises(ConversionError, match="HF_TOKEN"):
        stream(tmp_path / "out")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    stream(tmp_path / "out")


def test_what_is_not_there(golden, hub, tmp_path):
    done = run(tmp_path / "out")
    assert done.returncode == 1
    assert done.stderr.startswith("🚨 owner/model: there is no such repository")
    shard(golden / "llama", tmp_path / "repo", 2)
    (tmp_path / "repo" / "model-00002-of-00002.safetensors").unlink()
    hub.repositories["owner/model"] = tmp_path / "repo"
    with pytest.raises(ConversionError, match="model-00002-of-00002.safetensors, which is not there"):
        stream(tmp_path / "out")


def test_two_at_once(golden, hub, tmp_path):
    """A second process on the same model is refused, and the first is not disturbed."""
    names = shard(golden / "llama", tmp_path / "repo", 2)
    hub.repositories["owner/model"] = tmp_path / "repo"
    hub.faults[names[0]] = Fault(hold=threading.Event())
    first = subprocess.Popen(command(tmp_path / "out"), stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 30
    while not hub.asked(names[0]) and time.monotonic() < deadline:
        time.sleep(0.02)
    second = run(tmp_path / "out")
    assert second.returncode == 1
    assert "another process is converting" in second.stderr
    hub.faults[names[0]].hold.set()
    assert first.wait(60) == 0
    assert only_the_model(tmp_path / "out") == converted_here(golden / "llama", "q40", tmp_path / "here")


def test_more_than_the_list_says(hub, tmp_path):
    """A mirror that sends on and on: no byte beyond the listed size is written."""
    (tmp_path / "repo").mkdir()
    (tmp_path / "repo" / "model.gguf").write_bytes(b"x" * 3_000_000)
    hub.repositories["owner/model"] = tmp_path / "repo"
    hub.listed_sizes["model.gguf"] = 1000
    with pytest.raises(ConversionError, match="model.gguf.incomplete: more arrives than the 1000 bytes"):
        download("owner/model", "m", tmp_path / "out", ["model.gguf"], None)
    assert sum(path.stat().st_size for path in (tmp_path / "out").iterdir()) <= 1000


def test_small_files_are_small(golden, hub, tmp_path):
    shard(golden / "llama", tmp_path / "repo", 2)
    hub.repositories["owner/model"] = tmp_path / "repo"
    hub.listed_sizes["config.json"] = 10**12
    for begin in (lambda: stream(tmp_path / "out"), lambda: download("owner/model", "m", tmp_path / "out", [], None)):
        with pytest.raises(ConversionError, match="config.json has 1000000000000 bytes, more than 268435456"):
            begin()
    assert hub.asked("config.json") == []


def test_names_do_not_steer_the_terminal(golden, hub, tmp_path):
    """Escapes in the names of a hostile hub's files are shown, not obeyed."""
    shard(golden / "llama", tmp_path / "repo", 2)
    weight_map = {"a": "\x1b[2J\u202egnp.safetensors"}
    (tmp_path / "repo" / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    hub.repositories["owner/model"] = tmp_path / "repo"
    done = run(tmp_path / "out")
    assert done.returncode == 1
    assert "names \\x1b[2J\\u202egnp.safetensors, which is not there" in done.stderr
    assert "\x1b" not in done.stderr + done.stdout


@pytest.mark.parametrize("encoding", ["latin-1", "ascii"])
def test_terminals_that_are_not_utf_8(encoding, golden, hub, tmp_path):
    shard(golden / "llama", tmp_path / "repo", 2)
    hub.repositories["owner/model"] = tmp_path / "repo"
    done = run(tmp_path / "out", PYTHONIOENCODING=encoding, PYTHONUTF8="0")
    assert (done.returncode, "Traceback" in done.stderr) == (0, False), done.stderr
    assert "dllama_model_m_q40.m (" in done.stdout
