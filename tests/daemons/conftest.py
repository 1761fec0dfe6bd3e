"""Real daemons run in a container root only: ``make test-daemons`` (``enter``) says that this is one."""

import os

collect_ignore_glob = [] if "SUPERVISORD_PY_DAEMONS" in os.environ else ["test_*.py"]
