"""How the cost of an outer step grows: with N, images per class, classes, image side and segments.

    python -m benchmarks.scaling

Plain derivatives (compiling a dozen shapes takes longer than measuring them), ConvNet with 128 channels, one quantity
varied at a time from ipc 1, 10 classes, 32x32 pixels (depth 3; 64: 4; 128: 5), N = 10, one segment.
"""

import statistics

from benchmarks import rig, step

BASE = {"ipc": 1, "steps": 10, "classes": 10, "side": 32, "segments": 1}
VARIED = {"steps": [10, 20, 40], "ipc": [1, 2, 4], "classes": [10, 20, 40], "side": [32, 64, 128], "segments": [1, 2]}


def main() -> None:
    """Print one table."""
    parser = rig.arguments(__doc__)
    options = parser.parse_args()
    if rig.serve(options, step.build):
        return
    print(rig.machine(options))
    rows = []
    for quantity, values in VARIED.items():
        shared = {**BASE, "full": False, "compiled": False, "keep": True}
        chosen = values[: 2 if options.short else None]
        variants = [{**shared, quantity: value} for value in chosen]
        measured = rig.measure("benchmarks.scaling", options, variants)
        for value, each in zip(chosen, measured, strict=True):
            memory = f"{each.mebibytes:.0f}"
            seconds = f"{statistics.median(each.seconds):.3g}"
            rows.append([quantity, str(value), seconds, rig.ratio(each, measured[0]), memory])
    rig.print_table("Outer step", ["varied", "value", "s", "over the first", "peak MiB"], rows)


if __name__ == "__main__":
    main()
