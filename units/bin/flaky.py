"""Crashes now and then: lives 20 to 60 seconds, then ends with an uncaught exception."""

import random
import time

life = random.uniform(20, 60)
print(f"this life will take {life:.0f} s", flush=True)
time.sleep(life)
raise RuntimeError("the flaky example fails, as it was asked to")
