#!/usr/bin/env bash
# Builds the C++ kernels with the address and undefined-behaviour sanitizers, apart from the usual build, and runs the
# CPU kernel's tests on every instruction set of this machine.
set -euo pipefail
cd "$(dirname "$0")/.."
python=$(command -v "${PYTHON:-python}")
python=$(cd "$(dirname "$python")" && pwd)/$(basename "$python")
build=$(mktemp -d)
trap 'rm -rf "$build"' EXIT

cp -r setup.py pyproject.toml csrc hscc_kernels python tests "$build"
find "$build" -name '*.so' -delete
flags="-fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer -O1 -g"
cd "$build"
HSCC_CXXFLAGS="$flags" HSCC_LDFLAGS="-fsanitize=address,undefined" "$python" setup.py -q build_ext --inplace
test -n "$(find hscc_kernels -name '_C*.so')"

# Python itself is not instrumented: its leaks are not ours, and the runtime has to be there before it starts.
export LD_PRELOAD="$(${CXX:-c++} -print-file-name=libasan.so) $(${CXX:-c++} -print-file-name=libubsan.so)"
export ASAN_OPTIONS=detect_leaks=0 PYTHONMALLOC=malloc PYTHONPATH="$build:$build/python"
"$python" -m pytest -q -p no:cacheprovider tests/kernels/test_cpu_kernel.py tests/kernels/test_cpu_int8.py tests/kernels/test_projection.py "$@"
echo "sanitizers: clean"
