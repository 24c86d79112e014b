"""`python -m syncbn.native.build [--output DIR]`: builds the kernels before their first use."""

import sys

from syncbn.native import compiler
from syncbn.native.library import library


def main(arguments: list[str]) -> int:
    """Prints the path of the library; returns the exit code."""
    try:
        options = compiler.parse(arguments)
        print(library() if options.output is None else compiler.build_into(options))
    except (compiler.BuildError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
