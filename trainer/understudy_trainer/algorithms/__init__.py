"""The learning algorithms, one file each, named as in the papers."""
