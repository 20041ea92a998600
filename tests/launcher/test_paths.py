"""Names that others chose stay below their folder: those of a hub, of an index, of the command line."""

import json
import os

import pytest
from dllama_convert import ConversionError
from dllama_convert.checkpoint import open_checkpoint
from dllama_convert.downloads import download, fetch_files
from dllama_convert.hub import open_repository
from dllama_convert.paths import below, printable
from dllama_convert.streaming import StreamingConversion
from stand_in_hub import shard

TRICKS = [
    ("", "empty"),
    ("/etc/passwd", "absolute"),
    ("//host/share", "absolute"),
    ("..", r"\.\."),
    (".", r"\."),
    ("../x", r"\.\."),
    ("a/../../x", r"\.\."),
    ("a/..", r"\.\."),
    ("a/./b", r"\."),
    ("a//b", "empty part"),
    ("a/", "empty part"),
    ("...", "ends in a dot"),
    ("a ", "ends in a dot or a space"),
    ("..\\x", "backslash"),
    ("C:x", "colon"),
    ("file:stream", "colon"),
    ("a\0b", "control character"),
    ("a\nb", "control character"),
    ("\x1b[2Jx", "control character"),
    ("\x9b2Jx", "control character"),
    ("gpj.\u202emoc", "control character"),
    ("\udc80", "not Unicode"),
    ("x" * 256, "255"),
    ("é" * 128, "255"),
    ("a/" * 600 + "b", "1000"),
    ("nul", "device"),
    ("COM1.txt", "device"),
    ("a/Aux.bin", "device"),
]


@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize(("name", "reason"), TRICKS)
def test_tricks(name, reason, deep, tmp_path):
    """Refused in one line that no terminal obeys, as a path as well as a plain name."""
    with pytest.raises(ConversionError, match=reason if deep or "/" not in name else ".") as refused:
        below(tmp_path, name, deep=deep)
    assert str(refused.value).isprintable()
    assert len(str(refused.value)) < 300 + len(str(tmp_path))


@pytest.mark.parametrize("name", ["a", "a.b", "..a", "model-00001-of-00002.bin", "Größe", "模型", "x" * 255, "console"])
def test_plain_names(name, tmp_path):
    assert below(tmp_path, name) == tmp_path / name
    assert below(tmp_path, f"folder/{name}", deep=True) == tmp_path / "folder" / name
    with pytest.raises(ConversionError, match="slash"):
        below(tmp_path, f"folder/{name}")


def test_links(tmp_path):
    """Inside they are followed; out of the folder only where the caller allows it."""
    folder = tmp_path / "folder"
    (folder / "real").mkdir(parents=True)
    (folder / "inside").symlink_to("real")
    (folder / "out").symlink_to(tmp_path)
    (folder / "dangling").symlink_to(tmp_path / "not-yet")
    (folder / "loop").symlink_to("loop")
    assert below(folder, "inside/x", deep=True) == folder / "inside" / "x"
    for name in ("out", "out/x", "dangling"):
        with pytest.raises(ConversionError, match="symbolic link leads out"):
            below(folder, name, deep=True)
    assert below(folder, "out/x", deep=True, follow_links=True) == folder / "out" / "x"
    with pytest.raises(ConversionError, match="lead"):
        below(folder, "loop")
    (tmp_path / "moved").symlink_to(folder)  # the folder itself may be a link
    assert below(tmp_path / "moved", "x") == tmp_path / "moved" / "x"


def test_printable():
    assert printable("a\x1b[31mb\r\u202e\x85\nc é 模型 ✅") == "a\\x1b[31mb\\r\\u202e\\x85\nc é 模型 ✅"


# ------------------------------------------------------------------------------------------------------ hub and index

OUTSIDE = ["../planted.bin", "/{}/planted.bin", "a/../../planted.bin"]


@pytest.mark.parametrize("name", OUTSIDE)
def test_hub_that_names_files_outside(name, hub, tmp_path):
    """The listing of a hostile mirror: nothing is written beside the folder, nor is anything there replaced."""
    name = name.format(tmp_path)
    (tmp_path / "repo").mkdir()
    hub.repositories["owner/model"] = tmp_path / "repo"
    hub.extra_files["owner/model"] = {name: b"planted"}
    repository = open_repository("owner/model")
    assert name in repository.files
    (tmp_path / "planted.bin").write_text("mine")
    with pytest.raises(ConversionError, match="is no name of a file in"):
        fetch_files(repository, [name], tmp_path / "out")
    with pytest.raises(ConversionError, match="is no name of a file in"):
        repository.fetch(repository.files[name], tmp_path / "out")
    assert (tmp_path / "planted.bin").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["planted.bin", "repo"]


