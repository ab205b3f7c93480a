"""Compiles csrc/cuda/units/*.cu as C++ against csrc/emulation into libraries that only the tests load.

They lie in build/emulation, outside the package, so that no wheel can hold them. ``python tests/emulation/build_emulated.py
[--sanitize]`` builds by hand; conftest.py builds before every test run, which takes no time when nothing has changed.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
from pathlib import Path

import torch
from torch.utils.cpp_extension import include_paths, library_paths

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "build" / "emulation"
# As setup.py builds the package; the emulation has no other floor.
TORCH_FLOOR = "0x020a000000000000"

# CUDA code reads memory through vector types of another kind, which C++'s aliasing rule forbids.
FLAGS = ["-std=c++20", "-fPIC", "-fvisibility=hidden", "-fno-strict-aliasing", "-Wall", "-Wno-psabi", "-Wno-unknown-pragmas"]
FLAGS += [f"-DTORCH_TARGET_VERSION={TORCH_FLOOR}", "-DTORCH_STABLE_ONLY", f"-I{ROOT / 'csrc' / 'emulation'}"]
FLAGS += [flag for path in include_paths() for flag in ("-isystem", path)]
VARIANTS = {
    "plain": ["-O1"],
    "sanitized": ["-O1", "-g", "-fno-omit-frame-pointer", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"],
    "ucontext": ["-O1", "-DSEGKERNELS_EMULATION_UCONTEXT"],
}
# The operators, and the kernels that test the emulation itself.
LIBRARIES = {
    "_ops_emulated": sorted((ROOT / "csrc" / "cuda" / "units").glob("*.cu")),
    "_emulation_faults": sorted((ROOT / "tests" / "emulation").glob("*.cu")),
}


def library_path(name: str, variant: str) -> Path:
    return FOLDER / variant / f"{name}.so"


def ninja_file(variant: str) -> str:
    header = ROOT / "csrc" / "common" / "torch_headers.h"
    compiler = shutil.which("c++") or shutil.which("g++") or "c++"
    sanitize = [flag for flag in VARIANTS[variant] if flag.startswith("-fsanitize=")]
    link = [*sanitize, *(f"-L{path}" for path in library_paths()), "-lc10", "-ltorch_cpu"]
    command = f"{compiler} -MMD -MF $out.d {' '.join([*FLAGS, *VARIANTS[variant]])}"
    lines = [
        "rule compile",
        f"  command = {command} -I. -include {header.name} -x c++ -c $in -o $out",
        "  depfile = $out.d",
        "  deps = gcc",
        # Reading torch's headers is a third of a file's compile time; the compiler looks for the .gch beside the header.
        "rule precompile",
        f"  command = cp $in {header.name} && {command} -x c++-header -c {header.name} -o $out",
        "  depfile = $out.d",
        "  deps = gcc",
        f"build {header.name}.gch: precompile {header}",
        "rule link",
        f"  command = {compiler} -shared $in -o $out {' '.join(link)}",
        f"build scheduler.o: compile {ROOT / 'csrc' / 'emulation' / 'scheduler.cpp'} | {header.name}.gch",
    ]
    for name, sources in LIBRARIES.items():
        objects = []
        for source in sources:
            objects.append(f"{name}.{source.stem}.o")
            lines.append(f"build {objects[-1]}: compile {source} | {header.name}.gch")
        lines.append(f"build {name}.so: link {' '.join(objects)} scheduler.o")
    return "\n".join(lines) + "\n"


def build(variant: str = "plain", names: tuple[str, ...] = tuple(LIBRARIES)) -> str | None:
    """Builds what has changed; returns why it could not, or None."""
    folder = FOLDER / variant
    folder.mkdir(parents=True, exist_ok=True)
    rules = folder / "build.ninja"
    text = ninja_file(variant)
    if not rules.exists() or rules.read_text() != text:
        rules.write_text(text)
    ninja = shutil.which("ninja")
    if ninja is None:
        return "ninja not found"
    # Not under a sanitizer that the caller may have preloaded for its own library.
    environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    command = [ninja, "-C", str(folder), *(f"{name}.so" for name in names)]
    run = subprocess.run(command, capture_output=True, text=True, env=environment)
    if run.returncode != 0:
        # A half-built state must not be mistaken for the sources'.
        for name in names:
            library_path(name, variant).unlink(missing_ok=True)
        return run.stdout + run.stderr
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sanitize", action="store_true", help="with AddressSanitizer and UndefinedBehaviorSanitizer")
    failure = build("sanitized" if parser.parse_args().sanitize else "plain")
    if failure is not None:
        raise SystemExit(failure)


if __name__ == "__main__":
    print(f"torch {torch.__version__}")
    main()
