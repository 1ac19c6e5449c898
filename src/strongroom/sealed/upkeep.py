"""Work on a whole tree in small steps, each followed by a commit: another key, or a smaller file.

Both rewrite blocks by copy on write as any change does, so that a crash, or a stop after any step, loses nothing. Both
take `newer`, the data blocks that the next `prepare` writes anyway, and a function that does one data block, at once or
by then.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator

from strongroom.sealed.layout import GENERATION_SHIFT, PLACE_MASK
from strongroom.sealed.tree import BlockTree


def rekey_step(tree: BlockTree, limit: int, rewrite: Callable[[int], object], newer: Container[int]) -> tuple[int, int]:
    """Write at most `limit` blocks anew that are not of the store's generation; how many, and how many are left."""
    done = left = 0
    for level, index, field in _blocks(tree):
        if field >> GENERATION_SHIFT == tree.store.generation or _will_be_written(tree, level, index, newer):
            continue
        if done == limit:
            left += 1
            continue
        if level == 0:
            rewrite(index)
        else:
            tree.touch(level, index)
        done += 1
    return done, left


def compact(tree: BlockTree, limit: int, move: Callable[[int], object], newer: Container[int]) -> int:
    """Move at most `limit` blocks from the highest places into free low ones; how many were moved.

    Places that older versions hold are not free, so that it may take a commit or two until the next step finds room.
    Each step moves blocks below a bound that depends on their number only, and none back: 0 comes in the end.
    """
    found, fanout, height = tree.map(), tree.store.fanout, tree.height
    # The interior blocks above what moves are written anew too: the bound leaves room for a second copy of each.
    blocks = found.built()
    bound = tree.first + blocks + blocks // fanout + 2 * height + 2
    if not found.built_from(bound):
        return 0
    writing: set[tuple[int, int]] = set()  # interior blocks that the next `prepare` writes
    for level, index, _ in tree.nodes():
        if tree.touched(level, index):
            writing |= _path(level, index, fanout, height)
    room = found.free_below(bound) - len(writing)
    moved = 0
    for level, index, field in _blocks(tree):
        if field & PLACE_MASK < bound or _will_be_written(tree, level, index, newer):
            continue
        path = _path(max(level, 1), index if level else index // fanout, fanout, height) - writing
        cost = len(path) + (level == 0)
        if moved == limit or cost > room:
            break
        room -= cost
        writing |= path
        if level == 0:
            move(index)
        else:
            tree.touch(level, index)
        moved += 1
    return moved


def _blocks(tree: BlockTree) -> Iterator[tuple[int, int, int]]:
    """Every block as (level, index, first word of its pointer), a parent before its children."""
    if root := int.from_bytes(tree.pointer(tree.height, 0)[:8], "little"):
        yield tree.height, 0, root
    for level, index, node in tree.nodes():
        for child, field in enumerate(tree.store.fields(node), index * tree.store.fanout):
            if field:
                yield level - 1, child, field


def _will_be_written(tree: BlockTree, level: int, index: int, newer: Container[int]) -> bool:
    return index in newer if level == 0 else tree.touched(level, index)


def _path(level: int, index: int, fanout: int, height: int) -> set[tuple[int, int]]:
    """An interior block and all above it."""
    return {(up, index // fanout ** (up - level)) for up in range(level, height + 1)}
