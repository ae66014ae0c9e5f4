"""Entry points: `tools/train.py` in a clone, `-m navit_backbone.tools.train` anywhere."""
