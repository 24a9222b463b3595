"""``python -m fastvi`` runs the command ``fastvi``; torchrun starts it by ``-m fastvi``."""

from fastvi_command import main

if __name__ == "__main__":
    main()
