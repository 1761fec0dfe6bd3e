"""A plain program that knows nothing of supervisors: a line every ten seconds."""

import time

while True:
    print(time.strftime("%H:%M:%S tick"), flush=True)
    time.sleep(10)
