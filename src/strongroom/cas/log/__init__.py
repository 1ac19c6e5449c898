"""The audit log: entries in a tree, its heads in notes, their witnesses, and audits that are checked offline."""
