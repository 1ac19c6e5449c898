"""Read a directory of JPEG images in batches, with two worker processes; for each line of standard input an epoch, then
its seconds. As a training does: decode, crop, and make tensors."""

import sys
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset


class Images(Dataset[torch.Tensor]):
    def __init__(self, directory: Path) -> None:
        self.paths = sorted(directory.glob("*/*.jpg"))

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> torch.Tensor:
        with Image.open(self.paths[index]) as image:
            pixels = np.array(image.convert("RGB").resize((224, 224)), np.float32) / 255
        return torch.from_numpy(pixels).permute(2, 0, 1)


def main() -> None:
    images = Images(Path(sys.argv[1]))
    loader = DataLoader(images, 32, shuffle=True, num_workers=2, persistent_workers=True)
    print("ready", flush=True)
    for _ in sys.stdin:
        began = time.perf_counter()
        seen = sum(len(batch) for batch in loader)
        print(time.perf_counter() - began, seen, flush=True)


if __name__ == "__main__":
    main()
