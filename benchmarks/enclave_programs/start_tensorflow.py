"""A program that imports TensorFlow, and says when its `main` began."""

import time

import tensorflow as tf


def main() -> None:
    print(time.time(), tf.__version__, flush=True)


if __name__ == "__main__":
    main()
