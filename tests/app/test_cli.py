"""The command line: what a user types wrong, breaks off or asks for twice."""

import json
import math
import os
import pathlib
import re
import signal
import struct
import subprocess
import time

import pytest
import xxhash

ROOT = pathlib.Path(__file__).resolve().parents[2]
PROGRAM = os.environ["DLLAMA_PROGRAM"]
DEMO = ["--model", str(ROOT / "models/demo/demo-q40.m"), "--tokenizer", str(ROOT / "models/demo/demo.t")]
PROMPT = ["--prompt", "[gMASK]<sop>Once upon a time"]


def run(*arguments, timeout=120, **options):
    command = [PROGRAM, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, stdin=subprocess.DEVNULL, **options)


def pieces(output: str) -> list[str]:
    """The tokens that inference printed, one a line."""
    return [line.split("| ", 2)[2] for line in output.splitlines() if line.startswith("🔶 Pred")]


def described(document: str) -> bytes:
    """A .m file with the right header and hash for a description."""
    text = document.encode()
    value = xxhash.xxh3_64_intdigest(text)
    pairs = [0, 1, 1, 0xABCD10, 100, len(text), 101, value & 0xFFFFFFFF, 102, value >> 32]
    return struct.pack("<12I", 0x0A00ABCD, 48, *pairs) + text


def test_names_in_a_file_do_not_reach_the_terminal_as_they_are(tmp_path):
    file = tmp_path / "hostile.m"
    config = '{"\\u001b[2J\\u202e": "\\u009b31m"}'
    file.write_bytes(
        described(f'{{"format": 1, "name": "", "architecture": "glm", "config": {config}, "tensors": []}}')
    )
    result = run("info", "--model", file)
    assert result.returncode == 1
    assert result.stderr.count("\n") == 1
    assert not set(result.stderr) & set("\x1b\x9b\u202e"), ascii(result.stderr)


FAULTS = [
    ([], "which command?"),
    (["inferense"], "unknown command inferense"),
    (["inference", "--nthread", "2"], "unknown flag --nthread"),
    (["inference", "stray"], "stray is not expected here"),
    (["inference", "--temperature", "hot"], "--temperature = hot"),
    (["inference", "--model", "nowhere.m", *PROMPT], "nowhere.m: No such file"),
    (["inference", "--model", ROOT / "Makefile", *PROMPT], "not a .m model file"),
    (["inference", "--model", ROOT, *PROMPT], "not a file"),
    (["inference", *DEMO[:2], "--tokenizer", ROOT / "Makefile", *PROMPT], "not a tokenizer file"),
    (["inference", *DEMO, "--prompt", ""], "Prompt is required"),
    (["logits", *DEMO, "--ids", "5"], "--out FILE, --greedy N and --dump-layers FOLDER"),
    (["inference", *DEMO, *PROMPT, "--nthreads", "100000"], "--nthreads is 100000, must be from 1 to 512"),
    (["inference", *DEMO, *PROMPT, "--temperature", "-1"], "temperature is -1, must be from 0"),
    (["inference", *DEMO, *PROMPT, "--top-p", "2"], "top-p is 2, must be from 0 to 1"),
    (["inference", *DEMO, *PROMPT, "--max-seq-len", "-3"], "--max-seq-len is -3"),
    (["inference", *DEMO, *PROMPT, "--kv-type", "f8"], "--kv-type f8"),
    (["inference", *DEMO, *PROMPT, "--device", "gpu"], "--device gpu is not known (auto, cpu, cuda)"),
    (["inference", *DEMO, *PROMPT, "--gpu-index", "0,x"], '--gpu-index 0,x: "x" is not the number of a GPU'),
    (["inference", *DEMO, *PROMPT, "--gpu-index", "0,"], "--gpu-index 0,: a number is missing"),
    (["inference", *DEMO, *PROMPT, "--gpu-index", "1,0,1"], "--gpu-index 1,0,1: GPU 1 is named twice"),
    (["inference", *DEMO, *PROMPT, "--gpu-index", "0,1", "--device", "cpu"], "--gpu-index 0,1 with --device cpu"),
    (["worker", "--gpu-index", "0,0"], "--gpu-index 0,0: GPU 0 is named twice"),
    (["inference", *DEMO, *PROMPT, "--collectives", "mpi"], "--collectives: mpi not in"),
    (["worker", "--cache-size", "-1"], "--cache-size: -1 is below 0"),
    (["inference", *DEMO, *PROMPT, "--workers", "nowhere"], "worker nowhere is another machine"),
    (["inference", *DEMO, *PROMPT, "--workers", "10.1.2.3:9999"], "give --secret-file, or --insecure"),
    (["inference", *DEMO, *PROMPT, "--workers", "127.evil.example:9999"], "give --secret-file, or --insecure"),
    (["logits", *DEMO, "--ids", "5,999999", "--greedy", "1"], "token id 999999 is outside the vocabulary of 4096"),
    (["logits", *DEMO], "one of --ids and --ids-file"),
    (["perplexity", *DEMO, "--ids-file", ROOT / "Makefile"], "not a list of token ids"),
    (["tokenize", *DEMO[2:]], "--text or --text-file"),
    (["benchmark", *DEMO, "--repetitions", "0"], "--repetitions is 0, must be 1 or more"),
    (["worker", "--port", "99999"], "--port is 99999"),
    (["inference", *DEMO, *PROMPT, "--seed", "-1"], "--seed: -1 is not a whole number from 0 to 18446744073709551615"),
    (["chat", *DEMO, "--seed", str(2**64)], f"--seed: {2**64} is not a whole number from 0"),
    (["chat", *DEMO, "--seed", "1.5"], "--seed: 1.5 is not a whole number"),
    (["inference", *DEMO, *PROMPT, "--workers", "127.0.0.1:1,10.1.2.4:2"], "worker 10.1.2.4:2 is another machine"),
    (["inference", *DEMO, *PROMPT, "--workers", "[::1]:1,[2001:db8::1]:2"], "worker [2001:db8::1]:2 is another"),
    (["inference", *DEMO, *PROMPT, "--workers", "[]:1"], "address []:1 is not host:port"),
    (["worker", "--host", "[not-a-host.invalid]"], "cannot listen on not-a-host.invalid:9999"),
]


