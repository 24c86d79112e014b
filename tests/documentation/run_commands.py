"""Runs commands one after the other in a folder, until one fails: what a reader would type.

python -m tests.documentation.run_commands FOLDER COMMAND...
"""

import os
import subprocess
import sys

if __name__ == "__main__":
    os.chdir(sys.argv[1])
    for command in sys.argv[2:]:
        print(f"$ {command}", flush=True)
        ended = subprocess.run(["bash", "-c", command], stderr=subprocess.STDOUT, check=False)
        if ended.returncode:
            sys.exit(f"{command}: exit code {ended.returncode}")
