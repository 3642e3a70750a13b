"""The commands of ``dinomed3d``: a file each, with its arguments and what it runs."""
