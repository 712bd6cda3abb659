"""The allocator proper, in the order of its floors: each file knows only those above it in this list.

(see docs/design.md)
"""
