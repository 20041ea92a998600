#!/usr/bin/env python3
"""From a model's name to a running model: downloads, converts, chooses flags and starts dllama.

    ./launch-glm.py list                    models, what they need, and what fits this machine
    ./launch-glm.py chat glm-4-9b-0414      download and convert it if it is not here, then talk to it
    ./launch-glm.py doctor                  this machine, and what would run on it how fast

A name is one of the list, `demo`, or OWNER/NAME of any repository with a supported architecture. Everything behind `--`
goes to dllama as it is. HF_TOKEN, HF_ENDPOINT and HF_HUB_OFFLINE are heeded; DLLAMA_PROGRAM names another program."""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent / "converter"))

from dllama_launch.command_line import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main(__doc__))
