"""How fast and how well: the targets, each measured beside what it is compared with."""

import os

# GNU OpenMP's own default, which `mesh.lm` shortens for processes that share a machine. What is measured has it for
# itself: the brain, and what the brain is compared with.
os.environ.setdefault("GOMP_SPINCOUNT", "300000")
