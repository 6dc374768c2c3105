"""The figures and tables of "Vision Transformers Need Registers" (Darcet et al., arXiv 2309.16588), item by item."""
