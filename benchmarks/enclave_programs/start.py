"""A program that does nothing but say when its `main` began."""

import time


def main() -> None:
    print(time.time(), flush=True)


if __name__ == "__main__":
    main()
