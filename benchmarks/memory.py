"""The memory that a layer holds between forward and backward, and the peak of a step.

python -m benchmarks.memory [--toy] [--output FILE]

One layer on two ranks in new processes. The held memory is read from the graph: the tensors of the
forward pass that the backward pass reads. The peak is the resident memory of the process.
"""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from benchmarks.harness.conductor import Conductor, Plan
from benchmarks.harness.results import Bar, Report, arguments, finish

_CASE = {"shape": [32, 112, 112, 64]}
_TOY = {"shape": [8, 64, 64, 64]}
CONTENDERS = {"syncbn": "ours", "Keras local": "keras", "TensorFlow fused local": "fused"}


def main(argv: Sequence[str] | None = None) -> None:
    options = arguments(__doc__).parse_args(argv)
    report = measure(options.toy)
    table = Table(
        "contender", "held in addition to the inputs", "peak", title="in sizes of the inputs"
    )
    for contender, figures in report.details["memory"].items():
        table.add_row(contender, f"{figures['held']:.4f}", f"{figures['peak']:.2f}")
    Console().print(table)
    finish(report, options.output)


def measure(toy: bool) -> Report:
    """Measures each contender, in multiples of the size of its inputs."""
    case = _TOY if toy else _CASE
    shape = ",".join(str(length) for length in case["shape"])
    report = Report("memory", {"ranks": 2, "inputs": f"({shape}) float32"})
    figures: dict[str, dict[str, float]] = {}
    for words, name in list(CONTENDERS.items())[: 1 if toy else None]:
        with Conductor("benchmarks.memory_steps") as conductor:
            job = conductor.start([Plan("mpi", "mpirun", "mpi")])["mpi"]
            answers = job.call("measure", contender=name, case=case)
        figures[words] = {
            key: max(answer[key] / answer["inputs"] for answer in answers)
            for key in ("held", "peak")
        } | {"held bytes": max(answer["held"] for answer in answers)}
    report.details["memory"] = figures
    if not toy:
        ours, keras = figures["syncbn"], figures["Keras local"]
        report.bars = [
            Bar(
                "held from forward to backward, besides the input",
                ours["held"],
                0.001,
                True,
                "inputs",
            ),
            Bar("peak resident memory, of Keras local", ours["peak"] / keras["peak"], 1, True),
        ]
    return report


if __name__ == "__main__":
    main()
