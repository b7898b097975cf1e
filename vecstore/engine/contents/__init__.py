"""A store's contents as a whole: handed out, brought in, put in place, set aside, reset, and what was left behind.

Everything that replaces contents makes the new ones in a folder beside, and then swaps (`storage/swap.py`): so each is
all or nothing, may be repeated, and never touches what identifies the directory. What the store is in the replication
is given by the caller, as bytes, and stands in the new contents before they are in place.

No engine may have the store open where a function takes a path; it takes the lock itself.
"""
