"""The training loop of launcher.train against its compiled steps alone.

python -m benchmarks.end_to_end [--toy] [--output FILE]

Two ranks over MPI train on digits with the default options of `launcher.train`; a turn is an
epoch. The loop adds shuffled input in a background thread, the checks, and the learning rate;
metrics add, as under a launcher, the time of every collective, the page and its snapshots, the
exchange between ranks, metrics.jsonl, and heartbeats.
"""

from collections.abc import Sequence

from benchmarks.harness.conductor import Conductor, Plan
from benchmarks.harness.results import Bar, Report, Timing, arguments, finish
from benchmarks.harness.turns import Contender, take_turns

# In this order: once metrics have begun, every step traced in the process is measured.
STEPS, LOOP, WATCHED = "compiled steps alone", "the loop", "the loop with metrics and heartbeats"
_NAMES = {STEPS: "steps", LOOP: "loop", WATCHED: "with metrics"}
_PLAN = Plan("mpi", "mpirun", "mpi")
# Steps of an epoch, by model.
_MODELS = {"cnn": 22, "resnet18": 4}


def main(argv: Sequence[str] | None = None) -> None:
    options = arguments(__doc__).parse_args(argv)
    finish(measure(options.toy), options.output)


def measure(toy: bool) -> Report:
    """Measures an epoch of each contender."""
    report = Report("end_to_end", {"ranks": 2, "intra-op threads per rank": 1})
    rounds, epochs = (1, 2) if toy else (6, 3)
    for model in ("cnn",) if toy else _MODELS:
        case = {"model": model, "steps": _MODELS[model]}
        with Conductor("benchmarks.end_to_end_steps") as conductor:
            jobs = conductor.start([_PLAN])
            contenders = [Contender(name, jobs[_PLAN.name], case) for name in _NAMES.values()]
            for words, taken in zip(
                _NAMES, take_turns(contenders, rounds, epochs, toy=toy), strict=True
            ):
                report.timings.append(Timing.of(words, _PLAN.name, in_words(model), *taken))
        if not toy:
            alone, watched = (report.median(each, in_words(model)) for each in (STEPS, WATCHED))
            claim = f"{model}: rate of the whole loop, of its steps alone"
            report.bars.append(Bar(claim, alone / watched, 0.95, at_most=False))
    return report


def in_words(model: str) -> str:
    return f"{_MODELS[model]} steps of {model}"


if __name__ == "__main__":
    main()
