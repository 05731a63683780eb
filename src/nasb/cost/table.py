"""A count as plain text: one line per layer that costs something, the totals, and what could not be counted."""

from nasb.cost.counting import BOPS_PER_FLOP, Count

HEADER = ("layer", "kind", "output", "FLOPs", "BOPs", "parameters", "kB")
LEFT_ALIGNED = 3


def render(count: Count) -> str:
    """Return the table of a count.

    FLOPs and BOPs are real and binary MACs of one image; kB = 1000 B. Layers that cost neither MACs nor memory are only
    numbered.
    """
    rows = [HEADER]
    free = 0
    for layer in count.layers:
        if not (layer.flops or layer.bops or layer.parameters):
            free += 1
            continue
        shape = "x".join(map(str, layer.output_shape))
        name = layer.name if layer.calls == 1 else f"{layer.name} ({layer.calls} calls)"
        rows.append((name, layer.kind, shape, *_numbers(layer.flops, layer.bops, layer.parameters, layer.memory_bits)))
    rows.append(("total", "", "", *_numbers(count.flops, count.bops, count.parameters, count.memory_bits)))
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADER))]
    lines = [
        "  ".join(
            text.ljust(width) if column < LEFT_ALIGNED else text.rjust(width)
            for column, (text, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    rule = "-" * max(map(len, lines))
    lines = [lines[0], rule, *lines[1:-1], rule, lines[-1], ""]
    if free:
        lines.append(f"and {free} layers without MACs or parameters")
    real = count.parameters - count.binary_parameters
    lines += [
        f"OPs: {count.ops:.4g} (FLOPs + BOPs / {BOPS_PER_FLOP})",
        f"parameters: {count.binary_parameters:,} of 1 bit, {real:,} of 32 bits",
        f"memory: {count.memory_bits / 8e3:,.1f} kB = {count.memory_bits / 1e6:,.3f} Mbit",
    ]
    if count.uncounted:
        lines += ["not counted:", *(f"  {line}" for line in count.uncounted)]
    return "\n".join(lines)


def _numbers(flops: int, bops: int, parameters: int, memory_bits: int) -> tuple[str, str, str, str]:
    return f"{flops:,}", f"{bops:,}", f"{parameters:,}", f"{memory_bits / 8e3:,.2f}"
