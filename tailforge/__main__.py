"""`python -m tailforge` is `tailforge`."""

from tailforge.cli import main

if __name__ == "__main__":
    main()
