"""`python -m tandem_operator` is `tandem operator`."""

import sys

from tandem_operator.main import run

sys.exit(run(sys.argv[1:]))
