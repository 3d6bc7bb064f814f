"""What tests of ``trt-generate`` read and write in their working directory."""

import json

from runtime.image.output_files import read_settings

FAST = ("--steps", 1, "--quiet")


def names(folder):
    return sorted(file.name for file in folder.iterdir())


def write(name, *lines):
    with open(name, "w", encoding="utf-8") as file:
        file.writelines(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines)
    return name


def prompts_of(folder):
    return {file.name: read_settings(file)["prompt"] for file in sorted(folder.glob("*.png"))}
