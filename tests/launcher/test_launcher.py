"""launch-glm.py: its list of models, the commands it makes, and the way from a name to a running model."""

import contextlib
import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request

import dllama_launch.machine
import dllama_launch.tools
import gguf
import gguf_files
import pytest
from conftest import REPOSITORY, free_port, launcher, write_tokenizer
from dllama_convert import ConversionError
from dllama_convert.downloads import download
from dllama_launch.cluster import of_port, parse_node
from dllama_launch.machine import Gpu
from dllama_launch.models import SPARE_BYTES, find_model, registry
from stand_in_hub import Fault, shard

# ------------------------------------------------------------------------------------------------------------ registry


def test_registry():
    """Every model of the launcher's promise is there, under its own name, with figures that fit each other."""
    models = registry()
    names = [model.name for model in models]
    assert len(set(names)) == len(names)
    assert "demo" not in names
    promised = (
        "glm-4-9b-0414 glm-4-32b-0414 glm-z1-9b-0414 glm-z1-32b-0414 glm-4-9b-chat glm-4-9b-chat-hf glm-edge-1.5b-chat "
        "glm-edge-4b-chat glm-4.5-air glm-4.5 glm-4.6 glm-4.7 intellect-3 intellect-3.1 chatglm3-6b llama-3.1-8b "
        "llama-3.2-1b llama-3.3-70b qwen3-0.6b qwen3-8b qwen3-30b-a3b glm-4.5v glm-4.6v glm-4.1v-9b-thinking "
        "glm-4.6v-flash glm-ocr solar-open-100b qwen2-7b qwen2.5-7b deepseek-r1-distill-qwen-7b "
        "deepseek-r1-distill-llama-70b mistral-7b-instruct-v0.3"
    )
    assert set(promised.split()) <= set(names)
    for model in models:
        assert re.fullmatch(r"[\w.-]+/[\w.-]+", model.repository), model
        assert re.fullmatch(r"[a-z0-9.-]+", model.name), model
        assert model.about, model
        assert 0 < model.active <= model.parameters, model
        assert model.context >= 2048, model
        assert model.kv_bytes_per_token % 1024 == 0, model
        assert model.kv_bytes_per_token > 0, model
        # 4.5 bits a weight; more where next-token layers or an F32 embedding are in the file.
        assert 0.55 <= model.q40_gb / model.parameters <= 1.4, model
        # A checkpoint may hold what is not kept: next-token layers' own heads, a head that is the embedding.
        wanted = model.q40_gb if model.ready_made else 2 * model.parameters
        # What sees the pictures is downloaded too: at most as much as the text part of a small model.
        pictures = min(2.0, wanted) if "text part" in model.about else 0.0
        assert wanted * 0.97 <= model.download_gb <= wanted * 1.09 + pictures, model


def test_sizes_that_are_known():
    """INTELLECT-3: 213.7 GB to download, 60.1 GB of Q40, 184 KiB of cache a token."""
    assert find_model("THUDM/GLM-Z1-9B-0414").name == "glm-z1-9b-0414"
    model = find_model("PrimeIntellect/INTELLECT-3")
    assert (model.name, model.download_gb, model.q40_gb) == ("intellect-3", 213.7, 60.1)
    assert model.memory(1000) == 60.1e9 + 188_416_000 + SPARE_BYTES


# ------------------------------------------------------------------------------------------------------------ commands


def test_list(launch, machine):
    status, out, _ = launch("list")
    assert status == 0
    lines = {line.split()[0]: line for line in out.splitlines() if line.strip()}
    assert "✅ fits" in lines["glm-4-9b-0414"]
    assert "❌ memory" in lines["glm-4.7"]
    assert "18.8 GB" in lines["glm-4-9b-0414"]


def test_dry_run_shows_what_would_run(launch, machine):
    """Conversion, then the program, with a line that says why."""
    status, out, _ = launch("chat", "glm-4-32b-0414", "--dry-run", "--", "--temperature", "0")
    assert status == 0
    convert, why, run = out.splitlines()
    assert "convert-hub.py zai-org/GLM-4-32B-0414 q40 glm-4-32b-0414 --output-dir" in convert
    assert "8 threads, one for each physical core; context 8192: 18.3 GB of weights and 0.5 GB of cache" in why
    assert run.endswith("--nthreads 8 --max-seq-len 8192 --temperature 0")


