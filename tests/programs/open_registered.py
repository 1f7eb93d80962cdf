"""Register a model by hand in the store of the environment, and open it by every kind of name."""

import sys
from pathlib import Path

import mlflow
import onnx

from lineup.serving.classifier import open_classifier

folder, picture = Path(sys.argv[1]), Path(sys.argv[2])
mlflow.set_experiment("digits")
with mlflow.start_run() as run:
    logged = mlflow.onnx.log_model(
        onnx.load(folder / "model.onnx"),
        name="linear",
        registered_model_name="digits",
        pip_requirements=["onnxruntime"],
        save_as_external_data=False,
    )
mlflow.MlflowClient().set_registered_model_alias("digits", "champion", 1)
names = [
    "models:/digits@champion",
    "models:/digits/1",
    f"runs:/{run.info.run_id}/linear",
    logged.model_uri,
    None,
]
for name in names:
    classifier = open_classifier(name)
    probabilities = classifier.classify([classifier.preprocess(picture)])
    print("answer", classifier.classes[probabilities.argmax()])
try:
    open_classifier("models:/digits@nobody")
except Exception as error:
    print(type(error).__name__, error)
