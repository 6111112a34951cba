"""The command line of the curriculum: `python -m curriculum train|counts|show`."""

import sys

from curriculum.train.command import app
from mesh import log

if __name__ == "__main__":
    log.configure(level="warning", form="console", service="curriculum", packages=("mesh", "curriculum"))
    sys.exit(app())
