"""dsdmae: pre-train vision backbones on your own images.

The rooms of the house are described in docs/design/architecture.md.
"""

__version__ = "0.1.0"
