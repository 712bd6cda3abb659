"""The story of 2012: processes swap to a ZFS volume, on machines that grow their caches in different ways.

_machines            those ways, and which of them should get stuck
_computer            every constant of the computer that all of them run on
_run                 one machine with one seed
_spl  _index         the caches of SPL, and how it looked up emergency objects
_buffers             the caches of a machine, as ZFS uses them
_zfs  _disk          what swap is written to, and the disk below it
_swap  _compaction   how memory is freed, and defragmented
_chapters            many seeds: one row per machine
_tale                the page
_grid  _experiments  many computers, with every machine on each
"""
