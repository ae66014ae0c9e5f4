"""The tasks on top of the backbone, one folder each; imported as `navit_backbone.tasks.<task>`."""
