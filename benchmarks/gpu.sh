#!/usr/bin/env bash
# Everything a machine with an NVIDIA GPU can prove, without a network and in under ten minutes: build, GPU tests,
# compute-sanitizer on a small run, every row of the benchmarks, the kernels' resources, one archive of it all. Needs torch
# with CUDA, Triton, nvcc, pytest, hypothesis, expecttest, ninja, pybind11 and rich there.
#
#   benchmarks/gpu.sh [FOLDER]     logs and results go to FOLDER, default build/gpu; the archive to $OUT, or there too
#
# A step that fails or runs out of its time does not stop the next one: the exit status is the number of such steps.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
out=${1:-build/gpu}
python=${PYTHON:-python3}
archive=${OUT:-$out}/segkernels-gpu.tar.gz
mkdir -p "$out" "$(dirname "$archive")"
failed=0

# step NAME SECONDS COMMAND...: its output goes to FOLDER/NAME.log, the last lines to the screen.
step() {
  local name=$1 seconds=$2 start=$SECONDS status
  shift 2
  printf '\n== %s\n' "$name"
  timeout "$seconds" "$@" >"$out/$name.log" 2>&1
  status=$?
  tail -n 12 "$out/$name.log"
  printf '== %s: %s after %s s\n' "$name" "$([ $status = 0 ] && echo ok || echo "FAILED with $status")" $((SECONDS - start)) |
    tee -a "$out/summary.txt"
  [ $status = 0 ] || failed=$((failed + 1))
}

: >"$out/summary.txt"
nvidia-smi --query-gpu=name,driver_version,memory.total,compute_cap --format=csv | tee "$out/device.csv"
# Only for the GPU that is here: three architectures would take three times as long.
capability=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader | head -n 1 | tr -d '. ')
export SEGKERNELS_CUDA=1 SEGKERNELS_REQUIRE_NATIVE=1 SEGKERNELS_CUDA_ARCHS=${SEGKERNELS_CUDA_ARCHS:-$capability}
"$python" -c "import xdist" 2>/dev/null && parallel="-n 4"

step build 120 "$python" setup.py -q build_ext --inplace
step doctor 20 "$python" -m segkernels doctor
# Another process of the same tests would build the emulated library, too.
export SEGKERNELS_EMULATED_LIBRARY=/none
# shellcheck disable=SC2086
step tests 100 "$python" -m pytest tests/ops -k "cuda or gpu or devices" -p no:cacheprovider --tb=short ${parallel:-}
for tool in memcheck racecheck; do
  step "$tool" 35 compute-sanitizer --tool "$tool" --error-exitcode 1 "$python" -m pytest -x -p no:cacheprovider \
    tests/ops/test_max_unpool2d.py tests/ops/test_confusion_matrix.py -k "cuda-cuda and float32 and test_forward"
done
step bench 180 "$python" -m segkernels bench --device cuda --dtype fp32,bf16 --seconds 0.1 --out "$out/rows.csv" --check
step kernels 40 "$python" -m benchmarks.kernels --out "$out/kernels.csv"
step resources 50 "$python" -m benchmarks.resources --archs "$capability" --out "$out/resources.csv"

tar -czf "$archive" -C "$out" --exclude "$(basename "$archive")" .
printf '\n%s\n' "$archive"
cat "$out/summary.txt"
exit $failed
