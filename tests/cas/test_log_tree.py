"""The log's tree against RFC 9162's definitions, and against whoever bends a proof."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from strongroom.cas.log.tree import (
    EMPTY_ROOT,
    Frontier,
    consistency_proof,
    inclusion_proof,
    leaf_hash,
    node_hash,
    verify_consistency,
    verify_inclusion,
)
from strongroom.errors import FormatError, IntegrityError, RollbackError, StrongroomError, TamperedError

# What implementations of Certificate Transparency are tested by; RFC 6962's trees are RFC 9162's.
ENTRIES = ["", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f"]
ROOTS = [
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]


def naive(leaves):
    """Section 2.1.1, word for word."""
    if not leaves:
        return EMPTY_ROOT
    if len(leaves) == 1:
        return leaves[0]
    k = 1
    while 2 * k < len(leaves):
        k *= 2
    return node_hash(naive(leaves[:k]), naive(leaves[k:]))


def naive_path(m, leaves):
    """PATH(m, D[n]) of section 2.1.3.1, word for word."""
    if len(leaves) == 1:
        return []
    k = 1
    while 2 * k < len(leaves):
        k *= 2
    if m < k:
        return [*naive_path(m, leaves[:k]), naive(leaves[k:])]
    return [*naive_path(m - k, leaves[k:]), naive(leaves[:k])]


def naive_subproof(m, leaves, whole):
    """SUBPROOF(m, D[n], b) of section 2.1.4.1, word for word."""
    if m == len(leaves):
        return [] if whole else [naive(leaves)]
    k = 1
    while 2 * k < len(leaves):
        k *= 2
    if m <= k:
        return [*naive_subproof(m, leaves[:k], whole), naive(leaves[k:])]
    return [*naive_subproof(m - k, leaves[k:], False), naive(leaves[:k])]


class Grown:
    """A tree that was appended to, entry by entry."""

    def __init__(self, size):
        self.leaves = [leaf_hash(b"%d" % i) for i in range(size)]
        self.nodes, frontier = {}, Frontier()
        self.roots = [frontier.root()]
        for leaf in self.leaves:
            frontier, nodes = frontier.append(leaf)
            self.nodes |= {(level, index): value for level, index, value in nodes}
            self.roots.append(frontier.root())
        self.frontier = frontier

    def node(self, level, index):
        return self.nodes[level, index]


SIZE = 67
TREE = Grown(SIZE)


def test_the_roots_of_certificate_transparency():
    frontier = Frontier()
    for entry, root in zip(ENTRIES, ROOTS, strict=True):
        frontier, _ = frontier.append(leaf_hash(bytes.fromhex(entry)))
        assert frontier.root().hex() == root


def test_every_tree_and_every_proof_is_the_rfc_s():
    for n in range(SIZE + 1):
        assert TREE.roots[n] == naive(TREE.leaves[:n])
        assert Frontier.of(TREE.node, n).root() == TREE.roots[n]
        for m in range(n):
            assert inclusion_proof(TREE.node, m, n) == naive_path(m, TREE.leaves[:n])
            assert consistency_proof(TREE.node, m + 1, n) == naive_subproof(m + 1, TREE.leaves[:n], True)


def test_every_proof_verifies_and_is_short():
    for n in range(SIZE + 1):
        for m in range(n + 1):
            proof = consistency_proof(TREE.node, m, n)
            verify_consistency(m, TREE.roots[m], n, TREE.roots[n], proof)
            assert len(proof) <= n.bit_length() + 1
            if m < n:
                proof = inclusion_proof(TREE.node, m, n)
                verify_inclusion(TREE.leaves[m], m, n, proof, TREE.roots[n])
                assert len(proof) <= (n - 1).bit_length()


sizes = st.integers(1, SIZE)


@settings(max_examples=150, deadline=None)
@given(data=st.data(), n=sizes)
def test_a_proof_holds_for_its_entry_its_size_and_its_root_only(data, n):
    m = data.draw(st.integers(0, n - 1))
    proof = inclusion_proof(TREE.node, m, n)
    other = data.draw(st.integers(0, SIZE - 1))
    size = data.draw(sizes)
    changed = data.draw(st.sampled_from(["leaf", "index", "root", "bit", "short", "long"]))
    leaf, index, root = TREE.leaves[m], m, TREE.roots[n]
    same = False
    match changed:
        case "leaf":
            leaf, same = TREE.leaves[other], other == m
        case "index":
            index, same = other, other == m
        case "root":
            root, same = TREE.roots[size], size == n
        case "bit":
            if not proof:
                return
            at = data.draw(st.integers(0, len(proof) - 1))
            proof[at] = bytes([proof[at][0] ^ 1]) + proof[at][1:]
        case "short":
            if not proof:
                return
            proof.pop()
        case "long":
            proof.append(TREE.leaves[0])
    if same:
        return
    with pytest.raises((TamperedError, FormatError)):
        verify_inclusion(leaf, index, n, proof, root)


@settings(max_examples=150, deadline=None)
@given(data=st.data(), n=sizes)
def test_a_consistency_proof_holds_for_its_two_roots_only(data, n):
    m = data.draw(st.integers(1, n))
    proof = consistency_proof(TREE.node, m, n)
    old, new = TREE.roots[m], TREE.roots[n]
    match data.draw(st.sampled_from(["old", "new", "bit", "short", "long", "swap"])):
        case "old":
            old = leaf_hash(b"fork")
        case "new":
            new = leaf_hash(b"fork")
        case "bit" if proof:
            at = data.draw(st.integers(0, len(proof) - 1))
            proof[at] = bytes([proof[at][0] ^ 1]) + proof[at][1:]
        case "short" if proof:
            proof.pop(data.draw(st.integers(0, len(proof) - 1)))
        case "swap" if m != n:
            old, new = new, old
        case _:
            proof.append(leaf_hash(b"more"))
    with pytest.raises((RollbackError, FormatError)):
        verify_consistency(m, old, n, new, proof)


@settings(max_examples=100, deadline=None)
@given(
    numbers=st.tuples(st.integers(-2, 1 << 70), st.integers(-2, 1 << 70)),
    hashes=st.lists(st.binary(min_size=31, max_size=33), max_size=70),
    root=st.binary(min_size=32, max_size=32),
)
def test_nonsense_raises_nothing_else(numbers, hashes, root):
    for call in (
        lambda: verify_inclusion(root, *numbers, hashes, root),
        lambda: verify_consistency(numbers[0], root, numbers[1], root, hashes),
    ):
        try:
            call()
        except StrongroomError as error:
            assert isinstance(error, (FormatError, IntegrityError))


def test_a_forked_tree_is_no_extension():
    for m in range(1, 20):
        frontier = Frontier.of(TREE.node, m - 1)
        frontier, _ = frontier.append(leaf_hash(b"fork"))
        proof = consistency_proof(TREE.node, m, SIZE)
        with pytest.raises(RollbackError, match="does not begin with the"):
            verify_consistency(m, frontier.root(), SIZE, TREE.roots[SIZE], proof)


def test_there_is_no_proof_of_what_is_not_there():
    with pytest.raises(ValueError, match="wanted one below"):
        inclusion_proof(TREE.node, 5, 5)
    with pytest.raises(ValueError, match="wanted at most"):
        consistency_proof(TREE.node, 6, 5)
