"""The story of the staging buffers: a server moves its KV cache through pools of pinned memory.

_machines            the pools that are compared, and every constant of the server
_run                 one machine with one seed
_desk                what a request asks of a pool, and what is recorded about that
_pools  _aslab       the pools: as others build them, and as an aslab cache
_driver              pinning memory, one call at a time
_chapters            many seeds: one row per machine
_tale                the page
"""
