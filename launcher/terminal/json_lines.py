"""`--json`: every event as a line of JSON on standard output, for programs."""

from contextlib import suppress

from launcher import strict_json
from launcher.runs.events import Event


class JsonLines:
    """An observer that prints events, the output of ranks included."""

    def __call__(self, event: Event) -> None:
        # The job continues when the reader has closed the pipe.
        with suppress(OSError, ValueError):
            print(strict_json.dumps(event.as_json()), flush=True)

    def close(self) -> None:
        """Does nothing."""
