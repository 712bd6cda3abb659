"""The allocator proper, in the order of its floors: each file knows only those that stand before it here.

words       _state        marks of a cache, states of a caller that waits, and their tables
            _wakeup       waking the event loop from any thread, and a task by its work
            _clock        the loop's clock and events
memory      _lingering    freed slots whose memory somebody may still reach
            _orphans      the same once the pool is closed
            _parking      slots of forgotten buffers that are still exported
            _slab         a region and its slots; the lists that slabs are in
            _depot        slabs behind the magazine, and the one lock
            _reserve      objects set aside for those whose progress frees memory
limits      _budget       bytes of slabs over all pools: who may have more, and who comes first
            _supply       regions from a backend, and back
            _waiters      callers that wait, in order
            _emergency    single objects for when slabs do not come, and their bounds
shared      _arena        what all pools of an allocator share: supplies, limits, queues of work
decisions   _handover     who gets what comes free
            _growth       whether to grow, whether that is late, what after a failure
            _admission    who may have emergency objects made
            _working_set  how many objects a pool has needed lately
            _moving       what the mover keeps of a pool
            _member       a cache, as its pool knows it
together    _pool         the parts of one pool put together
actions     _snapshot     its counters at one moment
            _frees        a slot comes back
            _attempts     an emergency object is made for a caller that waits
            _slowpath     an allocation that finds nothing at hand
            _errands      the same for a thread without an event loop
            _reclaim      memory goes back
            _worker       slabs are made
            _move         objects move, so that whole slabs go
"""
