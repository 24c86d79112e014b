"""Runs a command on a separate file system, and prints the files that it leaves there.

python -m tests.launcher.small_disk_program PLACE SIZE COMMAND...

The mount is in a namespace of its own, and gone with it. Meant to be the child of
`unshare --mount`; prints one line of JSON.
"""

import json
import os
import subprocess
import sys
from pathlib import Path


def main() -> None:
    place, size, *command = sys.argv[1:]
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", place], check=True)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    files = [path for path in Path(place).rglob("*") if path.is_file()]
    small = (".json", ".jsonl", ".log", ".html")
    print(
        json.dumps(
            {
                "code": done.returncode,
                "stdout": done.stdout,
                "stderr": done.stderr,
                "files": [path.name for path in files],
                "texts": {path.name: path.read_text() for path in files if path.suffix in small},
                "free": os.statvfs(place).f_bavail * os.statvfs(place).f_frsize,
            }
        )
    )


if __name__ == "__main__":
    main()
