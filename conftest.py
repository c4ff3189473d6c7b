"""Notebooks under pytest: one process for the cells of each, and measured numbers masked."""

from pathlib import Path

import pytest


@pytest.hookimpl(optionalhook=True)  # without xdist there is nothing to hand out
def pytest_xdist_make_scheduler(config, log):
    """For `--dist loadgroup`: notebooks whole, for their kernel; other tests one by one."""
    from xdist.scheduler import LoadScopeScheduling

    class ByNotebook(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file, _, _ = nodeid.partition("::")
            return file if file.endswith(".ipynb") else nodeid

    return ByNotebook(config, log) if config.getvalue("dist") == "loadgroup" else None


def pytest_configure(config):
    """Give `pytest --nbval`, as typed, the file that masks what verdicts measured."""
    if getattr(config.option, "nbval_sanitize_with", ...) is None:
        config.option.nbval_sanitize_with = str(Path(__file__).parent / "tests" / "sanitize.cfg")
