"""Entry points: `python tools/train.py` in a clone, `python -m navit_backbone.tools.train` elsewhere."""
