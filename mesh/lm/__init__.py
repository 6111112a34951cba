"""The language model, as training and serving share it."""

import logging
import os
import warnings

# Training and serving often share a machine. By default a thread that waits for another spins for long, and so takes
# the core from the very thread it waits for: a step of eight replies took 364 ms in each of two processes on two cores.
# With a spin of some microseconds it took 50 ms. One process may spin for long, and serving does (see
# `brain_server.__main__`). GNU OpenMP reads this once, when torch is loaded; what the environment sets wins.
if not os.environ.keys() & {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"}:
    os.environ["GOMP_SPINCOUNT"] = "1000"

# What libraries say at their import or to each other, and no operator can act on.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