def test_flags_of_the_user_win(launch, machine):
    _, out, _ = launch("chat", "glm-4-9b-0414", "--dry-run", "--", "--max-seq-len", "100", "--no-think")
    run = out.splitlines()[-1]
    assert run.endswith("--nthreads 8 --max-seq-len 100 --no-think")
    assert run.count("--max-seq-len") == 1


def test_an_adapter_makes_a_model_of_its_own(launch, machine, tmp_path):
    lora = tmp_path / "My Adapter"
    lora.mkdir()
    assert "there is no adapter_config.json" in launch("chat", "glm-4-9b-0414", "--lora", str(lora), "--dry-run")[2]
    (lora / "adapter_config.json").write_text("{}")
    status, out, err = launch("chat", "glm-4-9b-0414", "--lora", str(lora), "--dry-run")
    assert status == 0, err
    convert, _, run = out.splitlines()
    name = "glm-4-9b-0414+my-adapter"
    assert f"q40 {name} --output-dir {tmp_path}/models/{name} --lora '{lora}'" in convert
    assert f"--model {tmp_path}/models/{name}/dllama_model_{name}_q40.m" in run
    for arguments, words in ((("llama-3.1-8b",), "--lora is for checkpoints"), (("demo",), "the demo model is none")):
        status, _, err = launch("convert", *arguments, "--lora", str(lora), "--dry-run")
        assert status == 1 and words in err


def test_api(launch, machine, tmp_path):
    status, out, _ = launch("api", "glm-4-9b-0414", "--port", "8080", "--dry-run", "--", "--parallel", "8")
    assert status == 0
    run = out.splitlines()[-1]
    assert f"{sys.executable} api --model " in run
    assert run.endswith("--max-seq-len 8192 --host 127.0.0.1 --port 8080 --served-name glm-4-9b-0414 --parallel 8")


def test_context_shrinks_before_a_model_is_refused(launch, machine, monkeypatch):
    """chatglm-6b has half a megabyte of cache for each token."""
    monkeypatch.setattr(dllama_launch.machine, "memory_bytes", lambda: (8_000_000_000, 4_900_000_000))
    _, out, _ = launch("chat", "chatglm-6b", "--dry-run")
    assert out.splitlines()[-1].endswith("--max-seq-len 1024")
    monkeypatch.setattr(dllama_launch.machine, "memory_bytes", lambda: (8_000_000_000, 4_000_000_000))
    status, out, err = launch("chat", "chatglm-6b", "--dry-run")
    assert (status, out) == (1, "")
    assert "needs 4.5 GB of memory, 4.0 GB of 8.0 GB are available" in err
    assert launch("chat", "chatglm-6b", "--dry-run", "--force")[0] == 0


RTX_3060 = Gpu(1, "RTX 3060", 12 << 30, 11 << 30, "550.54")


@pytest.fixture
def with_cuda(machine, monkeypatch):
    """A machine of little memory whose dllama was built with CUDA; gives a function that puts in GPUs."""
    monkeypatch.setattr(dllama_launch.machine, "memory_bytes", lambda: (8_000_000_000, 4_000_000_000))
    monkeypatch.setattr(dllama_launch.tools, "version_of", lambda _: "dllama 0.1.0 (CPU, CUDA)")
    return lambda *found: monkeypatch.setattr(dllama_launch.machine, "gpus", lambda: list(found))


def test_gpu_counts_as_room(launch, with_cuda):
    with_cuda(Gpu(0, "GT 1030", 2 << 30, 2 << 30, "550.54"), RTX_3060)
    status, out, _ = launch("chat", "glm-4-9b-0414", "--dry-run")
    assert status == 0
    assert "11.8 GB of RTX 3060" in out
    assert out.splitlines()[-1].startswith("CUDA_DEVICE_ORDER=PCI_BUS_ID ")  # else 1 may be another one
    assert "--gpu-index 1 " in out
    assert "--gpu-index 0" in launch("chat", "glm-4-9b-0414", "--dry-run", "--", "--gpu-index", "0")[1]
    assert "--gpu-index" not in launch("chat", "glm-4-9b-0414", "--dry-run", "--", "--device", "cpu")[1]


