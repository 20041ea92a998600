"""The models that the launcher knows by name (converter/models.json)."""

import dataclasses
import difflib
import json
import pathlib
import re

from .errors import LaunchError
from .places import CONVERTER, ME

DEFAULT_CONTEXT = 8192  # dllama's
SPARE_BYTES = 512 << 20  # activations, the program, and something for everybody else
BITS = {"q40": 4.5, "q80": 8.5, "f16": 16, "bf16": 16, "f32": 32}  # of a weight


# The hub's own rule for OWNER/NAME; the second part becomes a folder.
REPOSITORY = r"(?!.*(\.\.|--))[A-Za-z0-9_][\w.-]{0,95}(?<![.-])/[A-Za-z0-9_][\w.-]{0,95}(?<![.-])"


@dataclasses.dataclass
class Model:
    """An entry of converter/models.json. Sizes are 10^9 bytes, parameters 10^9; None where nobody knows yet."""

    name: str
    repository: str | None
    about: str = ""
    parameters: float | None = None
    active: float | None = None  # parameters read for a token
    download_gb: float | None = None
    q40_gb: float | None = None
    kv_bytes_per_token: int = 0
    context: int = DEFAULT_CONTEXT
    ready_made: bool = False  # the repository has a .m file

    def memory(self, context: int = DEFAULT_CONTEXT) -> float | None:
        """Bytes needed to run it in Q40."""
        if self.q40_gb is None:
            return None
        return self.q40_gb * 1e9 + self.kv_bytes_per_token * min(context, self.context) + SPARE_BYTES

    @property
    def token_bytes(self) -> float | None:
        """Bytes of weights read for a token in Q40."""
        return None if self.active is None else self.active * 1e9 * 18 / 32


def registry() -> list[Model]:
    entries = json.loads((CONVERTER / "models.json").read_text(encoding="utf-8"))
    return [Model(**entry) for entry in entries]


def find_model(name: str) -> Model:
    if name == "demo":
        return Model("demo", None, "the demo model that comes with the program")
    wanted = re.sub("^thudm/", "zai-org/", name.lower())  # the owner's former name, which many pages still have
    for model in registry():
        if wanted in (model.name, model.repository.lower()):
            return model
    if re.fullmatch(REPOSITORY, name, re.ASCII):
        return Model(name.split("/")[1].lower(), name)
    known = ["demo", *(model.name for model in registry())]
    near = difflib.get_close_matches(name.lower(), known, n=3, cutoff=0.5)
    meant = f"did you mean {' or '.join(near)}?" if near else f"{ME} list shows the names"
    raise LaunchError(f"{name} is not a known model and not OWNER/NAME of a repository: {meant}")


def with_adapter(model: Model, lora: pathlib.Path | None) -> Model:
    """The model as it is with the adapter in the folder `lora`: files and folder of its own."""
    if lora is None:
        return model
    if model.repository is None:
        raise LaunchError("--lora is for models that are converted here: the demo model is none")
    if not (lora / "adapter_config.json").exists():
        raise LaunchError(f"--lora {lora}: there is no adapter_config.json: not a folder of PEFT")
    slug = re.sub(r"[^a-z0-9._-]+", "-", lora.resolve().name.lower())
    return dataclasses.replace(model, name=f"{model.name}+{slug}"[:120])
