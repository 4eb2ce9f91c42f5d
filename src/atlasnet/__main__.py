"""``python -m atlasnet``: the command line where its script is not on the path."""

import sys

from atlasnet.cli.main import main

sys.exit(main())
