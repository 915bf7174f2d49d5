"""How long does a reduce-scatter of float32 (equal parts) take with hvdkit, Horovod, Open MPI (also tuned) and Gloo?"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.compare import main

if __name__ == "__main__":
    main("reducescatter", __doc__)
