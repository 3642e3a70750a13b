"""The commands of ``dinomed3d``, a module for each.

A module has ``HELP`` (one sentence), ``EXAMPLES`` (lines of its ``--help``), ``add_arguments(parser)`` and
``run(args)``, which returns the exit code. Importing it takes milliseconds: ``run`` imports what takes longer.
"""
