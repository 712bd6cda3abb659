"""The story of 2012: processes swap to a disk made of ZFS, on machines that grow their caches in different ways.

_machines            the ways, and which of them should get stuck
_computer            every constant of the computer that they all run on
_run                 one machine with one seed
_spl  _index         caches as SPL had them, and how it looked up emergency objects
_zfs  _disk          what writes to swap, and the disk below it
_swap  _compaction   how memory is freed, and made into blocks again
_chapters            many seeds: one row for each machine
_tale                the page
_grid  _experiments  many computers, and every machine on each of them
"""
