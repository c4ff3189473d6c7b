"""Deep clustering: finding the classes of an image set without its labels.

An algorithm is a plain function ``fit(images, config)`` in `dcl.methods`, data come from
`dcl.data.load`, and the book's chapters explain and run every part.
"""

__version__ = "0.1.0"
