"""What a dataset asks for: a class of each picture, or numbers for each row."""

from enum import StrEnum


class Task(StrEnum):
    """The two kinds of tasks, and the words that files use for their tensors."""

    CLASSIFICATION = "classification"
    REGRESSION = "regression"

    @property
    def inputs(self) -> str:
        """Return the name of the inputs: images uint8 (N, C, H, W), or inputs float32 (N, F)."""
        return "images" if self is Task.CLASSIFICATION else "inputs"

    @property
    def targets(self) -> str:
        """Return the name of the targets: labels int64 (N,), or targets float32 (N, T)."""
        return "labels" if self is Task.CLASSIFICATION else "targets"

    @property
    def outputs(self) -> str:
        """Return the name of a model's outputs: probabilities float32 (N, K), or outputs (N, T)."""
        return "probabilities" if self is Task.CLASSIFICATION else "outputs"

    @property
    def input_dtype(self) -> str:
        """Return the dtype of raw inputs."""
        return "uint8" if self is Task.CLASSIFICATION else "float32"
