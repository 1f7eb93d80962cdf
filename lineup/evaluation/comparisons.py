from lineup.evaluation.metrics import mcnemar
from lineup.evaluation.plots import readable_p