def test_gpu_of_a_build_without_cuda_does_not_count(launch, with_cuda, monkeypatch):
    with_cuda(RTX_3060)
    monkeypatch.setattr(dllama_launch.tools, "version_of", lambda _: "dllama 0.1.0 (CPU)")
    assert "needs 5.8 GB of memory" in launch("chat", "glm-4-9b-0414", "--dry-run")[2]
    assert "this build of dllama has no CUDA: make BUILD_CUDA=1" in launch("doctor")[1]


def test_shorter_context_before_the_cpu(launch, with_cuda):
    """GLM-Edge 4B has 2.4 GB of weights and 0.25 GB of cache for 2048 tokens."""
    with_cuda(dataclasses.replace(RTX_3060, index=0, free=3_300_000_000))
    out = launch("chat", "glm-edge-4b-chat", "--dry-run")[1]
    assert "3.3 GB of RTX 3060" in out
    assert "--gpu-index" not in out  # the first one is dllama's own choice
    assert out.splitlines()[-1].endswith("--max-seq-len 2048")


def test_equal_gpus_share_a_model(launch, with_cuda):
    """One is too small, two of a kind are not; a third of another kind is left out. Workers take what is equal, too."""
    odd = Gpu(0, "T4", 16 << 30, 15 << 30, "550.54")
    with_cuda(odd, RTX_3060, dataclasses.replace(RTX_3060, index=2))
    out = launch("chat", "glm-4-32b-0414", "--dry-run")[1]
    assert "23.6 GB of 2 x RTX 3060" in out
    assert "--gpu-index 1,2 " in out
    with_cuda(odd, RTX_3060)
    assert "are available, 16.1 GB on a GPU" in launch("chat", "glm-4-32b-0414", "--dry-run")[2]
    with_cuda(RTX_3060, dataclasses.replace(RTX_3060, index=2))
    assert "--gpu-index 1,2" in launch("worker", "--dry-run")[1]
    with_cuda(RTX_3060)
    assert "--gpu-index" not in launch("worker", "--dry-run")[1]


def test_nvidia_smi_is_read(monkeypatch, tmp_path):
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\necho '0, NVIDIA RTX 3060, 12288, 11000, 550.54.14'\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert dllama_launch.machine.gpus() == [Gpu(0, "NVIDIA RTX 3060", 12288 << 20, 11000 << 20, "550.54.14")]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert dllama_launch.machine.gpus() == []
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\necho 'NVIDIA-SMI has failed' >&2\nexit 9\n")
    assert dllama_launch.machine.gpus() == []


@pytest.mark.parametrize(
    ("argv", "reason"),
    [
        (("chat", "no-such-model"), "no-such-model is not a known model"),
        (("chat", "glm-4-9b-414"), "did you mean glm-4-9b-0414"),
        (("chat", "INTELECT-3"), "did you mean intellect-3 or"),
        (("chat",), "the following arguments are required: NAME (launch-glm.py chat --help)"),
        (("cht", "demo"), "invalid choice: 'cht'"),
        (("convert", "demo"), "comes with the program"),
        (("setup-cluster", "demo", "--nodes", "host:99999"), "--nodes host:99999"),
        (("setup-cluster", "demo", "--nodes", "a:1", "a:1"), "named twice"),
        (("chat", "demo", "--cluster"), "setup-cluster demo --nodes"),
    ],
)
def test_refusals(argv, reason, launch, machine):
    status, _, err = launch(*argv)
    assert status == 1
    assert err.startswith("🚨")
    assert reason in err


