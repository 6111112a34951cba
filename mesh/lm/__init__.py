"""The language model, as training and serving share it."""

import logging
import os
import warnings

# Training and serving often share a machine. By default a thread that waits for another spins, and so takes the core
# from the very thread it waits for: beside three such processes on two cores, decoding gave 0.9 tokens a second instead
# of 4.3. GNU OpenMP reads this once, when torch is loaded; a value that the environment sets wins.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# What libraries say at their import or to each other, and no operator can act on.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
