"""Snapshots, the archive of the log, and restores: what leaves a store for a repository, and comes back proven.

Plans (what to restore, what may be pruned) are pure functions over what a repository lists; `repository` does the I/O
of the repository, `upload` and `download` move files. The engine calls this package; it never calls the engine.
"""
