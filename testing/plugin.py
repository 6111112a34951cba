"""A plugin of pytest that prepares the test process before anything loads torch or grpc."""

import pytest

from mesh import process


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests() -> None:
    """Runs before the first conftest is imported."""
    # Tests run brains, trainers and stores side by side on the same cores; the processes that they start inherit this.
    process.share_cores()
    process.silence_grpc_forks()
