"""The end of the process, also where threads are left that nobody ends.

Python waits for every thread that is no daemon, and an event loop for those of its executor. An agent that has torn
down while one of them hangs would be there for ever, as active as before.
"""

import os
import sys
import time

THREADS_S = 10.0
"""So long threads may take that are left when everything is torn down."""


def bound_the_end(code: int) -> None:
    """Have the process end with a code in a while, whichever threads are left."""
    threading = sys.modules.get("threading")
    if threading is None:
        return

    def left() -> "list[str]":
        return [each.name for each in threading.enumerate() if not each.daemon and each is not threading.main_thread()]

    def end() -> None:
        time.sleep(THREADS_S)
        from supervisord_py.agent.reports import print_error

        print_error(f"ended although these threads are left: {', '.join(left())}\n")
        os._exit(code)

    if left():
        threading.Thread(target=end, name="the end", daemon=True).start()
