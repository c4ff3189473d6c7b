"""A Sphinx extension that removes launch buttons while the book's public address is unknown.

The theme builds the Colab button from repository: url in _config.yml and stops with an error when
that is empty.
"""

from typing import Any

from sphinx.application import Sphinx
from sphinx.config import Config


def without_address(app: Sphinx, config: Config) -> None:
    """Remove the launch buttons from the theme's options unless there is an address."""
    if not config.html_theme_options.get("repository_url"):
        config.html_theme_options.pop("launch_buttons", None)


def setup(app: Sphinx) -> dict[str, Any]:
    """Register with Sphinx."""
    app.connect("config-inited", without_address)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
