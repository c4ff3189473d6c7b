"""With `pytest -n`, the cells of a notebook go to one process, which holds their kernel."""

import pytest


@pytest.hookimpl(optionalhook=True)  # without xdist there is nothing to hand out
def pytest_xdist_make_scheduler(config, log):
    """For `--dist loadgroup`: notebooks whole, other tests one by one."""
    from xdist.scheduler import LoadScopeScheduling

    class ByNotebook(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file, _, _ = nodeid.partition("::")
            return file if file.endswith(".ipynb") else nodeid

    return ByNotebook(config, log) if config.getvalue("dist") == "loadgroup" else None
