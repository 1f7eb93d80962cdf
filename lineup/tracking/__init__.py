"""The only room that knows MLflow: run folders, their mirror, the registry, the gate."""
