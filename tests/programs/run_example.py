"""Run export/example.py of the current folder as its user does, and tell what it imported."""

import runpy
import sys

sys.argv = ["example.py", "images.npy"]
runpy.run_path("export/example.py")
assert not {"torch", "lineup", "stages", "onnx", "mlflow"} & sys.modules.keys()
