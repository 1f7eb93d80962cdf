from lineup.evaluation.plots import record_activations
