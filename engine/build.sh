#!/usr/bin/env bash
# Builds the engine without Python into build/engine-NAME at the repository's root:
#   native     the static nasb-run and the shared C library
#   aarch64    the same program for 64-bit ARM, by g++-aarch64-linux-gnu; qemu-aarch64 runs it here
#   sanitize   nasb-run, the C library and the replayer of the fuzzing corpus, under AddressSanitizer and UBSan
#   fuzz       the libFuzzer harness, by clang
# Variables: CMAKE, JOBS (default 2). Ends with 3 and one line where a tool is missing.
set -euo pipefail
cd "$(dirname "$0")/.."
cmake=${CMAKE:-cmake}
name=${1:?native, aarch64, sanitize or fuzz}

needs() {
  command -v "$1" >/dev/null || { echo "engine/build.sh $name: $1 is missing ($2)" >&2; exit 3; }
}
needs "$cmake" "pip install cmake, or apt-get install cmake"

case $name in
  native) options=() ;;
  aarch64)
    needs aarch64-linux-gnu-g++ "apt-get install g++-aarch64-linux-gnu"
    options=(-DCMAKE_TOOLCHAIN_FILE="$PWD/engine/cmake/aarch64-linux-gnu.cmake" -DNASB_SHARED=OFF) ;;
  sanitize) options=(-DNASB_SANITIZE=address,undefined -DNASB_FUZZ=ON -DCMAKE_BUILD_TYPE=RelWithDebInfo "-DCMAKE_CXX_FLAGS_RELWITHDEBINFO=-O1 -g1") ;;
  fuzz)
    clang=$(command -v clang++ || command -v clang++-14 || true)
    needs "${clang:-clang++}" "apt-get install clang-14 libclang-rt-14-dev"
    options=(-DCMAKE_CXX_COMPILER="$clang" -DNASB_SANITIZE=address,undefined -DNASB_FUZZ=ON -DNASB_TOOLS=OFF -DNASB_SHARED=OFF
             -DCMAKE_BUILD_TYPE=RelWithDebInfo "-DCMAKE_CXX_FLAGS_RELWITHDEBINFO=-O1 -g1") ;;
  *) echo "engine/build.sh: unknown build \"$name\"; known: native, aarch64, sanitize, fuzz" >&2; exit 2 ;;
esac
command -v ninja >/dev/null && options+=(-G Ninja)
folder=build/engine-$name
mkdir -p build
"$cmake" -S engine -B "$folder" "${options[@]}" >"$folder.log" 2>&1 || { tail -20 "$folder.log" >&2; exit 1; }
"$cmake" --build "$folder" -j "${JOBS:-2}" >>"$folder.log" 2>&1 || { grep -E -A5 "error|FAILED" "$folder.log" >&2; exit 1; }
echo "$folder"
