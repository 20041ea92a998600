"""What shows a run from the inside: --trace, --dump-layers, --verbose."""

import contextlib
import json
import os
import pathlib
import re
import signal
import struct
import subprocess
from collections import defaultdict

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
PROGRAM = os.environ["DLLAMA_PROGRAM"]
DEMO = ["--model", str(ROOT / "models/demo/demo-q40.m"), "--tokenizer", str(ROOT / "models/demo/demo.t")]
PROMPT = ["--prompt", "[gMASK]<sop>Once upon a time"]
N_LAYERS = 8
CPU = ["--device", "cpu", "--nthreads", "1"]


def run(*arguments):
    result = subprocess.run([PROGRAM, *map(str, arguments)], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    return result


@contextlib.contextmanager
def worker(*flags):
    """Its address; it ends by a signal, as a user ends it."""
    process = subprocess.Popen(
        [PROGRAM, "worker", *CPU, "--port", "0", "--cache-dir", "none", *DEMO[:2], *map(str, flags)],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        for line in process.stdout:
            if found := re.match(r"Listening on (.*)\.\.\.", line):
                break
        yield found[1]
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)
    assert process.returncode == 0


def events(path):
    """Complete events by rank and lane, each lane's in the order of their beginnings, outer ones first."""
    trace = json.loads(path.read_text())
    lanes = defaultdict(list)
    for event in trace["traceEvents"]:
        if event["ph"] == "X":
            assert event["dur"] >= 0 and event["ts"] >= 0
            lanes[event["pid"], event["tid"]].append(event)
    for lane in lanes.values():
        lane.sort(key=lambda event: (event["ts"], -event["dur"]))
    return lanes


def tree(lane):
    """(event, children) of each outermost event; fails if two events overlap without one holding the other."""
    roots, open_events = [], []
    for event in lane:
        end = event["ts"] + event["dur"]
        while open_events and open_events[-1][2] <= event["ts"] + 0.001:
            open_events.pop()
        children = open_events[-1][1] if open_events else roots
        if open_events:
            assert end <= open_events[-1][2] + 0.002, (event, open_events[-1][0])
        children.append((event, []))
        open_events.append((event, children[-1][1], end))
    return roots


def names(nodes):
    return [event["name"] for event, _ in nodes]


def find(nodes, name):
    for event, children in nodes:
        if event["name"] == name:
            return event, children
        if found := find(children, name):
            return found
    return None


DENSE = ["linear", "attend", "linear", "allReduce", "addNorm", "ffnUp", "linear", "allReduce", "addNorm"]
MOE = ["linear", "attend", "linear", "allReduce", "addNorm", "moe", "allReduce", "addNorm"]


def check_step(nodes, n_tokens):
    """A step holds what a forward pass is: the layers in order, the operations of each, and the head."""
    step, children = nodes
    assert step["name"] == "step" and step["args"] == {"tokens": n_tokens, "sequences": 1}
    layers = [child for child in find(children, "layers and head")[1] if child[0]["cat"] == "layer"]
    assert names(layers) == [f"layer {i}" for i in range(N_LAYERS)]
    assert names(layers[0][1]) == DENSE
    for _, operations in layers[1:]:
        assert names(operations) == MOE
        assert all(event["args"]["tokens"] == n_tokens for event, _ in operations)
    assert find(children, "head")


def test_a_trace_holds_steps_layers_operations_and_collectives(tmp_path):
    run("inference", *DEMO, *PROMPT, *CPU, "--temperature", 0, "--steps", 10, "--trace", tmp_path / "trace.json")
    lanes = events(tmp_path / "trace.json")
    assert list(lanes) == [(0, 0)]
    steps = [node for node in tree(lanes[0, 0]) if node[0]["name"] == "step"]
    assert len(steps) >= 3
    check_step(steps[0], steps[0][0]["args"]["tokens"])
    for step in steps[1:]:
        check_step(step, 1)


def test_root_and_worker_trace_their_own_ranks(tmp_path):
    with worker("--trace", tmp_path / "worker.json") as address:
        flags = ["--workers", address, "--trace", tmp_path / "root.json"]
        run("inference", *DEMO, *PROMPT, *CPU, "--temperature", 0, "--steps", 8, *flags)
    for rank, name in enumerate(("root.json", "worker.json")):
        lanes = events(tmp_path / name)
        assert {pid for pid, _ in lanes} == {rank}
        steps = [node for node in tree(lanes[rank, 0]) if node[0]["name"] == "step"]
        check_step(steps[-1], 1)
        assert find([steps[-1]], "gatherRows")


@pytest.mark.parametrize(
    "arguments",
    [
        ["logits", "--ids", "1,2,3", "--greedy", "2"],
        ["perplexity", "--prompt", "some text"],
        ["benchmark", "-p", "8", "-n", "4", "-r", "1"],
        ["chat", "--system", ""],
    ],
    ids=lambda arguments: arguments[0],
)
def test_every_command_that_computes_writes_a_trace(arguments, tmp_path):
    command = [PROGRAM, arguments[0], *DEMO, *CPU, *arguments[1:], "--trace", str(tmp_path / "trace.json")]
    result = subprocess.run(command, input="Hello\n", capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert "step" in names(tree(events(tmp_path / "trace.json")[0, 0]))


def test_a_trace_that_cannot_be_written_is_told_before_the_run():
    command = [PROGRAM, "inference", *DEMO, *PROMPT, "--trace", "/nowhere/trace.json"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert result.returncode == 1 and "/nowhere/trace.json: cannot be written" in result.stderr
    assert "Pred" not in result.stdout


def dump(folder, *flags):
    """The residual behind each layer: rows of floats."""
    ids = ",".join(str(7 * i % 4000) for i in range(40))
    run("logits", *DEMO, *CPU, "--ids", ids, "--buffer-float-type", "f32", "--dump-layers", folder, *flags)
    index = json.loads((folder / "index.json").read_text())
    assert index["rows"] == 40 and index["dim"] == 384 and index["positions"] == list(range(40))
    assert index["layers"] == [f"layer-{i:03}.f32" for i in range(N_LAYERS)]
    size = index["rows"] * index["dim"]
    return [struct.unpack(f"<{size}f", (folder / name).read_bytes()) for name in index["layers"]]


def distance(a, b):
    return (sum((x - y) ** 2 for x, y in zip(a, b, strict=True)) / sum(x * x for x in a)) ** 0.5


def test_the_residual_behind_each_layer_is_that_of_two_ranks_and_of_chunks(tmp_path):
    alone = dump(tmp_path / "alone")
    chunks = dump(tmp_path / "chunks", "--batch-size", 16)
    assert chunks == alone
    with worker() as address:
        two = dump(tmp_path / "two", "--workers", address)
    for i, (a, b) in enumerate(zip(alone, two, strict=True)):
        # Ranks add up in another order, and an activation that is rounded to 8 bits the other way moves a row.
        assert distance(a, b) < 1e-3, f"layer {i}"
        if i > 0:
            assert distance(a, two[i - 1]) > 0.05, f"layer {i} holds what layer {i - 1} does"


def logits_hash(*arguments):
    result = run(*arguments, "--verbose")
    found = re.findall(r"LogitsHash: ([0-9a-f]{16})$", result.stdout + result.stderr, re.MULTILINE)
    assert len(found) == 1
    return found[0]


@pytest.mark.parametrize(
    "arguments, others",
    [
        (["inference", *PROMPT, "--steps", "12", "--seed", "3"], ["--steps", "13"]),
        (["logits", "--ids", "1,2,3", "--greedy", "4"], ["--greedy", "5"]),
        (["perplexity", "--prompt", "some text"], ["--prompt", "some other text"]),
        (["benchmark", "-p", "0", "-n", "4", "-r", "1"], ["-n", "5"]),
    ],
    ids=lambda value: value[0],
)
def test_two_equal_runs_tell_the_same_hash_of_their_last_logits(arguments, others):
    command = [arguments[0], *DEMO, *CPU, *arguments[1:]]
    first = logits_hash(*command)
    assert logits_hash(*command) == first
    replaced = [a for i, a in enumerate(command) if others[0] not in (a, command[i - 1])]
    assert logits_hash(*replaced, *others) != first


def test_the_hash_needs_whole_logits_of_a_cluster_too():
    with worker() as address:
        command = ["inference", *DEMO, *PROMPT, *CPU, "--temperature", 0, "--steps", 9, "--workers", address]
        assert logits_hash(*command) == logits_hash(*command)
