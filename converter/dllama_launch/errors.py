"""The launcher's own error."""


class LaunchError(Exception):
    """Becomes one line and exit code 1."""