@pytest.mark.parametrize("arguments, message", FAULTS, ids=[message for _, message in FAULTS])
def test_a_fault_is_one_clear_line(arguments, message):
    result = run(*arguments)
    assert result.returncode == 1
    faults = [line for line in result.stderr.splitlines() if line.startswith("🚨")]
    assert len(faults) == 1 and message in faults[0], result.stderr


@pytest.mark.parametrize(
    "command", ["", "inference", "chat", "perplexity", "benchmark", "info", "logits", "tokenize", "worker", "keygen"]
)
def test_help(command):
    result = run(*command.split(), "--help")
    assert result.returncode == 0 and "Usage: dllama" in result.stdout and not result.stderr


def test_same_seed_same_text_with_any_number_of_threads():
    def story(seed, threads):
        return pieces(
            run(
                "inference",
                *DEMO,
                *PROMPT,
                "--device",
                "cpu",
                "--steps",
                40,
                "--temperature",
                0.8,
                "--seed",
                seed,
                "--nthreads",
                threads,
            ).stdout
        )

    first = story(7, 1)
    assert len(first) > 20
    assert story(7, 2) == first
    assert story(8, 1) != first


def results(output: str) -> dict[str, float]:
    """The closing table of perplexity."""
    lines = output.partition("Results\n")[2].splitlines()
    return {name.strip(): float(value.split()[0]) for name, _, value in (line.partition(":") for line in lines if line)}


def test_perplexity_of_ids_and_of_text_agree(tmp_path):
    text = "Once upon a time there was a little dog who liked to play in the garden."
    tokens = json.loads(run("tokenize", *DEMO[2:], "--text", text, "--json").stdout)["ids"]
    assert len(tokens) > 10 and all(isinstance(token, int) for token in tokens)
    (tmp_path / "ids").write_text(",".join(map(str, tokens)))
    (tmp_path / "text").write_text(text)
    sources = [["--ids-file", tmp_path / "ids"], ["--text-file", tmp_path / "text"], ["--prompt", text]]
    ids, file, prompt = (run("perplexity", *DEMO, "--device", "cpu", *source) for source in sources)
    assert ids.returncode == file.returncode == prompt.returncode == 0, ids.stderr + file.stderr + prompt.stderr
    assert set(results(ids.stdout)) == {"perplexity", "avgLogProb", "bitPerToken"}
    assert results(ids.stdout) == results(file.stdout) == results(prompt.stdout)
    # The table against its own lines: each token behind the first with its probability.
    probabilities = [float(line.rpartition("prob=")[2]) for line in prompt.stdout.splitlines() if "prob=" in line]
    assert len(probabilities) == len(tokens) - 1
    mean = sum(map(math.log, probabilities)) / len(probabilities)
    assert results(prompt.stdout)["avgLogProb"] == pytest.approx(mean, rel=1e-3)
    assert results(prompt.stdout)["perplexity"] == pytest.approx(math.exp(-mean), rel=1e-3)


