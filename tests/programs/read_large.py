"""Read a picture in three threads at once; print the peak memory in MB, and a pixel."""

import resource
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from lineup.data.preprocessing import Preprocessing

before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
with ThreadPoolExecutor(3) as pool:
    tensors = list(pool.map(Preprocessing((64, 64), 3).tensor, [Path(sys.argv[1])] * 3))
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print((peak - before) // 1024, str(tensors[0][:, 32, 32].tolist()).replace(" ", ""))
