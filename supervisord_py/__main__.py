"""``python -m supervisord_py`` is ``supervisord-py``."""

from supervisord_py.cli import main

if __name__ == "__main__":
    main()
