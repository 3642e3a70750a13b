"""``python -m nnunetv2_dinomed3d``: the command ``dinomed3d`` of this Python."""

import sys

from nnunetv2_dinomed3d.commands.main import main

sys.exit(main())
