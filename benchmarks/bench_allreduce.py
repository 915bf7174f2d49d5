"""How long does an all-reduce of float32 take with hvdkit, Horovod, Open MPI (also tuned) and Gloo?"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.compare import main

if __name__ == "__main__":
    main("allreduce", __doc__)
