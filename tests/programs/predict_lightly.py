"""Run stages.predict with the arguments given, and make sure that it imported nothing heavy."""

import runpy
import sys

try:
    runpy.run_module("stages.predict", run_name="__main__")
except SystemExit as end:
    assert not end.code, end.code
assert not {"torch", "mlflow", "matplotlib", "sklearn", "pandas"} & sys.modules.keys()
