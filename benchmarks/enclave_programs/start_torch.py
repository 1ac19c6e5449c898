"""A program that imports PyTorch, and says when its `main` began."""

import time

import torch


def main() -> None:
    print(time.time(), torch.__version__, flush=True)


if __name__ == "__main__":
    main()
