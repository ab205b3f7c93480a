"""Builds the native pieces: _ops_cpu and _ops_cuda on the LibTorch stable ABI (no Python symbols), _C with pybind11.

A piece that cannot be built does not stop the install: its reason goes to segkernels/_build_report.json, where
segkernels.tiers() finds it.

    SEGKERNELS_CUDA=0|1       never build, or insist on building, the CUDA library (default: build it when nvcc is there)
    SEGKERNELS_CUDA_ARCHS     compute capabilities, default "80;90;100"
    SEGKERNELS_SANITIZE=1     CPU library with AddressSanitizer and UndefinedBehaviorSanitizer (make sanitize)
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pybind11
import torch.utils.cpp_extension as torch_build
from setuptools import Extension, setup

ROOT = Path(__file__).parent
# The oldest torch that loads the build; the version in pyproject.toml's dependencies says the same.
TORCH_FLOOR = (2, 10)
TARGET_VERSION = f"0x{TORCH_FLOOR[0]:02x}{TORCH_FLOOR[1]:02x}000000000000"

REPORT = "_build_report.json"
SANITIZE = os.environ.get("SEGKERNELS_SANITIZE") == "1"
CUDA_CHOICE = os.environ.get("SEGKERNELS_CUDA", "")
CUDA_ARCHS = os.environ.get("SEGKERNELS_CUDA_ARCHS", "80;90;100").replace(",", ";").split(";")

STABLE = [f"-DTORCH_TARGET_VERSION={TARGET_VERSION}", "-DTORCH_STABLE_ONLY"]
# -g0: Python's own flags ask for debug information, which triples a library and its compile time.
CXX_FLAGS = ["-std=c++20", "-O3", "-g0", "-fvisibility=hidden", "-fno-math-errno", "-fno-trapping-math", "-Wall", "-Wno-psabi"]
# -fno-wrapv: Python's own flags define signed overflow, which would hide it.
EXPORT_NOTHING = f"-Wl,--version-script={ROOT}/csrc/common/hidden.map"
SANITIZE_FLAGS = [
    "-O1",
    "-g",
    "-fno-omit-frame-pointer",
    "-fno-wrapv",
    "-fsanitize=address,undefined",
    "-fno-sanitize-recover=undefined",
    "-DSEGKERNELS_NO_CLONES",
]


def find_nvcc() -> Path | None:
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    candidates = [Path(home) / "bin" / "nvcc"] if home else []
    on_path = shutil.which("nvcc")
    candidates += [Path(on_path)] if on_path else []
    candidates.append(Path("/usr/local/cuda/bin/nvcc"))
    return next((path for path in candidates if path.exists()), None)


def cuda_home(nvcc: Path) -> Path:
    """The toolkit's root, also when nvcc on PATH is a wrapper script."""
    dry_run = subprocess.run([nvcc, "--dryrun", "-c", "x.cu"], capture_output=True, text=True).stderr
    for line in dry_run.splitlines():
        if line.startswith("#$ TOP="):
            return Path(line.removeprefix("#$ TOP=").strip()).resolve()
    return nvcc.resolve().parent.parent


def first_line(command: list[str]) -> str:
    try:
        output = subprocess.run(command, capture_output=True, text=True).stdout.strip().splitlines()
    except OSError:
        return "not found"
    return output[0] if output else "unknown"


def sources(folder: str, suffix: str) -> list[str]:
    return sorted(str(path.relative_to(ROOT)) for path in (ROOT / "csrc" / folder).glob(f"*.{suffix}"))


def headers() -> list[str]:
    return sorted(str(path.relative_to(ROOT)) for path in (ROOT / "csrc").rglob("*.*h"))


