import pytest
from serving import Server


@pytest.fixture(scope="session")
def server():
    """One server for all tests that leave it as it was."""
    made = Server("--parallel", "4")
    yield made
    assert made.stop() == 0, made.output