def test_download_does_not_follow_links(hub, tmp_path):
    (tmp_path / "repo").mkdir()
    (tmp_path / "repo" / "config.json").write_text("{}")
    hub.repositories["owner/model"] = tmp_path / "repo"
    (tmp_path / "out").mkdir()
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "out" / "config.json").symlink_to(tmp_path / "mine")
    repository = open_repository("owner/model")
    with pytest.raises(ConversionError, match="symbolic link leads out"):
        repository.fetch(repository.files["config.json"], tmp_path / "out")
    (tmp_path / "out" / "config.json").unlink()
    (tmp_path / "out" / "config.json.incomplete").symlink_to(tmp_path / "mine")
    with pytest.raises(ConversionError, match="symbolic link leads out"):
        repository.fetch(repository.files["config.json"], tmp_path / "out")
    assert (tmp_path / "mine").read_text() == "mine"


@pytest.mark.parametrize("name", OUTSIDE)
@pytest.mark.parametrize("read", ["folder", "checkpoint", "stream"])
def test_index_that_names_shards_outside(read, name, golden, hub, tmp_path):
    """Neither a folder's index nor one from the hub reads or writes elsewhere."""
    name = name.format(tmp_path)
    shard(golden / "llama", tmp_path / "repo", 2)
    index = json.loads((tmp_path / "repo" / "model.safetensors.index.json").read_text())
    tensor = next(iter(index["weight_map"]))
    stolen = (tmp_path / "repo" / index["weight_map"][tensor]).read_bytes()
    (tmp_path / "planted.bin").write_bytes(stolen)
    index["weight_map"] = {other: name for other in index["weight_map"]}
    (tmp_path / "repo" / "model.safetensors.index.json").write_text(json.dumps(index))
    hub.repositories["owner/model"] = tmp_path / "repo"
    hub.extra_files["owner/model"] = {name: stolen}
    (tmp_path / "planted.bin").write_text("mine")
    with pytest.raises(ConversionError, match="is no name of a file in"):
        if read == "folder":
            open_checkpoint(tmp_path / "repo")
        elif read == "checkpoint":
            download("owner/model", "m", tmp_path / "out", [], None)
        else:
            StreamingConversion("owner/model", "Q40", "m", tmp_path / "out").run()
    assert (tmp_path / "planted.bin").read_text() == "mine"


@pytest.mark.parametrize("weight_map", [None, [], {"a": 1}, {"a": None}, {"a": ["b"]}])
def test_index_that_is_none(weight_map, golden, hub, tmp_path):
    shard(golden / "llama", tmp_path / "repo", 2)
    (tmp_path / "repo" / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    hub.repositories["owner/model"] = tmp_path / "repo"
    with pytest.raises(ConversionError, match="has no weight_map from tensors to files"):
        StreamingConversion("owner/model", "Q40", "m", tmp_path / "out").run()


def test_folder_of_links_is_read(golden, tmp_path):
    """The hub's own cache: a snapshot's files are links to blobs."""
    shard(golden / "llama", tmp_path / "blobs", 2)
    (tmp_path / "snapshot").mkdir()
    for path in (tmp_path / "blobs").iterdir():
        (tmp_path / "snapshot" / path.name).symlink_to(path)
    assert open_checkpoint(tmp_path / "snapshot").names() == open_checkpoint(tmp_path / "blobs").names()


@pytest.mark.parametrize("name", ["../m", "a/b", "\x1b[2J"])
def test_output_names(name, tmp_path):
    with pytest.raises(ConversionError, match="is no name of a file in"):
        StreamingConversion("owner/model", "Q40", name, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------------------------------- command line


@pytest.mark.parametrize(
    "name",
    ["evil/..", "evil/.", "../..", "evil/.git", "evil/--help", "a/b/../c", "evil/x.", "é/x", "evil/x\n", "evil/nul"],
)
def test_model_names(name, launch, machine, tmp_path):
    """What is no repository of the hub makes no folder and touches no .gitignore."""
    (tmp_path / ".gitignore").write_text("mine\n")
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / ".gitignore").write_text("mine\n")
    for words in (["convert"], ["download"], ["setup-cluster", "--nodes", "a"]):
        status, _, err = launch(words[0], name, *words[1:])
        assert status == 1
        assert err.startswith("🚨")
    assert os.listdir(tmp_path / "models") == [".gitignore"]
    assert (tmp_path / ".gitignore").read_text() == (tmp_path / "models" / ".gitignore").read_text() == "mine\n"


@pytest.mark.parametrize(
    "node", ["../../..", "..", "/tmp/x", "-a", "a/b", "a\\b", "a\nb", "", "[::1", "[]:1", "a b", ":1"]
)
def test_nodes(node, launch, machine, tmp_path):
    status, _, err = launch("setup-cluster", "demo", "--nodes", f"{node}")
    assert (status, err[:2]) == (1, "🚨 ")
    assert not (tmp_path / "models" / "demo" / "cluster").exists()


def test_gitignore_of_the_user_stays(launch, machine, tmp_path, monkeypatch):
    folder = tmp_path / "models" / "demo"
    folder.mkdir(parents=True)
    (folder / ".gitignore").write_text("mine\n")
    monkeypatch.setenv("DLLAMA_PROGRAM", "/bin/false")
    assert launch("setup-cluster", "demo", "--nodes", "a")[0] == 1
    assert (folder / ".gitignore").read_text() == "mine\n"

