"""Makes a copy of ONNX Runtime that takes its AVX2 kernels on any CPU, for `benchmarks/engine.py --held`.

ONNX Runtime has no option for it. It asks the CPU which instructions there are, and the register XCR0 whether the
system saves their registers (bits 5 to 7 for AVX-512, 17 and 18 for AMX). In the copy XCR0 reads as its lowest three
bits (x87, SSE, AVX), which is what a system without AVX-512 would say, and AVX-VNNI (dot products of int8 in vectors of
AVX2, which CPUs with AVX2 alone lack) is taken for absent; everything else is as it was. The copy stays under
build/peers: it is for measuring on this machine, not for distribution.

    build/peers/env/bin/python benchmarks/peers/hold_onnxruntime.py FOLDER      writes FOLDER/onnxruntime
"""

import importlib.util
import shutil
import sys
from pathlib import Path

# (what stands in the library, what takes its place, how often it must be found). First: xgetbv; mov eax, eax;
# shl rdx, 32; or rdx, rax (XCR0 as 64 bits in rdx, its lower half in rax) becomes xgetbv; and eax, 7; mov rdx, rax;
# nop: four copies of the constructor of MLAS's platform, and the library cpuinfo. Second: and r9d, 0xe6 in CPUIDInfo,
# which is then compared with 0xe6, becomes and r9d, 6. Third: mov eax, 7; mov ecx, 1; cpuid; test al, 16, the bit of
# AVX-VNNI, becomes test al, 0 in the four constructors.
PATCHES = (
    ("0f01d0 89c0 48c1e220 4809c2", "0f01d0 83e007 4889c2 0f1f00", 5),
    ("4181e1e6000000 4531d2 31c9 4181f9e6000000", "4181e106000000 4531d2 31c9 4181f9e6000000", 1),
    ("b807000000 b901000000 0fa2 a810", "b807000000 b901000000 0fa2 a800", 4),
)


def held(library: bytes) -> bytes:
    """Return the library with XCR0 masked; ValueError if it is not laid out as the version in requirements.txt."""
    for found, replaced, times in PATCHES:
        old, new = bytes.fromhex(found), bytes.fromhex(replaced)
        if library.count(old) != times:
            raise ValueError(
                f"{found} stands {library.count(old)} times in ONNX Runtime's library, {times} are expected: this "
                "build cannot be held to AVX2 by hold_onnxruntime.py; install the version in requirements.txt"
            )
        library = library.replace(old, new)
    return library


def write(folder: Path) -> None:
    """Write FOLDER/onnxruntime from the installed package."""
    package = importlib.util.find_spec("onnxruntime")
    if package is None or package.submodule_search_locations is None:
        raise ValueError("onnxruntime is not installed: run `make peers`")
    source, target = Path(package.submodule_search_locations[0]), folder / "onnxruntime"
    if target.resolve() == source.resolve():
        raise ValueError(f"{target} is the package that is to be copied")
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__", "libonnxruntime.so*"))
    (library,) = target.glob("capi/onnxruntime_pybind11_state*.so")
    library.write_bytes(held(library.read_bytes()))


if __name__ == "__main__":
    write(Path(sys.argv[1]))
