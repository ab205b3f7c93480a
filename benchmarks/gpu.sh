#!/usr/bin/env bash
# Everything a machine with an NVIDIA GPU can prove, without a network: build, GPU tests, compute-sanitizer on a small run and
# the kernels' resources. Needs torch with CUDA, Triton, nvcc, pytest, hypothesis, expecttest, ninja and pybind11 there.
#
#   benchmarks/gpu.sh [FOLDER]     logs go to FOLDER, default build/gpu
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
out=${1:-build/gpu}
python=${PYTHON:-python3}
mkdir -p "$out"
step() { printf '\n== %s\n' "$1"; }

step "build"
nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv | tee "$out/device.csv"
SEGKERNELS_CUDA=1 SEGKERNELS_REQUIRE_NATIVE=1 "$python" setup.py -q build_ext --inplace 2>&1 | tail -n 3
"$python" -m segkernels doctor | tee "$out/doctor.txt"

step "tests on the GPU"
"$python" -m pytest tests/ops -k "cuda or gpu or devices" 2>&1 | tee "$out/tests.log"

step "compute-sanitizer"
for tool in memcheck racecheck; do
  compute-sanitizer --tool "$tool" --error-exitcode 1 "$python" -m pytest tests/ops -k "cuda-cuda and float32 and test_forward" \
    -p no:cacheprovider 2>&1 | tee "$out/$tool.log" | tail -n 5
done

step "registers, shared memory, spills"
"$python" -m pytest tests/emulation/test_nvcc.py -s 2>&1 | tee "$out/resources.log"
