"""Sleep some seconds, end with the parent from then on, say so, sleep some more, say that too."""

import sys
import time

from lineup.process import end_with_parent

before, after = map(float, sys.argv[1:])
time.sleep(before)
end_with_parent()
print("on", flush=True)
time.sleep(after)
print("end", flush=True)