def cpu_library() -> Extension:
    flags = [*CXX_FLAGS, *STABLE, *(SANITIZE_FLAGS if SANITIZE else [])]
    extension = torch_build.CppExtension(
        "segkernels._ops_cpu",
        [*sources("common", "cpp"), *sources("cpu", "cpp")],
        py_limited_api=True,
        extra_compile_args={"cxx": flags},
        extra_link_args=[EXPORT_NOTHING, *(["-fsanitize=address,undefined"] if SANITIZE else [])],
        depends=headers(),
    )
    extension.libraries = ["c10", "torch_cpu"]
    return extension


def cuda_library(nvcc: Path) -> Extension:
    home = cuda_home(nvcc)
    # A CPU build of torch leaves this unset; compiling and linking need the toolkit only.
    torch_build.CUDA_HOME = str(home)
    logged = ["sh", str(ROOT / "csrc" / "common" / "nvcc_logged.sh"), os.environ.get("PYTORCH_NVCC", str(nvcc))]
    os.environ["PYTORCH_NVCC"] = shlex.join(logged)
    # One PTX, of the oldest, which every GPU's assembler takes: no source asks which one it is compiled for, and reading a
    # source again for each architecture was half of the compile time.
    ptx = f"arch=compute_{min(CUDA_ARCHS, key=int)}"
    archs = [flag for arch in CUDA_ARCHS for flag in ("-gencode", f"{ptx},code=sm_{arch}")]
    archs += ["-gencode", f"{ptx},code={ptx.removeprefix('arch=')}"]
    defines = [*STABLE, "-DUSE_CUDA"]
    extension = torch_build.CppExtension(
        "segkernels._ops_cuda",
        sources("cuda/units", "cu"),
        py_limited_api=True,
        include_dirs=[str(home / "include")],
        extra_compile_args={
            "cxx": [*CXX_FLAGS, *defines],
            "nvcc": [
                "-std=c++20",
                "-O3",
                "--expt-relaxed-constexpr",
                "-Xptxas=-v",
                "-Xcompiler=-fvisibility=hidden",
                *defines,
                *archs,
            ],
        },
        # The runtime is linked in, so that the library does not ask for one CUDA minor version; torch's own symbols stay
        # undefined and are found in the process that loads it.
        extra_link_args=[f"-L{home}/lib64", "-lcudart_static", "-ldl", "-lrt", "-lpthread", EXPORT_NOTHING],
        depends=headers(),
    )
    extension.libraries = []
    extension.library_dirs = []
    return extension


def helpers_module(nvcc: Path | None) -> Extension:
    macros = {
        "SEGKERNELS_CXX_FLAGS": " ".join(CXX_FLAGS),
        "SEGKERNELS_TORCH_FLOOR": ".".join(map(str, TORCH_FLOOR)),
        "SEGKERNELS_TORCH_BUILD": torch_build.torch.__version__,
        "SEGKERNELS_CUDA_ARCHS": ";".join(CUDA_ARCHS) if nvcc else "",
        "SEGKERNELS_NVCC": nvcc_version(nvcc) if nvcc else "",
    }
    return Extension(
        "segkernels._C",
        sources("python", "cpp"),
        include_dirs=[pybind11.get_include()],
        extra_compile_args={"cxx": [*CXX_FLAGS, *(f'-D{name}="{value}"' for name, value in macros.items())]},
        language="c++",
        depends=headers(),
    )


def nvcc_version(nvcc: Path) -> str:
    text = subprocess.run([nvcc, "--version"], capture_output=True, text=True).stdout
    return next((line.split("release ")[1].split(",")[0] for line in text.splitlines() if "release" in line), "unknown")


