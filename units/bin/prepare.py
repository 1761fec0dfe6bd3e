"""What has to be done once before the others start: here it only takes a moment."""

import time

print("preparing", flush=True)
time.sleep(1)
print("prepared", flush=True)
