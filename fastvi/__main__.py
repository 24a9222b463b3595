"""``python -m fastvi`` is the command ``fastvi``, and what torchrun starts by ``-m fastvi``."""

from fastvi_command import main

if __name__ == "__main__":
    main()
