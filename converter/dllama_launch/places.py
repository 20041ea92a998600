"""Where the launcher's files lie: in a checkout, or installed."""

import os
import pathlib

HOME = pathlib.Path(__file__).resolve().parents[2]
# An installed launcher (/usr/share/dllama) keeps what it makes with the user's files, a checkout's with the checkout.
INSTALLED = not (HOME / "Makefile").exists()
USER_DATA = pathlib.Path(os.environ.get("XDG_DATA_HOME", pathlib.Path.home() / ".local" / "share"))
DATA = USER_DATA / "dllama" if INSTALLED else HOME
VENV = DATA / ".venv"
CONVERTER = HOME / "converter"
ME = "launch-glm.py" if INSTALLED else "./launch-glm.py"
DEMO = HOME / "demo" if INSTALLED else HOME / "models" / "demo"
