"""The steps of `benchmarks.scaling`: sums of any length, and a chain of layers."""

from typing import Any

from benchmarks import latency_steps, layer_steps
from benchmarks.harness import rank


class Service(layer_steps.Service):
    """Contenders: `sum`, a chain of all-reduces, and those of `benchmarks.layer`."""

    def make(self, contender: str, case: dict[str, Any]) -> rank.Step:
        if contender == "sum":
            return latency_steps.chain_of_sums(self.communicator, case["values"], case["chain"])
        return super().make(contender, case)
