"""The service of the operating system that runs a supervisor: installed, and removed again."""