def test_flags_are_the_programs(launch, machine, program, tmp_path, monkeypatch):
    """Every flag in a command exists in dllama's --help."""
    folder = tmp_path / "models" / "glm-4-9b-0414" / "cluster"
    folder.mkdir(parents=True)
    cluster = {"workers": ["a:9999"], "secret_file": "secret"}
    (folder / "cluster.json").write_text(json.dumps(cluster))
    commands = [
        ("inference", "glm-4-9b-0414", "--prompt", "x", "--cluster"),
        ("chat", "glm-4-9b-0414"),
        ("benchmark", "glm-4-9b-0414"),
        ("worker", "--secret-file", "secret"),
        ("setup-cluster", "glm-4-9b-0414", "--nodes", "a"),
    ]
    for argv in commands:
        line = launch(*argv, "--dry-run")[1].splitlines()[-1].split()
        text = subprocess.run([program, line[1], "--help"], capture_output=True, text=True, check=True).stdout
        assert {word for word in line if word.startswith("--")} <= set(re.findall(r"--[a-z-]+", text)), line


def test_interrupts_are_the_programs(tmp_path):
    """Ctrl-C in a chat ends an answer: the launcher neither ends nor kills the program."""
    script = tmp_path / "dllama"
    script.write_text(
        "#!/bin/sh\n[ $1 = --version ] && exit\ntrap 'echo answered; exit 7' INT\n"
        "echo started\nfor i in $(seq 100); do sleep 0.1; done\n"
    )
    script.chmod(0o755)
    process = subprocess.Popen(
        [sys.executable, REPOSITORY / "launch-glm.py", "chat", "demo"],
        env=os.environ | {"DLLAMA_PROGRAM": str(script)},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert any("started" in line for line in iter(process.stdout.readline, ""))
    os.killpg(process.pid, signal.SIGINT)
    assert "answered" in process.communicate(timeout=20)[0]
    assert process.returncode == 7


def test_no_words_show_the_help(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["launch-glm.py"])
    with pytest.raises(SystemExit):
        launcher.main(launcher.__doc__)
    assert "./launch-glm.py list" in capsys.readouterr().out


def test_folder_that_cannot_be_written(launch, machine, tmp_path):
    """One line that names the folder, before anything is downloaded."""
    (tmp_path / "models").write_text("a file in the folder's place")
    status, _, err = launch("convert", "glm-4-9b-0414")
    assert status == 1
    assert err == f"🚨 {tmp_path}/models/glm-4-9b-0414: Not a directory\n"
    assert "🟢" in launch("doctor")[1]


def test_doctor(launch, monkeypatch):
    """Reports this machine as it is; the hub is asked and answers."""
    status, out, _ = launch("doctor")
    assert status == 0
    assert re.search(r"📀 Memory: [\d.]+ GB, [\d.]+ GB available, \d+ GB/s copying", out)
    assert "🟢 Hub: http://127.0.0.1" in out
    assert re.search(r"qwen3-0.6b +[\d.]+ GB +[\d.]+ tokens/s", out)


# ----------------------------------------------------------------------------------------------------- from hub to text


def test_from_name_to_text(launch, hub, golden, tmp_path, program):
    """OWNER/NAME is downloaded, converted and run; the second time nothing is fetched."""
    shard(golden / "glm4moe-16x2", tmp_path / "repo", 4)
    write_tokenizer(tmp_path / "repo")
    hub.repositories["owner/Tiny"] = tmp_path / "repo"
    argv = ("inference", "owner/Tiny", "--prompt", "hello", "--steps", "12", "--", "--temperature", "0")
    status, out, err = launch(*argv)
    assert status == 0, err
    assert "nTokens: 5" in out  # the prompt's
    hub.requests.clear()
    again = launch(*argv)
    assert again[0] == 0
    assert hub.requests == []
    assert predicted(again[1]) == predicted(out) != ""
    status, out, _ = launch("benchmark", "owner/Tiny", "--", "-p", "8", "-n", "4", "-r", "1")
    assert status == 0
    assert "|" in out


def serves(program: str) -> bool:
    text = subprocess.run([program, "--help"], capture_output=True, text=True, check=True).stdout
    return re.search(r"^ +api ", text, re.MULTILINE) is not None


def test_from_name_to_served_port(hub, golden, tmp_path, program):
    if not serves(program):
        pytest.skip("this dllama was built without the API")
    shard(golden / "glm4moe-16x2", tmp_path / "repo", 2)
    write_tokenizer(tmp_path / "repo")
    hub.repositories["owner/Tiny"] = tmp_path / "repo"
    port = free_port()
    command = [sys.executable, REPOSITORY / "launch-glm.py", "api", "owner/Tiny", "--port", str(port)]
    environment = os.environ | {"DLLAMA_MODELS": str(tmp_path / "models")}
    log = tmp_path / "log"
    with open(log, "wb") as out:
        server = subprocess.Popen(command, env=environment, stdout=out, stderr=out, start_new_session=True)
    try:
        ask(server, log, port, "/health")
        body = {"model": "tiny", "prompt": "hello", "max_tokens": 4, "temperature": 0}
        answer = ask(server, log, port, "/v1/completions", body)
        assert answer["usage"]["completion_tokens"] <= 4 and answer["choices"][0]["finish_reason"] in ("stop", "length")
        (served,) = ask(server, log, port, "/v1/models")["data"]
        assert served["id"] == "tiny"
    finally:
        if server.poll() is None:
            os.killpg(server.pid, signal.SIGTERM)
        server.wait(timeout=60)


def ask(server, log, port: int, path: str, body: dict | None = None):
    """The JSON answer of the server, which may still be converting the model."""
    deadline = time.monotonic() + 240
    data = json.dumps(body).encode() if body else None
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", data, {"Content-Type": "application/json"})
    while True:
        assert server.poll() is None and time.monotonic() < deadline, log.read_text()
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            assert error.code == 503, error.read()  # the model is being loaded
        except OSError:
            pass
        time.sleep(0.2)


def predicted(out: str) -> str:
    return "".join(re.findall(r"🔶 Pred .*\| (.*)", out))


def test_download_then_convert_offline(launch, hub, golden, tmp_path, monkeypatch):
    shard(golden / "qwen3", tmp_path / "repo", 3)
    write_tokenizer(tmp_path / "repo")
    hub.repositories["owner/Tiny"] = tmp_path / "repo"
    assert launch("download", "owner/Tiny")[0] == 0
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert launch("convert", "owner/Tiny", "--type", "q80")[0] == 0
    found = sorted(path.name for path in (tmp_path / "models" / "tiny").iterdir())
    assert found == [".gitignore", "checkpoint", "dllama_model_tiny_q80.m", "dllama_tokenizer_tiny.t"]


def test_gguf_of_a_repository(launch, hub, golden, tmp_path):
    """Converted as it is, deleted afterwards, and not fetched a second time."""
    (tmp_path / "repo").mkdir()
    gguf_files.write(tmp_path / "repo" / "tiny-Q4_0.gguf", golden / "glm4-dense", gguf.GGMLQuantizationType.Q4_0)
    hub.repositories["owner/Tiny-GGUF"] = tmp_path / "repo"
    status, _, err = launch("convert", "owner/Tiny-GGUF", "--gguf", "tiny-Q4_0.gguf")
    assert status == 0, err
    found = sorted(path.name for path in (tmp_path / "models" / "tiny-gguf").iterdir())
    assert found == [".gitignore", "dllama_model_tiny-gguf_q40.m"]
    assert "is there already" in launch("convert", "owner/Tiny-GGUF", "--gguf", "tiny-Q4_0.gguf")[2]


def test_ready_made_parts_are_joined(hub, tmp_path):
    """distributed-llama's large models come in parts; a run that fails between them goes on with the rest."""
    (tmp_path / "repo").mkdir()
    parts = [f"dllama_model_big_q40_{suffix}" for suffix in ("aa", "ab", "ac")]
    for i, name in enumerate(parts):
        (tmp_path / "repo" / name).write_bytes(bytes([i]) * 20000)
    (tmp_path / "repo" / "dllama_tokenizer_big.t").write_bytes(b"t")
    hub.repositories["owner/big"] = tmp_path / "repo"
    hub.faults[parts[2]] = Fault(times=10**6, status=403)
    with pytest.raises(ConversionError, match="403"):
        download("owner/big", "big", tmp_path / "out", [], None)
    partial = tmp_path / "out" / "dllama_model_big_q40.m.partial"
    with open(partial, "ab") as file:  # as if a part had been cut off while it was joined
        file.write(b"x" * 100)
    hub.faults.clear()
    hub.requests.clear()
    assert download("owner/big", "big", tmp_path / "out", [], None).endswith("dllama_model_big_q40.m")
    assert [name for name, _ in hub.requests if name in parts] == [parts[2]]
    found = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert found == ["dllama_model_big_q40.m", "dllama_tokenizer_big.t"]
    data = (tmp_path / "out" / "dllama_model_big_q40.m").read_bytes()
    assert data == b"\0" * 20000 + b"\1" * 20000 + b"\2" * 20000


# ------------------------------------------------------------------------------------------------------------- cluster


def test_cluster_of_two_workers(launch, tmp_path, program):
    """setup-cluster says what does not answer; with the workers started by its scripts, the model runs on all three."""
    nodes = [f"127.0.0.1:{free_port()}" for _ in range(2)]
    status, out, _ = launch("setup-cluster", "demo", "--nodes", *nodes)
    assert status == 1
    assert f"🔴 {nodes[0]} does not answer yet: Connection refused" in out
    folder = tmp_path / "models" / "demo" / "cluster"
    assert (folder / "secret").stat().st_mode & 0o77 == 0
    with contextlib.ExitStack() as stack:
        for node in nodes:
            start = folder / node.replace(":", "-") / "start-worker.sh"
            process = stack.enter_context(
                subprocess.Popen([start, "--cache-dir", "none", "--nthreads", "1"], stdout=subprocess.PIPE, text=True)
            )
            stack.callback(process.terminate)
            assert any("Listening" in line for line in iter(process.stdout.readline, ""))
        status, out, _ = launch("setup-cluster", "demo", "--nodes", *nodes)
        assert status == 0, out
        assert out.count("🟢") == 2
        argv = ("inference", "demo", "--prompt", "Once upon", "--steps", "12")
        status, out, err = launch(*argv, "--cluster", "--", "--temperature", "0")
        assert status == 0, err
    alone = launch(*argv, "--", "--temperature", "0")[1]
    assert predicted(out) == predicted(alone) != ""


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "is damaged"),
        ("", "is damaged"),
        ("\xff", "is damaged"),
        ("[" * 100_000, "is damaged"),
        ("[]", "has no list of workers"),
        ('{"workers": "a:1", "secret_file": "s"}', "has no list of workers"),
        ('{"workers": [], "secret_file": "s"}', "has no list of workers"),
        ('{"workers": [1], "secret_file": "s"}', "has no list of workers"),
        ('{"workers": ["--insecure"], "secret_file": "s"}', "'--insecure' is not the address of a worker"),
        ('{"workers": ["a:1", "a b"], "secret_file": "s"}', "'a b' is not the address of a worker"),
        ('{"workers": ["a:1,--insecure"], "secret_file": "s"}', "'a:1,--insecure' is not the address"),
        ('{"workers": ["a:1"]}', "secret_file is None"),
        ('{"workers": ["a:1"], "secret_file": ""}', "secret_file is ''"),
        ('{"workers": ["a:1"], "secret_file": "--insecure"}', "secret_file is '--insecure'"),
    ],
)
def test_cluster_file_that_lies(text, reason, launch, machine, tmp_path):
    """One line; no word of the file becomes a flag of dllama."""
    folder = tmp_path / "models" / "demo" / "cluster"
    folder.mkdir(parents=True)
    (folder / "cluster.json").write_bytes(text.encode("latin-1"))
    status, out, err = launch("chat", "demo", "--cluster", "--dry-run")
    assert (status, out, len(err.splitlines())) == (1, "", 1)
    assert f"cluster.json: {reason}" in err
    assert "setup-cluster demo --nodes" in err


