"""`python -m syncbn.native.build`: builds the kernels now instead of on first use."""

import sys

from syncbn.native.library import BuildError, library

if __name__ == "__main__":
    try:
        print(library())
    except BuildError as error:
        sys.exit(str(error))
