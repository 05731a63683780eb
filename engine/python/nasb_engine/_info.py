"""nasb-engine info: the machine, the kernels, a model."""

import os
from dataclasses import asdict
from typing import Any

import numpy as np

from nasb_engine._kernels import cpu_name, instruction_sets, kernels
from nasb_engine._session import Session, __version__


def machine() -> dict[str, Any]:
    """Return a record of this machine and this build."""
    return {
        "engine": __version__,
        "cpu": cpu_name(),
        "instruction_sets": instruction_sets(),
        "usable_cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "kernels": [asdict(kernel) for kernel in kernels()],
    }


def model(path: str, threads: int = 0, kernel: str = "") -> dict[str, Any]:
    """Return a record of a model: shapes, sizes, operations, metadata."""
    session = Session(path, threads=threads, kernel=kernel)
    layers = session.profile(repeats=1)
    binary = sum(layer.macs for layer in layers if layer.binary)
    real = sum(layer.macs for layer in layers if not layer.binary)
    return {
        "model": path,
        "file_bytes": session.file_bytes,
        "workspace_bytes": session.workspace_bytes,
        "input_shape": list(session.input_shape),
        "output_shape": list(session.output_shape),
        "steps": len(layers),
        "kernels": sorted({layer.kernel for layer in layers if layer.binary}),
        "binary_macs": binary,
        "real_macs": real,
        "ops": real + binary / 64,
        "classes": list(session.class_names),
        "metadata": session.metadata,
    }


def describe_machine(record: dict[str, Any]) -> str:
    """Return the record for a reader."""
    lines = [
        f"nasb-engine {record['engine']}, numpy {np.__version__}",
        f"{record['cpu']}: {record['usable_cpus']} usable CPUs; "
        f"{' '.join(record['instruction_sets']) or 'instruction sets unknown'}",
        "kernels of binary convolutions:",
    ]
    for kernel in record["kernels"]:
        states = [
            "compiled" if kernel["compiled"] else "not compiled",
            "supported by this CPU" if kernel["supported"] else "not supported by this CPU",
            "equal to the reference" if kernel["verified"] else "not verified",
        ]
        note = f" ({kernel['note']})" if kernel["note"] else ""
        lines.append(f"  {kernel['name']:<20}{', '.join(states)}{note}")
    return "\n".join(lines)


def describe_model(record: dict[str, Any]) -> str:
    """Return the record for a reader; long metadata are cut."""
    names = ", ".join(record["classes"][:5]) + (", ..." if len(record["classes"]) > 5 else "")
    lines = [
        f"{record['model']}: {record['file_bytes']:,} bytes; a running call needs {record['workspace_bytes']:,} more",
        f"  input {record['input_shape']}, output {record['output_shape']}"
        + (f", {len(record['classes'])} classes: {names}" if names else ", no class names"),
        f"  {record['steps']} steps; {record['binary_macs']:.4g} binary MACs "
        f"({', '.join(record['kernels']) or 'none'}), "
        f"{record['real_macs']:.4g} real MACs: {record['ops']:.4g} OPs",
    ]
    for key, value in record["metadata"].items():
        lines.append(f"  {key}: {value if len(value) <= 100 else value[:97] + '...'}")
    return "\n".join(lines)
