"""Converts the reference models under tests/data/golden to F32 .m files: convert-golden.py <checkout> <output folder>.

A model whose file is newer than its checkpoint and the converter is left alone."""

import pathlib
import subprocess
import sys


def main() -> None:
    checkout, output = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
    output.mkdir(parents=True, exist_ok=True)
    converter_age = max(p.stat().st_mtime for p in (checkout / "converter").rglob("*.py"))
    for folder in sorted((checkout / "tests" / "data" / "golden").iterdir()):
        target = output / f"{folder.name}-f32.m"
        newest = max(converter_age, (folder / "model.safetensors").stat().st_mtime)
        if target.exists() and target.stat().st_mtime > newest:
            continue
        tool = checkout / "converter" / "convert-hf.py"
        command = [sys.executable, tool, folder, "f32", folder.name, "--output-dir", output]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        (output / f"dllama_model_{folder.name}_f32.m").rename(target)
        print(f"converted {folder.name}")


if __name__ == "__main__":
    main()