@pytest.mark.parametrize("node", ["a", "a:1", "10.0.0.2:9999", "[::1]:9999", "[fe80::1%eth0]:9999", "a:1,b:2"])
def test_addresses_are_the_programs(node, program):
    """What --nodes takes is written so that --workers takes it."""
    nodes = [parse_node(text) for text in node.split(",")]
    workers = [f"{host}:{port}" for host, port in nodes]
    # As --nodes takes them, and as cluster.json has them.
    # The last one's address is understood, and refused for the lack of a secret: nothing is dialled.
    workers += node.split(",")
    line = [program, "inference", "--model", REPOSITORY / "models" / "demo" / "demo-q40.m", "--prompt", "x"]
    line += ["--workers", *workers, "other-machine:1"]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert "is another machine: give --secret-file" in done.stderr
    assert "address" not in done.stderr


def test_unknown_fields_may_be_ignored(launch, machine):
    """As the converters' own message recommends."""
    out = launch("convert", "owner/tiny", "--dry-run", "--ignore-unknown")[1]
    assert out.splitlines()[-1].endswith("--ignore-unknown")
    assert "is for checkpoints" in launch("convert", "owner/x", "--gguf", "x.gguf", "--ignore-unknown", "--dry-run")[2]


@pytest.mark.parametrize("encoding", ["latin-1", "ascii"])
def test_terminals_that_are_not_utf_8(encoding, program):
    environment = os.environ | {"PYTHONIOENCODING": encoding, "PYTHONUTF8": "0", "LC_ALL": "C"}
    command = [sys.executable, REPOSITORY / "launch-glm.py"]
    for words in (["list"], ["chat", "demo", "--dry-run"], ["chat", "no-such-model"]):
        done = subprocess.run([*command, *words], env=environment, capture_output=True, check=False)
        assert b"Traceback" not in done.stderr, done.stderr
        assert done.returncode == (words[1:] == ["no-such-model"])


