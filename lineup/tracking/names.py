"""Names in MLflow: what they are made of, and which of them have a meaning for us."""

RUN_ID = "lineup.run_id"  # the tag by which runs, models and versions are found
EPOCH_OF = "lineup.epoch_of"  # the tag of models that are kept epochs: which run they are of
WEIGHTS_TAG = "weights_sha256"  # the tag by which the model of a weights file is found
MODEL_TAG = "model_sha256"  # the tag by which a version is known for the same model
RESTORED = "lineup.restored"  # the tag of a run log that was made from outputs, say after dvc pull


def registered_name(dataset: str) -> str:
    """Return the name of a dataset's registered model, without what breaks a models:/ address."""
    return "".join(letter if letter.isalnum() or letter in "_ .-" else "-" for letter in dataset)
