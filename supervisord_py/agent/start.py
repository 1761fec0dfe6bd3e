"""The script that is started: ``python start.py package.module:Class [OPTIONS]``, as ``[agent]`` of a unit has it.

A script and not a module, so that it runs in any interpreter: it brings this package along, and nothing else of the
interpreter that the supervisor runs in. Short, because a script is compiled at each start.
"""

import sys

folder = __file__.rpartition("/agent/")[0].rpartition("/")[0]
# In place of the folder of this script, whose modules have names that others have too.
sys.path[0] = folder
import supervisord_py  # noqa: E402, F401

del sys.path[0]
from supervisord_py.agent.runner import main  # noqa: E402

sys.exit(main(sys.argv[1:]))