class BuildNative(torch_build.BuildExtension):
    """torch's ninja build; one piece that fails is recorded and the others go on."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, no_python_abi_suffix=True, **kwargs)

    def get_export_symbols(self, ext):
        return super().get_export_symbols(ext) if ext.name.endswith("._C") else []

    def get_ext_filename(self, ext_name):
        # Only _C belongs to one Python; the operator libraries load in any.
        self.no_python_abi_suffix = not ext_name.endswith("_C")
        return super().get_ext_filename(ext_name)

    def build_extensions(self):
        if self.editable_mode:
            # pip gives an editable install a throw-away folder; the objects of `build_ext --inplace` are as good.
            self.build_temp = str(ROOT / "build" / f"temp.{self.plat_name}-{sys.implementation.cache_tag}")
        report = dict(skipped)
        compiler = shlex.split(torch_build.get_cxx_compiler())[0]
        pieces, self.extensions = self.extensions, []
        library = next(piece for piece in pieces if piece.name.endswith("._ops_cpu"))
        use_headers = self.precompile_headers(library) if shutil.which(compiler) else None
        for piece in pieces:
            name = piece.name.rpartition("._")[2].removeprefix("ops_")
            self.extensions = [piece]
            try:
                if not shutil.which(compiler):
                    raise RuntimeError(f"C++ compiler not found: {compiler} (CXX names another)")
                if piece is library:
                    use_headers()
                super().build_extensions()
                report[name] = {"built": True}
            except Exception as error:  # a missing compiler surfaces as one of many types
                if os.environ.get("SEGKERNELS_REQUIRE_NATIVE") == "1" or (name == "cuda" and CUDA_CHOICE == "1"):
                    raise
                reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
                report[name] = {"built": False, "reason": reason}
                print(f"segkernels: {piece.name} is not built: {reason}")
        self.extensions = [piece for piece in pieces if report[piece.name.rpartition("._")[2].removeprefix("ops_")]["built"]]
        folder = Path(self.build_lib) / "segkernels"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / REPORT).write_text(json.dumps(report, indent=1) + "\n")

    def precompile_headers(self, piece):
        """Starts to read torch's headers, once for all CPU sources; returns what waits for it and lets ``piece`` use them.

        Where that fails the build takes longer.
        """
        header = ROOT / "csrc" / "common" / "torch_headers.h"
        folder = Path(self.build_temp).resolve() / "headers"
        compiled, stamp = folder / f"{header.name}.gch", folder / "command.txt"
        flags = piece.extra_compile_args["cxx"]
        includes = [f"-I{path}" for path in (*self.compiler.include_dirs, *piece.include_dirs)]
        command = [*shlex.split(torch_build.get_cxx_compiler()), *self.compiler.compiler_so[1:], *includes, *flags]
        command += ["-x", "c++-header", str(header), "-o", str(compiled)]
        wanted = f"torch {torch_build.torch.__version__}\n{shlex.join(command)}\n{header.read_text()}"
        running = None
        if not compiled.exists() or not stamp.exists() or stamp.read_text() != wanted:
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copy(header, folder)
            stamp.unlink(missing_ok=True)
            running = subprocess.Popen(command)

        def use():
            if running:
                if running.wait():
                    return
                stamp.write_text(wanted)
            # Ahead of the other folders: the compiler takes the .gch beside the header it finds, if the flags are the same.
            piece.include_dirs.insert(0, str(folder))
            flags.extend(["-include", header.name])

        return use

    def copy_extensions_to_source(self):
        super().copy_extensions_to_source()
        shutil.copy(Path(self.build_lib) / "segkernels" / REPORT, ROOT / "segkernels" / REPORT)


os.chdir(ROOT)
os.environ.setdefault("MAX_JOBS", str(os.cpu_count() or 2))
skipped: dict[str, dict[str, object]] = {}
nvcc = find_nvcc() if CUDA_CHOICE != "0" else None
if nvcc is None:
    why = "SEGKERNELS_CUDA=0" if CUDA_CHOICE == "0" else "nvcc not found"
    if CUDA_CHOICE == "1":
        raise SystemExit("segkernels: SEGKERNELS_CUDA=1, but nvcc was not found (set CUDA_HOME)")
    skipped["cuda"] = {"built": False, "reason": why}

setup(
    # _C first: it needs none of torch's headers, which are compiled meanwhile.
    ext_modules=[helpers_module(nvcc), cpu_library(), *([cuda_library(nvcc)] if nvcc else [])],
    cmdclass={"build_ext": BuildNative},
)
