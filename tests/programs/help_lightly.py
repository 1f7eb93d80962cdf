"""Ask a stage for its --help, and make sure that it imported nothing heavy."""

import runpy
import sys

sys.argv = [sys.argv[1], "--help"]
try:
    runpy.run_module(sys.argv[0], run_name="__main__")
except SystemExit as end:
    assert not end.code, end.code
assert not {"torch", "mlflow", "matplotlib", "sklearn", "pandas", "numpy"} & sys.modules.keys()