def test_unit_names_only_flags_that_exist(program):
    text = subprocess.run([program, "worker", "--help"], capture_output=True, text=True, check=True).stdout
    texts = of_port("dllama-worker.service", 9999) + of_port("start-worker.sh", 9999)
    flags = set(re.findall(r"(?<= )--[a-z-]+", texts))
    assert flags <= set(re.findall(r"--[a-z-]+", text))


def test_unit_is_one_for_systemd(tmp_path):
    """systemd finds no directive that it does not know and no value that it does not understand."""
    if not shutil.which("systemd-analyze"):
        pytest.skip("systemd-analyze is not here: the unit is not checked")
    unit = tmp_path / "dllama-worker.service"
    # The program need not be installed here.
    unit.write_text(of_port("dllama-worker.service", 9999).replace("ExecStart=dllama", "ExecStart=/bin/true"))
    check = ["systemd-analyze", "verify", "--man=no", unit]
    done = subprocess.run(check, capture_output=True, text=True, check=False, env=os.environ | {"LC_ALL": "C"})
    assert (done.returncode, done.stderr) == (0, "")
    unit.write_text(unit.read_text().replace("DynamicUser", "DynamicUsr"))
    assert "DynamicUsr" in subprocess.run(check, capture_output=True, text=True, check=False).stderr


@pytest.mark.parametrize("credential", [False, True])
def test_secret_by_an_access_list(credential, program, tmp_path):
    """systemd 254 and newer show a unit's credentials with a group's right to read: they are taken there only."""
    secret = tmp_path / "secret"
    subprocess.run([program, "keygen", secret], check=True, capture_output=True)
    secret.chmod(0o440)
    environment = os.environ | ({"CREDENTIALS_DIRECTORY": str(tmp_path)} if credential else {})
    command = [program, "worker", "--port", "0", "--secret-file", secret, "--cache-dir", "none", "--nthreads", "1"]
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    lines = iter(process.stdout.readline, "")
    said = next(line for line in lines if "Listening" in line or "🚨" in line)
    process.terminate()
    process.communicate(timeout=20)
    assert ("Listening" in said) == credential, said
