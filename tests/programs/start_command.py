"""Start the command given and wait for it; with --leave in front, leave it alone at once."""

import subprocess
import sys

if sys.argv[1] == "--leave":
    subprocess.Popen(sys.argv[2:])
else:
    subprocess.run(sys.argv[1:])
