"""Find artifact tokens in vision transformers, and show where they come from."""

__version__ = "0.1.0"
