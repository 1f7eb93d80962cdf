"""A stage of the current folder: N STAGE [ARGUMENT…], no more memory from its N-th file on."""

import os
import resource
import sys
from importlib import import_module
from pathlib import Path

sys.path.insert(0, str(Path.cwd()))

from lineup.cli import run

number, name, *arguments = sys.argv[1:]
files_left = int(number)


def limit_memory(event, details):
    """Count files of this project that are opened to be written; take no memory after the last."""
    global files_left
    if event != "open" or not str(details[0]).startswith(str(Path.cwd())):
        return
    if details[2] & (os.O_WRONLY | os.O_RDWR):
        files_left -= 1
        if files_left == 0:
            pages = int(Path("/proc/self/statm").read_text().split()[0])
            size = pages * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (size, size))


sys.argv = [name, *arguments]
main = import_module(f"stages.{name}").main
sys.addaudithook(limit_memory)
run(main)
