"""Patches of foreground -> masks and label maps: of one image, of a pipeline call, of a whole dataset."""