def test_output_that_nobody_reads():
    program = subprocess.Popen(
        [PROGRAM, "inference", *DEMO, *PROMPT, "--steps", "200"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    program.stdout.close()
    assert program.wait(timeout=120) >= 0  # no death by a signal
    program.stderr.close()


COMMANDS_THAT_PRINT = [
    ["inference", *DEMO, *PROMPT, "--steps", "20"],
    ["info", *DEMO[:2]],
    ["tokenize", *DEMO[2:], "--text", "some text"],
    ["logits", *DEMO, "--ids", "1,2,3", "--greedy", "3"],
    ["perplexity", *DEMO, "--prompt", "some text"],
    ["--help"],
]


@pytest.mark.parametrize("arguments", COMMANDS_THAT_PRINT, ids=lambda arguments: arguments[0])
def test_a_full_disk_is_an_error(arguments):
    with open("/dev/full", "w") as full:
        result = subprocess.run([PROGRAM, *arguments], stdout=full, stderr=subprocess.PIPE, text=True, timeout=120)
    assert result.returncode == 1, result.stderr
    assert "No space left on device" in result.stderr


def test_a_reader_that_goes_away_is_an_error():
    program = subprocess.Popen(
        [PROGRAM, "inference", *DEMO, *PROMPT, "--steps", "2000", "--temperature", "1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    program.stdout.readline()
    program.stdout.close()
    assert program.wait(timeout=120) == 1
    assert "Broken pipe" in program.stderr.read()


def test_an_old_file_stays_until_the_new_one_is_complete(tmp_path):
    out = tmp_path / "logits"
    out.write_text("old")
    result = run("logits", *DEMO, "--ids", "5,999999", "--out", out)
    assert result.returncode == 1 and out.read_text() == "old"
    program = subprocess.Popen(
        [PROGRAM, "logits", *DEMO, "--ids", ",".join(["5"] * 900), "--out", out], stderr=subprocess.PIPE
    )
    deadline = time.monotonic() + 30
    while not list(tmp_path.glob("*.part")) and time.monotonic() < deadline and program.poll() is None:
        time.sleep(0.005)
    assert out.read_text() == "old"
    program.kill()
    program.communicate()
    link = tmp_path / "link"
    link.symlink_to(out)
    result = run("logits", *DEMO, "--ids", "1,2,3", "--out", link)
    assert result.returncode == 0, result.stderr
    assert link.is_symlink() and out.stat().st_size == 3 * 4096 * 4
    full = run("logits", *DEMO, "--ids", "1,2,3", "--out", "/dev/full")
    assert full.returncode == 1 and "/dev/full: cannot be written: No space left" in full.stderr


def test_an_empty_secret_is_no_secret(tmp_path):
    empty = tmp_path / "empty.key"
    empty.touch(mode=0o600)
    for flags, environment in (
        (["--secret-file", empty], {}),
        (["--secret-file", ""], {}),
        ([], {"DLLAMA_SECRET": ""}),
        ([], {"DLLAMA_SECRET": " "}),
    ):
        result = run("worker", "--port", 0, "--insecure", *flags, env={**os.environ, **environment})
        assert result.returncode == 1, flags
        assert "secret" in result.stderr


def test_control_c_ends_inference_with_its_tables():
    program = subprocess.Popen(
        [PROGRAM, "inference", *DEMO, *PROMPT, "--steps", "1000", "--temperature", "0.9"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    for line in program.stdout:
        if line.startswith("🔶 Pred"):
            break
    program.send_signal(signal.SIGINT)
    output, errors = program.communicate(timeout=120)
    assert program.returncode in (0, 130), errors
    assert "Prediction" in output


def test_chat_ends_at_the_end_of_its_input():
    result = subprocess.run([PROGRAM, "chat", *DEMO], input="\n", capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr


def test_worker_ends_at_a_signal(tmp_path):
    worker = subprocess.Popen(
        [PROGRAM, "worker", "--port", "0", "--nthreads", "1", "--cache-dir", tmp_path],
        stdout=subprocess.PIPE,
        text=True,
    )
    for line in worker.stdout:
        if line.startswith("Listening on"):
            break
    worker.send_signal(signal.SIGINT)
    worker.communicate(timeout=60)
    assert worker.returncode == 0


def test_truncated_model(tmp_path):
    data = (ROOT / "models/demo/demo-q40.m").read_bytes()
    broken = tmp_path / "broken.m"
    broken.write_bytes(data[: len(data) // 2])
    result = run("inference", "--model", broken, *DEMO[2:], *PROMPT)
    assert result.returncode == 1 and "broken.m" in result.stderr


def test_flipped_bit_in_a_tensor(tmp_path):
    data = bytearray((ROOT / "models/demo/demo-q40.m").read_bytes())
    data[len(data) * 3 // 4] ^= 0x10
    broken = tmp_path / "flipped.m"
    broken.write_bytes(data)
    result = run("inference", "--model", broken, *DEMO[2:], *PROMPT)
    assert result.returncode == 1 and "flipped.m" in result.stderr and "hash" in result.stderr


def test_a_context_that_is_cut_is_said_with_both_numbers():
    result = run("inference", *DEMO, *PROMPT, "--steps", "16", "--max-seq-len", "1000000")
    assert result.returncode == 0
    assert re.search(r"context \d+ instead of 1000000", result.stdout + result.stderr)
