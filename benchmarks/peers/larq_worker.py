"""Runs one converted model in Larq Compute Engine, in a process of its own, since it needs NumPy 1.

Arguments: model.tflite, threads. For each line on the input, a number of seconds, it runs that long (once at least) and
prints the median seconds of a run; between two lines it sleeps. `use_indirect_bgemm=True` is its fastest mode on x86.
"""

import importlib.util
import sys
import time
from pathlib import Path

import numpy as np


def interpreter(path: str, threads: int) -> object:
    """Load the interpreter's library alone: its package imports TensorFlow."""
    package = importlib.util.find_spec("larq_compute_engine")
    library = next(Path(package.submodule_search_locations[0]).glob("tflite/python/interpreter_wrapper_lite*.so"))
    found = importlib.util.spec_from_file_location("interpreter_wrapper_lite", library)
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module.LiteInterpreter(Path(path).read_bytes(), threads, False, True, False)


def main(path: str, threads: int) -> None:
    """Answer until the input ends."""
    runs = interpreter(path, threads)
    (shape,) = runs.input_shapes
    x = [np.random.default_rng(0).standard_normal(shape).astype(np.float32)]
    runs.predict(x)
    print("ready", flush=True)
    for line in sys.stdin:
        times, start = [], time.perf_counter()
        while not times or time.perf_counter() - start < float(line):
            before = time.perf_counter()
            runs.predict(x)
            times.append(time.perf_counter() - before)
        print(float(np.median(times)), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
